"""Lazy resources at the end of an instant: which there are, and their levels once users came and went.

A resource becomes lazy when a solve leaves it with many users, and is lazy no longer when it has few, or when somebody
ties it to another oversubscribed one; see `sim.engines.lazy` for what runs on its clock.
"""

from __future__ import annotations

import math
from typing import Any

from sim.engines import lazy
from sim.engines.layout import LAZY, LAZY_FROM, LEVEL, ONE, PART, TOUCHED, Shared, jit, seldom
from sim.engines.usage import touch, wake
from sim.rates import find_level, set_speed


@jit
def is_new(slot: Any) -> Any:
    """Whether the slot entered its fluid phase in this instant."""
    return slot.fluid != 0 and slot.span == -1.0


@seldom
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


@seldom
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


@seldom
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
        if x.resources[k].users >= x.counts[LAZY_FROM] and lazy.usable(x, k):
            x.lists[LEVEL, x.counts[LEVEL]] = k
            x.counts[LEVEL] += 1
    x.counts[PART] = 0


@seldom
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
