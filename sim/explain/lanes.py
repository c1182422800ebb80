"""Where the time of each lane goes: busy, blocked or a bubble.

At each instant a lane either runs something or does not. While it runs, it may be slower than the
machine allows it alone, because others share what it needs. While it does not, it may have a task
whose dependencies are done and that still cannot start: the first in turn lacks room in a pool, or
the first in turn is not ready and holds up the others behind it (head-of-line). Those others block the
lane for as long as they would have kept it busy, had each begun when it was ready. What is left is a
bubble: nothing to do yet, or nothing left to do.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sim.columns import Columns
from sim.engines.run import DONE, Run
from sim.explain.limits import ROUNDING_PS
from sim.machines.schema import Lane
from sim.summary import union_ps
from sim.tasks import PS_PER_S


@dataclass(frozen=True, slots=True)
class LaneTime:
    """Seconds of one lane that add up to the makespan.

    busy_s: tasks running, at the speed that they have alone. sharing_s: the rest of the time in which
    something ran. pool_s: nothing ran, the task in turn waited for room in a pool. order_s: nothing ran,
    and tasks that were ready but not in turn would have filled that time. bubble_s: the rest.
    """

    busy_s: float
    sharing_s: float
    pool_s: float
    order_s: float
    bubble_s: float

    @property
    def blocked_s(self) -> float:
        return self.sharing_s + self.pool_s + self.order_s


def lane_times(
    run: Run, columns: Columns, solo_ps: NDArray[np.float64], handed_out_ps: NDArray[np.int64], lanes: tuple[Lane, ...]
) -> dict[str, LaneTime]:
    """Split each lane's time. solo_ps, handed_out_ps [n]: what each task takes alone, and when the scheduler gave it out."""
    ready = np.maximum(_last_dependency_ps(run, columns), handed_out_ps)
    return {lane.name: _split(run, np.flatnonzero((run.lane == i) & (run.status == DONE)), ready, solo_ps, lane)
            for i, lane in enumerate(lanes)}  # fmt: skip


def _last_dependency_ps(run: Run, columns: Columns) -> NDArray[np.int64]:
    """When the last dependency of each task ended [n]; 0 for a task without any."""
    found = np.zeros(len(run), np.int64)
    ends = run.end_ps[np.searchsorted(columns.number, columns.dep)]
    waits = np.flatnonzero(np.diff(columns.dep_ptr))
    if len(waits):
        found[waits] = np.maximum.reduceat(ends, columns.dep_ptr[waits])
    return found


def _split(run: Run, at: NDArray[np.int64], ready: NDArray[np.int64], solo_ps: NDArray[np.float64], lane: Lane) -> LaneTime:
    """`at`: rows of the lane's tasks, ascending."""
    start, end, could = run.start_ps[at], run.end_ps[at], np.minimum(ready[at], run.start_ps[at])
    running = union_ps(start, end)
    # While nothing runs, who is ready and first in turn lacks a pool; in a lane without turns, so does everybody who is ready.
    turn = np.maximum.accumulate(np.concatenate([np.zeros(1, np.int64), start[:-1]])) if lane.order == "submitted" and len(at) else could
    first = np.minimum(np.maximum(could, turn), start)
    with_pool = _union(start, end, first, start)
    begin, until = _at_once(could, solo_ps[at] / lane.servers)
    with_ready = _union(np.concatenate([start, first]), np.concatenate([end, start]), begin, until)
    spent = float((end - start).sum())
    alone = float(solo_ps[at].sum()) / spent if float((end - start - solo_ps[at]).max(initial=0.0)) > ROUNDING_PS else 1.0
    makespan = run.makespan_ps
    parts = (running * alone, running * (1 - alone), with_pool - running, with_ready - with_pool, makespan - with_ready)
    return LaneTime(*(p / PS_PER_S for p in parts))


def _at_once(ready: NDArray[np.int64], solo_ps: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """When each task would run on a lane that never waits with work at hand: first ready, first served [k] each."""
    order = np.argsort(ready, kind="stable")
    done = np.cumsum(solo_ps[order])
    begin = np.maximum.accumulate(ready[order] - (done - solo_ps[order])) + done - solo_ps[order]
    return begin.astype(np.int64), (begin + solo_ps[order]).astype(np.int64)


def _union(*ends: NDArray[np.int64]) -> int:
    """Length of the union of two sets of intervals: starts and ends of the one, then of the other."""
    return union_ps(np.concatenate(ends[0::2]), np.concatenate(ends[1::2]))
