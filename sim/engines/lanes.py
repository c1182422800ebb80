"""Lanes, pools and readiness of the compiled engine.

Who waits is kept in linked lists, so that a start or an end costs what it changes: a task that
waits hangs on one dependency that is not done (and moves to another when that ends), a blocked lane
hangs on the pool that its head lacks, and a task that a "ready" lane skipped hangs on its pool.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sim.engines.layout import jit

SUBMITTED, READY, PRIORITY = range(3)
ORDERS = ("submitted", "ready", "priority")

# States of a task.
WAITING, STARTABLE, RUNNING, ENDED = range(4)

LANE = np.dtype(
    [("order", "i4"), ("free", "i4"), ("head", "i4"), ("heap", "i4"), ("length", "i4"), ("dirty", "i4"), ("pool", "i4"), ("next", "i4")]
)
"""`head`: lowest task not started, of order "submitted"; `heap`, `length`: slice of the ready heaps
otherwise. `pool`, `next`: the pool that the lane hangs on (-1: none) and the next lane there."""
POOL = np.dtype([("room", "i8"), ("lanes", "i4"), ("parked", "i4")])
"""Units free; first of the lanes and first of the skipped tasks that hang on it."""
LINKS = np.dtype([("watch", "i4"), ("after", "i4"), ("queue", "i4")])
"""`watch`: first task that hangs on this one's end, `after`: the next that hangs where this one does;
`queue`: next task of its lane, or next parked on its pool."""
BODY = np.dtype([("task", "i4"), ("first", "i4"), ("last", "i4")])
"""The task that has it, and the rows of its tasks."""

# Entries of `counts`.
DIRTY, JOINS, FREE_SLOTS, ENDS = range(4)


class Graph(NamedTuple):
    """The Plan's columns, and behind its n tasks those of the bodies that run.

    lane: row of `State.lanes`, 0 for tasks without a lane, else one more than the machine's index. Pools are
    looked up in `pool_of`. bodies: see `BODY`. body: of a task that has one its row there, of a task inside
    of one -2 less that row, else -1.
    """

    lane: NDArray[np.int32]
    cls: NDArray[np.int32]
    dep_ptr: NDArray[np.int32]
    dep: NDArray[np.int32]
    take_ptr: NDArray[np.int32]
    take_pool: NDArray[np.int16]
    take_units: NDArray[np.int64]
    release_ptr: NDArray[np.int32]
    release: NDArray[np.int32]
    priority: NDArray[np.int32]
    body: NDArray[np.int32]
    bodies: NDArray[Any]
    pool_of: NDArray[np.int16]
    first: int


class State(NamedTuple):
    """What the loop writes. start_ps holds the instant a task became ready until it starts. inside: tasks
    of each body that have not ended."""

    state: NDArray[np.int8]
    held: NDArray[np.bool_]
    inside: NDArray[np.int32]
    links: NDArray[Any]
    start_ps: NDArray[np.int64]
    end_ps: NDArray[np.int64]
    lanes: NDArray[Any]
    pools: NDArray[Any]
    ready: NDArray[np.int32]
    dirty: NDArray[np.int32]
    joins: NDArray[np.int32]
    owner: NDArray[np.int32]
    free_slots: NDArray[np.int32]
    counts: NDArray[np.int64]


@jit
def mark(st: State, lane: int) -> None:
    """The lane may be able to start something at the end of this instant: put it on the heap of those."""
    if st.lanes[lane].dirty != 0:
        return
    st.lanes[lane].dirty = 1
    i = st.counts[DIRTY]
    st.counts[DIRTY] = i + 1
    while i > 0 and st.dirty[(i - 1) >> 1] > lane:
        st.dirty[i] = st.dirty[(i - 1) >> 1]
        i = (i - 1) >> 1
    st.dirty[i] = lane


@jit
def next_marked(st: State) -> Any:
    """Take the first marked lane in declared order."""
    dirty = st.dirty
    first = dirty[0]
    n = st.counts[DIRTY] - 1
    st.counts[DIRTY] = n
    lane = dirty[n]
    i = 0
    while 2 * i + 1 < n:
        child = 2 * i + 1
        if child + 1 < n and dirty[child + 1] < dirty[child]:
            child += 1
        if dirty[child] >= lane:
            break
        dirty[i] = dirty[child]
        i = child
    dirty[i] = lane
    st.lanes[first].dirty = 0
    return first


@jit
def before(g: Graph, st: State, a: int, b: int) -> Any:
    """Order of "ready" and "priority" lanes: (priority, instant it became ready, number)."""
    if g.priority[a] != g.priority[b]:
        return g.priority[a] < g.priority[b]
    if st.start_ps[a] != st.start_ps[b]:
        return st.start_ps[a] < st.start_ps[b]
    return a < b


@jit
def push(g: Graph, st: State, lane: int, task: int) -> None:
    base, i = st.lanes[lane].heap, st.lanes[lane].length
    st.lanes[lane].length = i + 1
    while i > 0:
        parent = (i - 1) >> 1
        if not before(g, st, task, st.ready[base + parent]):
            break
        st.ready[base + i] = st.ready[base + parent]
        i = parent
    st.ready[base + i] = task


@jit
def pop(g: Graph, st: State, lane: int) -> None:
    """Take the first task off the lane's heap."""
    base, n = st.lanes[lane].heap, st.lanes[lane].length - 1
    st.lanes[lane].length = n
    if n == 0:
        return
    task = st.ready[base + n]
    i = 0
    while 2 * i + 1 < n:
        child = 2 * i + 1
        if child + 1 < n and before(g, st, st.ready[base + child + 1], st.ready[base + child]):
            child += 1
        if not before(g, st, st.ready[base + child], task):
            break
        st.ready[base + i] = st.ready[base + child]
        i = child
    st.ready[base + i] = task


