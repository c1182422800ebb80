"""Sweeps over a task graph in number order, compiled: they cannot be vectorised.

Two tasks are ordered by a dependency, or by a buffer that both touch and at least one writes: the
bytes say who comes first, whatever the schedule. Dependencies are CSR rows, each below its owner's;
buffers are CSR columns, reads before writes. Tasks where `ran` is false order nothing.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numba
import numpy as np
from numpy.typing import NDArray


class Order(NamedTuple):
    """Who must come before whom, of n tasks: dep_ptr [n + 1], dep; buffer_ptr [n + 1], buffer, write; ran [n]."""

    dep_ptr: NDArray[np.int64]
    dep: NDArray[np.int64]
    buffer_ptr: NDArray[np.int64]
    buffer: NDArray[np.int64]
    write: NDArray[np.bool_]
    ran: NDArray[np.bool_]
    buffers: int


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def fans(o: Order) -> Any:
    """Tasks that each one directly waits for, and that directly wait for it [n, 2]."""
    n = len(o.ran)
    fan = np.zeros((n, 2), np.int64)
    writer = np.full(o.buffers, -1)
    readers = np.zeros(o.buffers, np.int64)
    for i in range(n):
        if not o.ran[i]:
            continue
        for j in range(o.dep_ptr[i], o.dep_ptr[i + 1]):
            fan[i, 0] += 1
            fan[o.dep[j], 1] += 1
        for j in range(o.buffer_ptr[i], o.buffer_ptr[i + 1]):
            b = o.buffer[j]
            if o.write[j]:
                fan[i, 0] += readers[b]
                writer[b] = i
                readers[b] = 0
            else:
                readers[b] += 1
                if writer[b] >= 0:
                    fan[i, 0] += 1
                    fan[writer[b], 1] += 1
    return fan


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def cuts_before(o: Order, bit: NDArray[np.uint64]) -> Any:
    """The cuts (tasks with a bit) that must end before each task starts, as a set of bits [n]."""
    n = len(bit)
    before = np.zeros(n, np.uint64)
    wrote = np.zeros(o.buffers, np.uint64)
    read = np.zeros(o.buffers, np.uint64)
    for i in range(n):
        if not o.ran[i]:
            continue
        mine = np.uint64(0)
        for j in range(o.dep_ptr[i], o.dep_ptr[i + 1]):
            mine |= before[o.dep[j]] | bit[o.dep[j]]
        for j in range(o.buffer_ptr[i], o.buffer_ptr[i + 1]):
            mine |= wrote[o.buffer[j]]
            if o.write[j]:
                mine |= read[o.buffer[j]]
        before[i] = mine
        mine |= bit[i]
        for j in range(o.buffer_ptr[i], o.buffer_ptr[i + 1]):
            b = o.buffer[j]
            if o.write[j]:
                wrote[b] = mine
                read[b] = np.uint64(0)
            else:
                read[b] |= mine
    return before


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def after(o: Order, span: NDArray[np.float64], bit: NDArray[np.uint64]) -> Any:
    """What must follow the end of each task: the longest chain of spans [n], and the cuts [n]."""
    n = len(span)
    tail = np.zeros(n)
    cuts = np.zeros(n, np.uint64)
    next_write = np.zeros(o.buffers)
    next_read = np.zeros(o.buffers)
    write_cuts = np.zeros(o.buffers, np.uint64)
    read_cuts = np.zeros(o.buffers, np.uint64)
    for i in range(n - 1, -1, -1):
        if not o.ran[i]:
            continue
        longest = tail[i]
        mine = cuts[i]
        for j in range(o.buffer_ptr[i], o.buffer_ptr[i + 1]):
            b = o.buffer[j]
            longest = max(longest, next_write[b])
            mine |= write_cuts[b]
            if o.write[j]:
                longest = max(longest, next_read[b])
                mine |= read_cuts[b]
        tail[i] = longest
        cuts[i] = mine
        longest += span[i]
        mine |= bit[i]
        for j in range(o.dep_ptr[i], o.dep_ptr[i + 1]):
            d = o.dep[j]
            tail[d] = max(tail[d], longest)
            cuts[d] |= mine
        for j in range(o.buffer_ptr[i + 1] - 1, o.buffer_ptr[i] - 1, -1):
            b = o.buffer[j]
            if o.write[j]:
                next_write[b] = longest
                write_cuts[b] = mine
                next_read[b] = 0.0
                read_cuts[b] = np.uint64(0)
            else:
                next_read[b] = max(next_read[b], longest)
                read_cuts[b] |= mine
    return tail, cuts


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def heads(o: Order, span: NDArray[np.float64], cut: NDArray[np.int64], before: NDArray[np.uint64], between: NDArray[np.float64]) -> Any:
    """Earliest start of each task [n]: the longest chain, and at a cut (cut[i] its number, else -1) no
    earlier than between[0, c], or between[1 + b, c] after the end of a cut b before it."""
    n = len(span)
    start = np.zeros(n)
    wrote = np.zeros(o.buffers)
    read = np.zeros(o.buffers)
    cut_end = np.zeros(between.shape[1])
    for i in range(n):
        if not o.ran[i]:
            continue
        t = 0.0
        for j in range(o.dep_ptr[i], o.dep_ptr[i + 1]):
            t = max(t, start[o.dep[j]] + span[o.dep[j]])
        for j in range(o.buffer_ptr[i], o.buffer_ptr[i + 1]):
            t = max(t, wrote[o.buffer[j]])
            if o.write[j]:
                t = max(t, read[o.buffer[j]])
        c = cut[i]
        if c >= 0:
            t = max(t, between[0, c])
            for b in range(c):
                if (before[i] >> np.uint64(b)) & np.uint64(1):
                    t = max(t, cut_end[b] + between[b + 1, c])
            cut_end[c] = t + span[i]
        start[i] = t
        t += span[i]
        for j in range(o.buffer_ptr[i], o.buffer_ptr[i + 1]):
            b = o.buffer[j]
            if o.write[j]:
                wrote[b] = t
                read[b] = 0.0
            else:
                read[b] = max(read[b], t)
    return start
