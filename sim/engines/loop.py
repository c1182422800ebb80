"""The compiled engine's loop over a frozen Plan.

An instant is a series of rounds: end what is due, release holds, close joins, then start what can
start, lanes in declared order, then settle the rates. A task with a body begins it when its own work
is over, and ends with the last of its tasks. The loop is linear in tasks; an end costs
O(log n) in the tasks that run and a solve only where an oversubscribed resource changed.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from sim.engines import lanes
from sim.engines.heap import schedule, unschedule
from sim.engines.lanes import (
    DIRTY,
    ENDED,
    ENDS,
    FREE_SLOTS,
    JOINS,
    READY,
    RUNNING,
    STARTABLE,
    SUBMITTED,
    Graph,
    State,
    mark,
)  # fmt: skip
from sim.engines.layout import HEAP, Shared, entry, jit
from sim.engines.settle import settle
from sim.engines.usage import enter, leave, rebuild


@jit
def queue(g: Graph, st: State, x: Shared, begin: int) -> None:
    """Put every task where it waits; those of bodies wait for the task that they are inside of."""
    for i in range(len(g.lane) - 1, -1, -1):
        lane = g.lane[i]
        if st.lanes[lane].order == SUBMITTED:
            st.links[i].queue = st.lanes[lane].head
            st.lanes[lane].head = i
    for i in range(len(g.lane)):
        if g.body[i] > -2 and not lanes.watch(g, st, i):
            make_startable(g, st, x, i, begin)
    close_joins(g, st, x, begin)


@jit
def make_startable(g: Graph, st: State, x: Shared, i: int, now: int) -> None:
    """All dependencies of task `i` are done."""
    st.state[i] = STARTABLE
    st.start_ps[i] = now
    lane = g.lane[i]
    if lane == 0:
        c = x.classes[g.cls[i]]
        if c.latency == 0 and c.solo == 0.0 and g.take_ptr[i] == g.take_ptr[i + 1]:
            st.joins[st.counts[JOINS]] = i
            st.counts[JOINS] += 1
            return
    if st.lanes[lane].order == SUBMITTED:
        if st.lanes[lane].head == i:
            mark(st, lane)
    else:
        lanes.push(g, st, lane, i)
        mark(st, lane)


@jit
def end(g: Graph, st: State, x: Shared, i: int, now: int) -> None:
    """Task `i` is done: note it, release what it releases, wake who hangs on it."""
    st.state[i] = ENDED
    st.end_ps[i] = now
    st.counts[ENDS] += 1
    for j in range(g.release_ptr[i], g.release_ptr[i + 1]):
        holder = g.release[j] - g.first
        if st.held[holder]:
            lanes.give_back(g, st, holder)
    waiter = st.links[i].watch
    while waiter >= 0:
        after = st.links[waiter].after
        if not lanes.watch(g, st, waiter):
            make_startable(g, st, x, waiter, now)
        waiter = after
    b = -2 - g.body[i]
    if b >= 0:
        st.inside[b] -= 1
        if st.inside[b] == 0:
            st.joins[st.counts[JOINS]] = g.bodies[b].task
            st.counts[JOINS] += 1


@jit
def close_joins(g: Graph, st: State, x: Shared, now: int) -> None:
    """Joins end when their dependencies do, tasks when their bodies have, one after another within the instant."""
    while st.counts[JOINS] > 0:
        st.counts[JOINS] -= 1
        i = st.joins[st.counts[JOINS]]
        if g.lane[i] > 0:
            free_server(g, st, i)
        end(g, st, x, i, now)


@jit
def free_server(g: Graph, st: State, i: int) -> None:
    st.lanes[g.lane[i]].free += 1
    mark(st, g.lane[i])


@jit
def begin_body(g: Graph, st: State, x: Shared, i: int, now: int) -> None:
    """The own work of task `i` is over; its server stays taken."""
    body = g.bodies[g.body[i]]
    for j in range(body.first, body.last):
        if not lanes.watch(g, st, j):
            make_startable(g, st, x, j, now)


@jit
def begin_task(g: Graph, st: State, x: Shared, i: int, lane: int, now: int) -> None:
    st.state[i] = RUNNING
    st.start_ps[i] = now
    lanes.acquire(g, st, i)
    st.lanes[lane].free -= 1
    st.counts[FREE_SLOTS] -= 1
    s = st.free_slots[st.counts[FREE_SLOTS]]
    st.owner[s] = i
    c = x.classes[g.cls[i]]
    if c.latency == 0 and c.solo > 0.0:
        enter(x, s, g.cls[i], 1.0, now)
    else:
        schedule(x, s, now + c.latency)


@jit
def start_lane(g: Graph, st: State, x: Shared, lane: int, now: int) -> None:
    """Start tasks of one lane while it has a free server and a task that may start."""
    row = st.lanes[lane]
    while row.free > 0:
        i = row.head
        if row.order != SUBMITTED:
            if row.length == 0:
                return
            i = st.ready[row.heap]
        elif i < 0 or st.state[i] != STARTABLE:
            return
        pool = lanes.lacking(g, st, i)
        if pool >= 0 and row.order != READY:
            lanes.block(st, lane, pool)
            return
        if row.order == SUBMITTED:
            row.head = st.links[i].queue
        else:
            lanes.pop(g, st, lane)
        if pool >= 0:
            lanes.park(st, i, pool)
        else:
            begin_task(g, st, x, i, lane, now)


@jit
def start_all(g: Graph, st: State, x: Shared, now: int) -> None:
    """Lanes in declared order. A start gives nothing back, so it cannot enable an earlier lane."""
    while st.counts[DIRTY] > 0:
        start_lane(g, st, x, lanes.next_marked(st), now)


@jit
def end_due(g: Graph, st: State, x: Shared, now: int) -> None:
    """End every task that is due; those whose latency is over begin their fluid phase."""
    while x.counts[HEAP] > 0 and x.slots[x.lists[HEAP, 0]].end <= now:
        s = x.lists[HEAP, 0]
        i = st.owner[s]
        cls = g.cls[i]
        if x.slots[s].fluid == 0:
            unschedule(x, s)
            if x.classes[cls].solo > 0.0:
                enter(x, s, cls, 1.0, now)
                continue
        else:
            leave(x, s)
        st.free_slots[st.counts[FREE_SLOTS]] = s
        st.counts[FREE_SLOTS] += 1
        if g.body[i] >= 0:
            begin_body(g, st, x, i, now)
            continue
        free_server(g, st, i)
        end(g, st, x, i, now)


@entry
def run(g: Graph, st: State, x: Shared, change_ps: Any, change_resource: Any, change_capacity: Any, begin: int) -> Any:
    """Run until nothing is due. Returns the number of tasks that ended."""
    now: Any = begin
    c = 0
    queue(g, st, x, begin)
    while True:
        if c < len(change_ps) and change_ps[c] <= now:
            while c < len(change_ps) and change_ps[c] <= now:
                x.resources[change_resource[c]].capacity = change_capacity[c]
                c += 1
            rebuild(x)
        start_all(g, st, x, now)
        settle(x, now)
        if x.counts[HEAP] == 0 and (c == len(change_ps) or st.counts[ENDS] == len(g.lane)):
            return st.counts[ENDS]
        upcoming = x.slots[x.lists[HEAP, 0]].end if x.counts[HEAP] > 0 else change_ps[c]
        now = np.int64(min(upcoming, change_ps[c]) if c < len(change_ps) else upcoming)
        end_due(g, st, x, now)
        close_joins(g, st, x, now)