@jit
def watch(g: Graph, st: State, i: int) -> bool:
    """Hang task `i` on a dependency that is not done; False: all are done."""
    for j in range(g.dep_ptr[i + 1] - 1, g.dep_ptr[i] - 1, -1):
        d = g.dep[j] - g.first
        if st.state[d] != ENDED:
            st.links[i].after = st.links[d].watch
            st.links[d].watch = i
            return True
    return False


@jit
def lacking(g: Graph, st: State, i: int) -> Any:
    """First pool without room for what task `i` takes; -1: it can start. Takes of one pool add up."""
    for j in range(g.take_ptr[i], g.take_ptr[i + 1]):
        units = g.take_units[j]
        for k in range(g.take_ptr[i], j):
            if g.take_pool[k] == g.take_pool[j]:
                units += g.take_units[k]
        pool = g.pool_of[g.take_pool[j]]
        if st.pools[pool].room < units:
            return pool
    return -1


@jit
def acquire(g: Graph, st: State, i: int) -> None:
    for j in range(g.take_ptr[i], g.take_ptr[i + 1]):
        st.pools[g.pool_of[g.take_pool[j]]].room -= g.take_units[j]
        st.held[i] = True


@jit
def give_back(g: Graph, st: State, i: int) -> None:
    """The holds of task `i` end: lanes that hang on its pools may start, skipped tasks queue again."""
    st.held[i] = False
    for j in range(g.take_ptr[i], g.take_ptr[i + 1]):
        pool = g.pool_of[g.take_pool[j]]
        p = st.pools[pool]
        p.room += g.take_units[j]
        while p.lanes >= 0:
            lane = p.lanes
            p.lanes = st.lanes[lane].next
            st.lanes[lane].pool = -1
            mark(st, lane)
        while p.parked >= 0:
            task = p.parked
            p.parked = st.links[task].queue
            lane = g.lane[task]
            push(g, st, lane, task)
            mark(st, lane)


@jit
def block(st: State, lane: int, pool: int) -> None:
    """Hang the lane on the pool that its head lacks."""
    if st.lanes[lane].pool < 0:
        st.lanes[lane].pool = pool
        st.lanes[lane].next = st.pools[pool].lanes
        st.pools[pool].lanes = lane


@jit
def park(st: State, task: int, pool: int) -> None:
    """Hang a task that its lane skips on the pool that it lacks."""
    st.links[task].queue = st.pools[pool].parked
    st.pools[pool].parked = task
