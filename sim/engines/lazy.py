"""Many users of one oversubscribed resource, without a look at each of them at every event.

All heavy users of a resource get weight * level of it: one lazy clock, the integral of the level over
time, drives them all. A user that enters at clock V with the fraction `left` to do ends when the clock
shows V + left * quantum, whatever the level does until then. So a change of the level moves the clock's
anchor and the first end, and nothing else; ends are kept in a pairing heap (Fredman, Sedgewick, Sleator
and Tarjan, Algorithmica 1986), of which only the first stands on the heap of due times. Light users run
as if alone and keep their own anchors.

The level is (1 - wants of light users) / weight of heavy ones, from running sums. `low` and `high` bound
the want per weight of heavy users from below and of light ones from above: only where the level leaves
(high, low) is everybody looked at, for users to change sides.

A resource is lazy while it has many users, none of which uses another oversubscribed one (then one level
tells all). Whether it is must not depend on the order of what happened within an instant, so it is decided
at its end (`sim.engines.settle`). For the sums of other resources its users count as if at full speed.
"""

from __future__ import annotations

import math
from typing import Any

from sim.engines.heap import due as due_alone
from sim.engines.heap import schedule, unschedule
from sim.engines.layout import DUE, MARGIN, NEVER, NOISE, ONE, Shared, jit, seldom


@jit
def meld(x: Shared, a: int, b: int) -> Any:
    """One heap of two (-1: an empty one); returns its root."""
    if a < 0:
        return b
    if b < 0:
        return a
    slots = x.slots
    if slots[b].target < slots[a].target:
        a, b = b, a
    first = slots[a].child
    slots[b].after = first
    slots[b].before = a
    if first >= 0:
        slots[first].before = b
    slots[a].child = b
    return a


@jit
def meld_children(x: Shared, s: int) -> Any:
    """The heap of what is below `s`, in two passes: pairs from left to right, then all from right to left."""
    slots = x.slots
    node, paired = slots[s].child, -1
    slots[s].child = -1
    while node >= 0:
        second = slots[node].after
        rest = slots[second].after if second >= 0 else -1
        slots[node].after = slots[node].before = -1
        if second >= 0:
            slots[second].after = slots[second].before = -1
        both = meld(x, node, second)
        slots[both].after = paired
        paired = both
        node = rest
    root = -1
    while paired >= 0:
        rest = slots[paired].after
        slots[paired].after = -1
        root = meld(x, root, paired)
        paired = rest
    return root


@jit
def clock_at(x: Shared, k: int, now: int) -> Any:
    r = x.resources[k]
    return r.clock + (now - r.since) * r.level


@jit
def due_of(x: Shared, s: int) -> Any:
    """When heavy slot `s` ends if the level stays."""
    r = x.resources[x.slots[s].lazy]
    ahead = (x.slots[s].target - r.clock) / r.level
    if not ahead > 0.0:
        return r.since
    return r.since + int(math.ceil(ahead - ahead * NOISE)) if ahead < NEVER else NEVER


@jit
def show(x: Shared, k: int, now: int) -> None:
    """Put the first end of resource `k` on the heap of due times, in the place of what stood for it before."""
    r = x.resources[k]
    if r.shown >= 0 and r.shown != r.root:
        unschedule(x, r.shown)
    r.shown = r.root
    if r.root >= 0:
        schedule(x, r.root, max(now, due_of(x, r.root)))
        if x.slots[r.root].heap < 0:
            r.shown = -1


@jit
def quantum(x: Shared, s: int, j: int) -> Any:
    """What the clock moves while slot `s` does all of its work as a heavy user by demand `j`."""
    d = x.demands[j]
    return x.classes[x.slots[s].cls].solo * (d.share / d.weight)


@jit
def push(x: Shared, k: int, s: int, j: int, left: float, now: int) -> None:
    """Slot `s` becomes a heavy user of `k`; it leaves the heap of due times."""
    slot = x.slots[s]
    if slot.heap >= 0:
        unschedule(x, s)
    slot.end = NEVER
    slot.span = 0.0
    slot.lazy = k
    slot.demand = j
    slot.target = clock_at(x, k, now) + left * quantum(x, s, j)
    slot.child = slot.before = slot.after = -1
    x.resources[k].root = meld(x, x.resources[k].root, s)


