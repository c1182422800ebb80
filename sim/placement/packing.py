"""Packing copies onto GPUs, compiled: which experts get more copies, and longest processing time first.

Both work on one layer, on GPUs with unequal slots and speeds, and never put two copies of an expert on one GPU.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from sim.placement.compiled import jit


@jit
def replicate(load: Any, total: int, most: int) -> Any:
    """Experts of `total` copies, in the order in which they are handed out: first one each, then again and again one
    more for the expert with the largest load a copy (the first of equals), but never more than `most` of one.

    Source: DeepSeek's EPLB, replicate_experts, which has no `most`.
    """
    experts = len(load)
    copies = np.ones(experts, np.int64)
    found = np.empty(total, np.int64)
    found[:experts] = np.arange(experts)
    n = experts
    while n < total:
        best, value = -1, -1.0
        for e in range(experts):
            if copies[e] < most and load[e] / copies[e] > value:
                best, value = e, load[e] / copies[e]
        if best < 0:
            break
        copies[best] += 1
        found[n] = best
        n += 1
    return found[:n]


@jit
def pack(items: Any, load: Any, slots: Any, speed: Any) -> Any:
    """GPU of each item (an expert's copy) [items]: largest first, each to the GPU that would be done with it soonest.

    items: expert of each copy; load: of each item; slots, speed [gpus]. Largest-first onto equal GPUs is Graham's LPT
    (SIAM J. Appl. Math. 17, 1969); with slots, EPLB's balanced_packing. Where every free GPU holds the expert already,
    a copy elsewhere makes room; where none can, the item is left out (-1), which never happens to an expert's first.
    """
    gpus, n = len(slots), len(items)
    held = np.zeros((items.max() + 1, gpus), np.bool_)
    where = np.full(n, -1, np.int64)
    used, busy = np.zeros(gpus, np.int64), np.zeros(gpus)
    for i in np.argsort(-load, kind="mergesort"):
        best = -1
        for g in range(gpus):
            if used[g] < slots[g] and not held[items[i], g]:
                if best < 0 or _sooner(busy[g], speed[g], busy[best], speed[best], load[i]):
                    best = g
        if best < 0:
            best = _make_room(i, items, load, slots, held, where, used, busy)
        if best >= 0:
            where[i] = best
            held[items[i], best] = True
            used[best] += 1
            busy[best] += load[i]
    return where


@jit
def _sooner(a: float, a_speed: float, b: float, b_speed: float, load: float) -> bool:
    """Whether a GPU with load `a` ends `load` more before one with `b`; exact where both are as fast."""
    return a < b if a_speed == b_speed else (a + load) / a_speed < (b + load) / b_speed


@jit
def _make_room(i: int, items: Any, load: Any, slots: Any, held: Any, where: Any, used: Any, busy: Any) -> int:
    """A GPU without the expert of item i, freed by sending one of its copies to a GPU with a free slot; -1: there is none.

    The copy nearest in load goes, so that the packing is disturbed least.
    """
    best, target, distance = -1, -1, np.inf
    for j in range(len(items)):
        g = where[j]
        if g < 0 or held[items[i], g]:
            continue
        for free in range(len(slots)):
            if used[free] < slots[free] and not held[items[j], free] and abs(load[j] - load[i]) < distance:
                best, target, distance = j, free, abs(load[j] - load[i])
    if best < 0:
        return -1
    g = where[best]
    held[items[best], g], held[items[best], target] = False, True
    where[best] = target
    used[target] += 1
    busy[target] += load[best]
    used[g] -= 1
    busy[g] -= load[best]
    return int(g)


@jit
def spread(load: Any, slots: Any, speed: Any, total: int) -> Any:
    """Held [experts, gpus] bool: `total` copies handed out by `replicate` and placed by `pack`."""
    items = replicate(load, total, (slots > 0).sum())
    copies = np.zeros(len(load), np.int64)
    for e in items:
        copies[e] += 1
    where = pack(items, (load / copies)[items], slots, speed)
    held = np.zeros((len(load), len(slots)), np.bool_)
    for i in range(len(items)):
        if where[i] >= 0:
            held[items[i], where[i]] = True
    return held
