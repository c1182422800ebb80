"""Who uses what: prices of classes, running sums and user lists of resources, tasks that enter and leave.

All in O(demands of the task); nothing here looks at other tasks.
"""

from __future__ import annotations

import math

import numpy as np

from sim.engines import lazy
from sim.engines.heap import unschedule
from sim.engines.layout import LAZY, ONE, PART, TOUCHED, WIDTH, Shared, jit, seldom


@jit
def price(x: Shared, since: int) -> None:
    """Solo spans in ps and shares of the classes `since` and up, at the present capacities."""
    demands, resources = x.demands, x.resources
    for i in range(since, len(x.classes)):
        c = x.classes[i]
        solo, rate = 0.0, 0.0
        bound = -1
        for j in range(c.first, c.last):
            d = demands[j]
            speed = min(resources[d.resource].capacity, d.cap)
            if d.amount > 0.0:
                span = d.amount / speed if speed > 0.0 else math.inf
                if span > solo:
                    solo, rate, bound = span, speed, j
        c.solo = solo * 1e12
        for j in range(c.first, c.last):
            d = demands[j]
            if solo < math.inf and d.amount > 0.0:
                share = (d.amount / demands[bound].amount) * (rate / resources[d.resource].capacity)
                d.share = min(np.int64(share * ONE), ONE)
            else:
                d.share = 0


@jit
def add_part(x: Shared, k: int) -> None:
    """Resource `k` is to be solved anew: its users changed, and it is or was oversubscribed."""
    if x.resources[k].part == 0:
        x.resources[k].part = 1
        x.lists[PART, x.counts[PART]] = k
        x.counts[PART] += 1


@jit
def link(x: Shared, s: int) -> None:
    """Add the demands of slot `s`, at speed 1, to the sums and user lists of its resources."""
    nodes = x.nodes
    c = x.classes[x.slots[s].cls]
    node = s * x.counts[WIDTH]
    for j in range(c.first, c.last):
        d = x.demands[j]
        if d.share > 0:
            r = x.resources[d.resource]
            nodes[node].slot = s
            nodes[node].demand = j
            nodes[node].prev = -1
            nodes[node].next = r.head
            if r.head >= 0:
                nodes[r.head].prev = node
            r.head = node
            r.users += 1
            r.total += d.share
            r.used += d.share
            if r.total > ONE:
                add_part(x, d.resource)
        node += 1


@jit
def unlink(x: Shared, s: int) -> None:
    """Take the demands of slot `s`, at its present speed, out again."""
    nodes = x.nodes
    c = x.classes[x.slots[s].cls]
    node = s * x.counts[WIDTH]
    for j in range(c.first, c.last):
        d = x.demands[j]
        if d.share > 0:
            r = x.resources[d.resource]
            before, after = nodes[node].prev, nodes[node].next
            if before >= 0:
                nodes[before].next = after
            else:
                r.head = after
            if after >= 0:
                nodes[after].prev = before
            r.users -= 1
            if r.total > ONE:
                add_part(x, d.resource)
            r.total -= d.share
            r.used -= np.int64(x.slots[s].speed * d.share)
        node += 1


@jit
def touch(x: Shared, s: int) -> None:
    """Remember that the speed of slot `s` may be another one after this instant."""
    if x.slots[s].touched == 0:
        x.slots[s].touched = 1
        x.lists[TOUCHED, x.counts[TOUCHED]] = s
        x.counts[TOUCHED] += 1


@seldom
def wake(x: Shared, k: int) -> None:
    """Resource `k` is lazy no longer: its heavy users get anchors of their own, and it is to be solved."""
    r = x.resources[k]
    while r.root >= 0:
        touch(x, r.root)
        lazy.own_clock(x, r.root)
    r.is_lazy = 0
    x.counts[LAZY] -= 1
    add_part(x, k)


@jit
def enter(x: Shared, s: int, cls: int, left: float, now: int) -> None:
    """Slot `s` begins its fluid phase with the fraction `left` of class `cls` to do."""
    slot = x.slots[s]
    slot.cls = cls
    slot.left = left
    slot.anchor = now
    slot.span = -1.0
    slot.speed = 1.0
    slot.base = 1.0
    slot.fluid = 1
    slot.lazy = -1
    link(x, s)
    touch(x, s)


@jit
def leave(x: Shared, s: int) -> None:
    """Slot `s` is done, or given up."""
    if x.counts[LAZY] > 0:
        lazy.part(x, s)
    unlink(x, s)
    if x.slots[s].heap >= 0:
        unschedule(x, s)
    x.slots[s].fluid = 0


@jit
def rebuild(x: Shared) -> None:
    """Capacities changed: price anew and sum up again. Progress keeps its anchors."""
    for k in range(len(x.resources)):
        if x.resources[k].is_lazy != 0:
            wake(x, k)
    price(x, 0)
    for k in range(len(x.resources)):
        r = x.resources[k]
        r.total, r.used, r.base, r.level, r.head, r.users, r.part = 0, 0, 0, 0.0, -1, 0, 0
    x.counts[PART] = 0
    for s in range(len(x.slots)):
        if x.slots[s].fluid != 0:
            x.slots[s].speed, x.slots[s].base = 1.0, 1.0
            link(x, s)
            touch(x, s)