@jit
def pull(x: Shared, s: int) -> None:
    """Heavy slot `s` leaves its clock's heap. Where the first end was its own, the next one stands for the resource."""
    slots = x.slots
    slot = slots[s]
    r = x.resources[slot.lazy]
    below = meld_children(x, s)
    if r.root == s:
        r.root = below
    else:
        if slots[slot.before].child == s:
            slots[slot.before].child = slot.after
        else:
            slots[slot.before].after = slot.after
        if slot.after >= 0:
            slots[slot.after].before = slot.before
        r.root = meld(x, r.root, below)
    if r.shown == s:
        r.shown = -1
        if slot.heap >= 0:
            unschedule(x, s)
        if r.root >= 0:
            schedule(x, r.root, due_of(x, r.root))
            r.shown = r.root if x.slots[r.root].heap >= 0 else -1
    slot.lazy = -1


@seldom
def part(x: Shared, s: int) -> None:
    """Slot `s` ends: take it out of the sums of the lazy resources that it uses, and off their clock."""
    c = x.classes[x.slots[s].cls]
    for j in range(c.first, c.last):
        d = x.demands[j]
        r = x.resources[d.resource]
        if r.is_lazy != 0 and d.share > 0:
            if x.slots[s].lazy == d.resource:
                r.weight -= d.weight
                r.heavy -= 1
                pull(x, s)
            else:
                r.light -= d.share


@jit
def join(x: Shared, s: int, now: int) -> None:
    """A slot that entered in this instant: light or heavy by the present level."""
    c = x.classes[x.slots[s].cls]
    for j in range(c.first, c.last):
        d = x.demands[j]
        r = x.resources[d.resource]
        if r.is_lazy != 0 and d.share > 0:
            if d.share > d.weight * r.level:
                r.weight += d.weight
                r.heavy += 1
                r.low = min(r.low, d.share / d.weight)
                push(x, d.resource, s, j, x.slots[s].left, now)
            else:
                r.light += d.share
                r.high = max(r.high, d.share / d.weight)


@jit
def within_bounds(r: Any, level: float) -> Any:
    """Nobody changes sides at `level`. The margin covers the rounding of a quotient."""
    return r.heavy > 0 and level < r.low * (1.0 - MARGIN) and level >= r.high * (1.0 + MARGIN)


@jit
def set_level(x: Shared, k: int, level: float, now: int) -> None:
    r = x.resources[k]
    if level != r.level:
        r.clock = clock_at(x, k, now)
        r.since = now
        r.level = level


@jit
def own_clock(x: Shared, s: int) -> None:
    """Heavy slot `s` gets an anchor of its own: that of the clock, since when its speed has been the same."""
    slot = x.slots[s]
    r = x.resources[slot.lazy]
    whole = quantum(x, s, slot.demand)
    end = due_of(x, s)
    slot.anchor = r.since
    slot.left = (slot.target - r.clock) / whole
    slot.span = whole / r.level
    pull(x, s)
    schedule(x, s, end)


@seldom
def usable(x: Shared, k: int) -> bool:
    """Whether `k`, which has many users, may be lazy: oversubscribed, and nobody uses another oversubscribed resource."""
    if x.resources[k].total <= ONE:
        return False
    node = x.resources[k].head
    while node >= 0:
        c = x.classes[x.slots[x.nodes[node].slot].cls]
        for j in range(c.first, c.last):
            m = x.demands[j].resource
            if m != k and x.demands[j].share > 0 and x.resources[m].total > ONE:
                return False
        node = x.nodes[node].next
    return True


@jit
def due(x: Shared) -> Any:
    """Earliest due time (NEVER: none) and how many slots share it; they stand in lists[DUE], the heaps stay."""
    end, n = due_alone(x)
    found, slots = x.lists[DUE], x.slots
    i = 0
    while i < n:  # a heavy user ends with the first of its clock only if what stands above it does
        s = found[i]
        if slots[s].fluid != 0 and slots[s].lazy >= 0:
            below = slots[s].child
            while below >= 0:
                if due_of(x, below) <= end:
                    found[n] = below
                    n += 1
                below = slots[below].after
        i += 1
    return end, n
