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

from sim.engines import lazy
from sim.engines.heap import schedule
from sim.engines.layout import CUT, LAZY, LAZY_FROM, LEVEL, NEVER, NOISE, ONE, PART, SLACK, TIGHTNESS, TOUCHED, Shared, jit, seldom
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


@jit
def rearm(x: Shared, s: int, now: int) -> None:
    """Anchor the progress of slot `s` at `now` if its speed changed, and make it due again."""
    slot = x.slots[s]
    span = x.classes[slot.cls].solo / slot.speed
    if span == slot.span:
        return
    if now > slot.anchor:
        slot.left = max(0.0, slot.left - (now - slot.anchor) / slot.span)
    slot.anchor = now
    slot.span = span
    ahead = slot.left * span if slot.left > 0.0 else 0.0
    if ahead < NEVER:
        schedule(x, s, now + np.int64(math.ceil(ahead - ahead * NOISE)))
    else:
        schedule(x, s, NEVER)


@jit
def is_new(slot: Any) -> Any:
    """Whether the slot entered its fluid phase in this instant."""
    return slot.fluid != 0 and slot.span == -1.0


@jit
def couple(x: Shared) -> None:
    """Who entered and uses two oversubscribed resources ties them together: neither is lazy any more."""
    for i in range(x.counts[TOUCHED]):
        slot = x.slots[x.lists[TOUCHED, i]]
        if is_new(slot):
            c = x.classes[slot.cls]
            over = 0
            for j in range(c.first, c.last):
                over += x.demands[j].share > 0 and x.resources[x.demands[j].resource].total > ONE
            for j in range(c.first, c.last):
                if over > 1 and x.demands[j].share > 0 and x.resources[x.demands[j].resource].is_lazy != 0:
                    wake(x, x.demands[j].resource)


@jit
def set_lazy_apart(x: Shared) -> None:
    """Lazy resources go from lists[PART] to lists[LEVEL]; those with too few users stay, and are lazy no longer."""
    kept = 0
    for i in range(x.counts[PART]):
        k = x.lists[PART, i]
        r = x.resources[k]
        if r.is_lazy != 0 and (r.total <= ONE or 2 * r.users < x.counts[LAZY_FROM]):
            wake(x, k)
        if r.is_lazy != 0:
            r.part = 0
            x.lists[LEVEL, x.counts[LEVEL]] = k
            x.counts[LEVEL] += 1
        else:
            x.lists[PART, kept] = k
            kept += 1
    x.counts[PART] = kept


@seldom
def regroup(x: Shared, k: int, now: int) -> None:
    """The level of lazy resource `k` from all its users, and who is light or heavy by it."""
    r = x.resources[k]
    lazy.set_level(x, k, find_level(x, k, False), now)
    r.light, r.weight, r.heavy, r.low, r.high = 0, 0, 0, math.inf, 0.0
    node = r.head
    while node >= 0:
        s, j = x.nodes[node].slot, x.nodes[node].demand
        node = x.nodes[node].next
        d, slot = x.demands[j], x.slots[s]
        if d.share > d.weight * r.level:
            r.weight += d.weight
            r.heavy += 1
            r.low = min(r.low, d.share / d.weight)
            if slot.lazy < 0:
                gone = (now - slot.anchor) / slot.span if now > slot.anchor else 0.0
                lazy.push(x, k, s, j, max(0.0, slot.left - gone), now)
        else:
            r.light += d.share
            r.high = max(r.high, d.share / d.weight)
            if slot.lazy >= 0:
                slot.left = max(0.0, (slot.target - lazy.clock_at(x, k, now)) / lazy.quantum(x, s, j))
                slot.anchor = now
                lazy.pull(x, s)
                touch(x, s)


@jit
def level_anew(x: Shared, now: int) -> None:
    """Lazy resources whose users changed."""
    for i in range(x.counts[TOUCHED]):
        s = x.lists[TOUCHED, i]
        if is_new(x.slots[s]):
            lazy.join(x, s, now)
    for i in range(x.counts[LEVEL]):
        k = x.lists[LEVEL, i]
        r = x.resources[k]
        if r.is_lazy != 0:
            level = (ONE - r.light) / r.weight
            if lazy.within_bounds(r, level):
                lazy.set_level(x, k, level, now)
            else:
                regroup(x, k, now)
            lazy.show(x, k, now)
    x.counts[LEVEL] = 0


@jit
def close_parts(x: Shared) -> None:
    """The solve is over; lists[LEVEL] has the resources that can be lazy from now on."""
    for i in range(x.counts[PART]):
        k = x.lists[PART, i]
        x.resources[k].part = 0
        if lazy.usable(x, k):
            x.lists[LEVEL, x.counts[LEVEL]] = k
            x.counts[LEVEL] += 1
    x.counts[PART] = 0


@jit
def become_lazy(x: Shared, k: int, now: int) -> None:
    r = x.resources[k]
    x.counts[LAZY] += 1
    r.is_lazy, r.clock, r.since, r.root, r.shown = 1, 0.0, now, -1, -1
    node = r.head
    while node >= 0:
        s = x.nodes[node].slot
        if x.slots[s].speed < 1.0:
            set_speed(x, s, 1.0)
        node = x.nodes[node].next
    regroup(x, k, now)
    lazy.show(x, k, now)


@jit
def settle(x: Shared, now: int) -> None:
    """End of an instant: solve if an oversubscribed resource changed, then rearm what changed speed."""
    if x.counts[PART] > 0:
        if x.counts[LAZY] > 0:
            couple(x)
            set_lazy_apart(x)
        share_out(x)
        if x.counts[LEVEL] > 0:
            level_anew(x, now)
        close_parts(x)
    for i in range(x.counts[TOUCHED]):
        s = x.lists[TOUCHED, i]
        x.slots[s].touched = 0
        if x.slots[s].fluid != 0 and x.slots[s].lazy < 0:
            rearm(x, s, now)
    x.counts[TOUCHED] = 0
    for i in range(x.counts[LEVEL]):
        become_lazy(x, x.lists[LEVEL, i], now)
    x.counts[LEVEL] = 0
