"""Binary heap of slots by due time. Every operation is O(log n) in the tasks that run."""

from __future__ import annotations

from typing import Any

from sim.engines.layout import DUE, HEAP, NEVER, Shared, jit


@jit
def sift_up(x: Shared, i: int) -> None:
    heap, slots = x.lists[HEAP], x.slots
    s = heap[i]
    end = slots[s].end
    while i > 0:
        parent = (i - 1) >> 1
        p = heap[parent]
        if slots[p].end <= end:
            break
        heap[i] = p
        slots[p].heap = i
        i = parent
    heap[i] = s
    slots[s].heap = i


@jit
def sift_down(x: Shared, i: int, n: int) -> None:
    heap, slots = x.lists[HEAP], x.slots
    s = heap[i]
    end = slots[s].end
    while True:
        child = 2 * i + 1
        if child >= n:
            break
        if child + 1 < n and slots[heap[child + 1]].end < slots[heap[child]].end:
            child += 1
        c = heap[child]
        if slots[c].end >= end:
            break
        heap[i] = c
        slots[c].heap = i
        i = child
    heap[i] = s
    slots[s].heap = i


@jit
def schedule(x: Shared, s: int, end: Any) -> None:
    """Make slot `s` due at `end`; NEVER takes it off the heap."""
    i = x.slots[s].heap
    if end >= NEVER:
        if i >= 0:
            unschedule(x, s)
        x.slots[s].end = NEVER
        return
    earlier = i < 0 or end < x.slots[s].end
    x.slots[s].end = end
    if i < 0:
        i = x.counts[HEAP]
        x.counts[HEAP] = i + 1
        x.lists[HEAP, i] = s
    if earlier:
        sift_up(x, i)
    else:
        sift_down(x, i, x.counts[HEAP])


@jit
def unschedule(x: Shared, s: int) -> None:
    i = x.slots[s].heap
    n = x.counts[HEAP] - 1
    x.counts[HEAP] = n
    x.slots[s].heap = -1
    if i < n:
        last = x.lists[HEAP, n]
        x.lists[HEAP, i] = last
        x.slots[last].heap = i
        sift_up(x, i)
        sift_down(x, x.slots[last].heap, n)


@jit
def due(x: Shared) -> Any:
    """Earliest due time (NEVER: none) and how many slots share it; they stand in lists[DUE], the heap stays."""
    if x.counts[HEAP] == 0:
        return NEVER, 0
    heap, found = x.lists[HEAP], x.lists[DUE]
    end = x.slots[heap[0]].end
    found[0] = 0
    i, n = 0, 1
    while i < n:  # places in the heap: only below a slot that is due can another one be
        for child in range(2 * found[i] + 1, min(2 * found[i] + 3, x.counts[HEAP])):
            if x.slots[heap[child]].end == end:
                found[n] = child
                n += 1
        i += 1
    for i in range(n):
        found[i] = heap[found[i]]
    return end, n
