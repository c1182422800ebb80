"""The compiled engine: one loop over a frozen Plan, in numba. Same picoseconds as SimPy's.

It runs what needs no reaction: all tasks known, none asks to be notified, none fails.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from sim.drive import Deadlock
from sim.engines import loop
from sim.engines.graph import class_tables, graph, pieces
from sim.engines.intake import Change, change_columns, check_bodies, check_lanes, check_references, lane_table
from sim.engines.lanes import ENDED, LANE, LINKS, ORDERS, POOL, RUNNING, SUBMITTED, Graph, State
from sim.engines.run import Inside, LaneLike, Run, status_of
from sim.engines.slots import Rates
from sim.engines.story import Wait, deadlock

if TYPE_CHECKING:
    from sim.costs import PricedPlan


def run_compiled(
    priced: PricedPlan, lanes: Sequence[LaneLike], pools: Mapping[str, int], *, changes: Sequence[Change] = (), begin_ps: int = 0
) -> Run:
    """Run a Plan that is handed out at `begin_ps`; changes of capacity are (time in ps, resource,
    capacity). O(n) in tasks.

    Raises UserError where the Plan names an unknown lane or pool, takes more than a pool holds or
    refers to tasks that are not in it; Deadlock where tasks are left that nothing can start.
    """
    plan, names = priced.plan, tuple(lane.name for lane in lanes)
    check_lanes(names, pools)
    check_references(plan, lambda numbers: np.zeros(len(numbers), np.bool_))
    columns = change_columns(changes, priced.resources)
    check_bodies(priced, lanes)
    g = graph(priced, names, pools)
    st = state(g, lanes, pools)
    rates = Rates(priced.capacity, len(st.free_slots))
    for prices, _ in class_tables(priced).values():
        rates.extend(prices)
    if loop.run(g, st, rates.arrays, *columns, begin_ps) < len(g.lane):
        raise stuck(priced, g, st, names, tuple(pools))
    return _run_of(priced, st, names)


def _run_of(priced: PricedPlan, st: State, lanes: tuple[str, ...]) -> Run:
    plan, own = priced.plan, slice(len(priced.plan))
    inside = []
    for body, first, task in pieces(priced)[1:]:
        here = slice(first, first + len(body.plan))
        inside.append(Inside(plan.first + task, body.plan, st.start_ps[here], st.end_ps[here], status_of(body)))
    return Run(
        sources=(plan,), lanes=lanes, number=plan.first + np.arange(len(plan)), lane=lane_table(plan, lanes)[plan.lane],
        start_ps=st.start_ps[own], end_ps=st.end_ps[own], status=status_of(priced), inside=tuple(inside),
    )  # fmt: skip


def state(g: Graph, lanes: Sequence[LaneLike], pools: Mapping[str, int]) -> State:
    """Nothing queued yet. Slots: one a server, and one for each task without a lane."""
    n = len(g.lane)
    members = np.bincount(g.lane, minlength=len(lanes) + 1)
    lane_rows = np.zeros(len(lanes) + 1, LANE)
    lane_rows["order"] = [ORDERS.index("ready"), *(ORDERS.index(lane.order) for lane in lanes)]
    lane_rows["free"] = [n, *(lane.servers for lane in lanes)]
    lane_rows["head"] = lane_rows["pool"] = -1
    queued = np.where(lane_rows["order"] == SUBMITTED, 0, members)
    lane_rows["heap"] = np.cumsum(queued) - queued
    pool_rows = np.zeros(max(len(pools), 1), POOL)
    pool_rows["room"][: len(pools)] = list(pools.values())
    pool_rows["lanes"] = pool_rows["parked"] = -1
    links = np.zeros(n, LINKS)
    links["watch"] = -1
    slots = int(np.minimum(members, lane_rows["free"]).sum())
    return State(
        state=np.zeros(n, np.int8), held=np.zeros(n, np.bool_), inside=g.bodies["last"] - g.bodies["first"], links=links,
        start_ps=np.zeros(n, np.int64), end_ps=np.zeros(n, np.int64),
        lanes=lane_rows, pools=pool_rows, ready=np.zeros(int(queued.sum()), np.int32), dirty=np.zeros(len(lanes) + 1, np.int32),
        joins=np.zeros(int(members[0]) + len(g.bodies), np.int32), owner=np.zeros(slots, np.int32),
        free_slots=np.arange(slots, dtype=np.int32)[::-1].copy(), counts=np.array([0, 0, slots, 0], np.int64),
    )  # fmt: skip


def stuck(priced: PricedPlan, g: Graph, st: State, lanes: Sequence[str], pools: Sequence[str]) -> Deadlock:
    """The story of the tasks that nothing can start: the first of each lane, and what it waits for."""
    plan = priced.plan
    holders: dict[str, list[int]] = {name: [] for name in pools}
    for i in np.flatnonzero(st.held).tolist():
        for j in range(plan.take_ptr[i], plan.take_ptr[i + 1]):
            holders[plan.pools[plan.take_pool[j]]].append(plan.first + i)
    waits = []
    seen: set[int] = set()
    for i in np.flatnonzero(st.state[: len(plan)] != ENDED).tolist():
        lane = int(plan.lane[i])
        running = st.state[i] == RUNNING
        if lane in seen and not running:
            continue
        if not running:
            seen.add(lane)
        takes = range(plan.take_ptr[i], plan.take_ptr[i + 1])
        waits.append(Wait(
            number=plan.first + i, op=plan.works[plan.work[i]].op, lane=plan.lanes[lane] if lane >= 0 else None, running=bool(running),
            deps=tuple(d for d in plan.dep[plan.dep_ptr[i] : plan.dep_ptr[i + 1]].tolist() if st.state[d - plan.first] != ENDED),
            takes=tuple((plan.pools[plan.take_pool[j]], int(plan.take_units[j])) for j in takes),
        ))  # fmt: skip
    rooms = {name: int(room) for name, room in zip(pools, st.pools["room"], strict=False)}
    return deadlock(int((st.state[: len(plan)] != ENDED).sum()), waits, rooms, holders)
