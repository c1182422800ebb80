"""How running tasks share the machine: the one rate solver of both engines.

A task that runs alone needs T = max over k of amount_k / min(capacity_k, cap_k) and then uses the
share u_k = amount_k / (T capacity_k) of each resource. While the shares of all running tasks fit on
every resource, each runs at speed 1. Otherwise the oversubscribed resources are shared by weighted
max-min, tightest first; docs/decisions/0002-sharing-rule.md has the rule and what lost.

Shares are int64 in units of 2^-40 of the capacity, rounded down, so that n users of an nth each fit
and no sum depends on an order of addition; weights are int64 in units of 2^-36. The solution is a
pure function of the set of running tasks, hence a task whose neighbourhood did not change keeps its
speed to the last bit, and with it its progress anchor.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from sim.engines.layout import CUT, ONE, PART, SLACK, TIGHTNESS, Shared, jit
from sim.engines.usage import add_part, touch, wake


@jit
def set_speed(x: Shared, s: int, speed: float) -> None:
    old = x.slots[s].speed
    x.slots[s].speed = speed
    c = x.classes[x.slots[s].cls]
    for j in range(c.first, c.last):
        share = x.demands[j].share
        x.resources[x.demands[j].resource].used += np.int64(speed * share) - np.int64(old * share)


@jit
def tightest(x: Shared) -> int:
    """The resource most oversubscribed by what is wanted of what it has left; -1: all fit."""
    best, most = -1, 0.0
    for i in range(x.counts[PART]):
        k = x.lists[PART, i]
        r = x.resources[k]
        if r.used > ONE:
            ratio = math.floor((r.used - r.base) / (ONE - r.base) * TIGHTNESS + 0.5)
            if best < 0 or ratio > most or (ratio == most and k < best):
                best, most = k, ratio
    return best


@jit
def want(slot: Any, share: int, again: bool) -> Any:
    """What a user asks for: its share at its present speed; what is above its base where it asks again."""
    wanted = np.int64(slot.speed * share)
    return wanted - np.int64(slot.base * share) if again else wanted


@jit
def heavy_users(x: Shared, k: int, level: float, again: bool) -> Any:
    """Split the users of `k` at `level`: sum of the light ones' wants, weight and number of the heavy ones."""
    light, weight, n = 0, 0, 0
    node = x.resources[k].head
    while node >= 0:
        d = x.demands[x.nodes[node].demand]
        wanted = want(x.slots[x.nodes[node].slot], d.share, again)
        if wanted > d.weight * level:
            weight += d.weight
            n += 1
        else:
            light += wanted
        node = x.nodes[node].next
    return light, weight, n


@jit
def find_level(x: Shared, k: int, again: bool) -> Any:
    """The level at which users of `k`, each given min(want, weight * level), fill it exactly.

    Newton's method on a concave, piecewise linear sum: from anywhere one step leads to the level or
    below it, and from there each step leads up, to fewer heavy users, until their set stays. It
    begins where the last solution was; then two passes over the users are usual. (Where that is too
    high to cut anybody, the division by no weight gives -inf, at which everybody is heavy.)
    """
    room, begin = ONE, x.resources[k].level
    if again:
        # One unit a user: the sum of two shares rounded down may be one short of their rounded sum.
        room -= x.resources[k].base + x.resources[k].users
        begin = 0.0
    light, weight, heavy = heavy_users(x, k, begin, again)
    most = np.int64(x.resources[k].users)
    while True:
        level = (room - light) / weight
        light, weight, n = heavy_users(x, k, level, again)
        if n == heavy or n > most:
            return level
        heavy = most = n


@jit
def fill(x: Shared, k: int, again: bool) -> None:
    """Cut the users of `k` that want more than their weight's part of the level."""
    level = find_level(x, k, again)
    if not again:
        x.resources[k].level = level
    node = x.resources[k].head
    while node >= 0:
        s = x.nodes[node].slot
        d = x.demands[x.nodes[node].demand]
        slot = x.slots[s]
        if want(slot, d.share, again) > d.weight * level:
            speed = d.weight * level / d.share
            if again:
                speed = min(slot.base + speed, slot.speed)
            set_speed(x, s, speed)
            if slot.cut == 0:
                slot.cut = 1
                x.lists[CUT, x.counts[CUT]] = s
                x.counts[CUT] += 1
                touch(x, s)
        node = x.nodes[node].next


@jit
def may_ask(x: Shared, cls: int) -> bool:
    """Whether no resource that this class uses is full, by the sums from before this round of asking."""
    c = x.classes[cls]
    for j in range(c.first, c.last):
        r = x.resources[x.demands[j].resource]
        if x.demands[j].share > 0 and r.total > ONE and ONE - r.base <= SLACK + r.users:
            return False
    return True


@jit
def ask_again(x: Shared) -> int:
    """Begin a round: cut tasks with room want full speed, everybody else what it has. Returns how many ask."""
    for i in range(x.counts[PART]):
        r = x.resources[x.lists[PART, i]]
        r.base = r.used
    asking = 0
    for i in range(x.counts[CUT]):
        s = x.lists[CUT, i]
        x.slots[s].base = x.slots[s].speed
        if x.slots[s].speed < 1.0 and may_ask(x, x.slots[s].cls):
            set_speed(x, s, 1.0)
            asking += 1
    return asking


@jit
def begin_anew(x: Shared, k: int) -> None:
    """All users of `k` want full speed; oversubscribed resources that they use too belong to this solve."""
    node = x.resources[k].head
    while node >= 0:
        s = x.nodes[node].slot
        node = x.nodes[node].next
        if x.slots[s].speed < 1.0:
            set_speed(x, s, 1.0)
            touch(x, s)
        c = x.classes[x.slots[s].cls]
        for j in range(c.first, c.last):
            m = x.demands[j].resource
            if x.demands[j].share > 0 and x.resources[m].total > ONE:
                if x.resources[m].is_lazy == 0:
                    add_part(x, m)
                elif x.resources[k].total > ONE:
                    wake(x, m)


@jit
def share_out(x: Shared) -> None:
    """Speeds of the tasks that use the resources of this part: those that changed, and all that are
    connected to them by tasks that use two oversubscribed ones. Others keep what they have.

    Filling one resource never overfills another, so the first pass fills each at most once. What a
    later cut leaves unused on an earlier one is handed to the cut tasks that have room, by the same
    rule; each such round fills a resource or ends the asking: at most as many rounds as resources.
    """
    i = 0
    while i < x.counts[PART]:
        k = x.lists[PART, i]
        x.resources[k].base = 0
        begin_anew(x, k)
        i += 1
    filled = 0
    k = tightest(x)
    while k >= 0:
        fill(x, k, False)
        filled += 1
        k = tightest(x)
    # Here and below, base is below 1 only for tasks in the list of cut ones.
    while filled > 1 and ask_again(x) > 0:
        k = tightest(x)
        while k >= 0:
            fill(x, k, True)
            k = tightest(x)
    for i in range(x.counts[CUT]):
        x.slots[x.lists[CUT, i]].cut = 0
        x.slots[x.lists[CUT, i]].base = 1.0
    x.counts[CUT] = 0
