"""The critical path of a run: the chain of tasks, each of which waited for the one before, that ends last.

It is read off the run's own times, walking back from the last end to the task whose end let the
current one start. A task starts when it is its turn in the lane, its dependencies are done and its
pools have room, so the one it waited for is the last to end of: the task before it on its lane, its
dependencies, and whoever gave the pool units back.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from traces.timeline import Timeline

LOOK_BACK = 32
"""Tasks that ended just before a start and are looked at for one that has to do with it."""


_NONE = np.empty(0, np.int64)


@dataclass(frozen=True, eq=False, slots=True)
class Dependencies:
    """What a task waits for besides its lane, by task number.

    Attributes
    ----------
    task [n], ptr [n + 1], dep: the dependencies of `task[i]` are `dep[ptr[i]:ptr[i + 1]]`.
    take_task, take_pool [t]: this task takes units of this pool.
    release_task, release_pool [r]: the end of this task gives units back to this pool.
    """

    task: NDArray[np.int64]
    ptr: NDArray[np.int64]
    dep: NDArray[np.int64]
    take_task: NDArray[np.int64] = field(default_factory=_NONE.copy)
    take_pool: NDArray[np.int64] = field(default_factory=_NONE.copy)
    release_task: NDArray[np.int64] = field(default_factory=_NONE.copy)
    release_pool: NDArray[np.int64] = field(default_factory=_NONE.copy)


@dataclass(frozen=True, eq=False, slots=True)
class CriticalPath:
    """m tasks of a timeline in the order in which they ran.

    rows [m]: rows of the timeline. wait_ps [m]: time between the end of the task before (0 for the
    first) and the start of this one. Durations and waits add up to the makespan.
    """

    rows: NDArray[np.int64]
    wait_ps: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Share:
    """What the tasks of one op on one lane contribute to the critical path; `op` "" is waiting."""

    op: str
    lane: str
    tasks: int
    seconds: float
    share: float


class _Walk:
    """The tasks that ran, sorted by end, and who may have let each one start.

    Positions (not rows) are used inside. The order is (end, start, number), in which whatever a task
    waited for stands before it: the walk always goes down and ends.
    """

    def __init__(self, timeline: Timeline, dependencies: Dependencies | None) -> None:
        ran = np.flatnonzero(timeline.ran)
        order = np.lexsort((timeline.task_id[ran], timeline.start_ps[ran], timeline.end_ps[ran]))
        self.rows: NDArray[np.int64] = ran[order]
        self.start = timeline.start_ps[self.rows]
        self.end = timeline.end_ps[self.rows]
        self.deps: list[list[int]] = []
        if dependencies is not None:
            numbers = timeline.task_id[self.rows]
            self.deps = _dependencies(numbers, dependencies)
            _add_releasers(self.deps, self.start, self.end, numbers, dependencies)
        lane = timeline.lane[self.rows].astype(np.int64) * (int(timeline.rank.max(initial=0)) + 1) + timeline.rank[self.rows]
        queued = timeline.lane[self.rows] != timeline.code("lane", "")
        self.before = _lane_predecessors(self.start, self.end, np.where(queued, lane, -1))
        self.kin = np.stack([getattr(timeline, c)[self.rows] for c in ("rank", "step", "layer", "microbatch")], axis=1)
        latest = np.minimum(np.searchsorted(self.end, self.start, "right"), np.arange(len(order))) - 1
        self.latest = latest
        self.slack_ps = 0 if timeline.clock == "simulated" else _usual_gap(self.start, self.end, latest)

    def known(self, i: int) -> Iterator[int]:
        """The lane's previous task, dependencies and pool releasers of i; a bottleneck's own queue comes first in a tie."""
        if self.before[i] >= 0:
            yield int(self.before[i])
        if self.deps:
            yield from (j for j in self.deps[i] if j < i and self.end[j] <= self.start[i])

    def cause(self, i: int) -> int:
        """Position of the task that i waited for; -1 where nothing had ended before its start."""
        latest = int(self.latest[i])
        if latest < 0:
            return -1
        best = max(self.known(i), key=lambda j: int(self.end[j]), default=-1)
        at_once = int(self.start[i]) - self.slack_ps
        late = bool(self.deps) and self.end[latest] < at_once  # it waited for no task: for a request, say
        if best >= 0 and (late or self.end[best] >= (at_once if self.deps else self.end[latest] - self.slack_ps)):
            return best
        near = range(latest, max(-1, latest - LOOK_BACK), -1)
        related = (j for j in near if self.end[j] >= self.end[latest] - self.slack_ps)
        return max(related, key=lambda j: (int((self.kin[j] == self.kin[i]).sum()), j))

    def back(self) -> list[int]:
        """Positions from the last end to the first task of the chain."""
        path = [len(self.rows) - 1]
        while (i := self.cause(path[-1])) >= 0:
            path.append(i)
        return path


def _usual_gap(start: NDArray[np.int64], end: NDArray[np.int64], latest: NDArray[np.int64]) -> int:
    """Ten times the median time from the nearest end before a start to that start: what a real runtime may need to react."""
    some = latest >= 0
    return 10 * int(np.median(start[some] - end[latest[some]])) if some.any() else 0


def _lane_predecessors(start: NDArray[np.int64], end: NDArray[np.int64], lane: NDArray[np.int64]) -> NDArray[np.int64]:
    """Position of the last task of the same lane that had ended when each one started; -1: none."""
    before = np.full(len(start), -1, np.int64)
    for value in np.unique(lane[lane >= 0]).tolist():
        at = np.flatnonzero(lane == value)
        found = np.minimum(np.searchsorted(end[at], start[at], "right"), np.arange(len(at))) - 1
        before[at] = np.where(found >= 0, at[np.maximum(found, 0)], -1)
    return before


def _dependencies(task_id: NDArray[np.int64], given: Dependencies) -> list[list[int]]:
    """For each position those of its dependencies; tasks that the timeline lacks are left out."""
    where = {number: i for i, number in enumerate(task_id.tolist())}
    ptr, dep = given.ptr.tolist(), given.dep.tolist()
    out: list[list[int]] = [[] for _ in where]
    for i, number in enumerate(given.task.tolist()):
        if number in where:
            out[where[number]] = [where[d] for d in dep[ptr[i] : ptr[i + 1]] if d in where]
    return out


def _add_releasers(
    deps: list[list[int]], start: NDArray[np.int64], end: NDArray[np.int64], numbers: NDArray[np.int64], given: Dependencies
) -> None:
    """To each task that takes from a pool, the last one that had given back to it when the task started."""
    where = {number: i for i, number in enumerate(numbers.tolist())}
    for pool in np.unique(given.take_pool).tolist():
        takers = [where[t] for t in given.take_task[given.take_pool == pool].tolist() if t in where]
        givers = np.array(sorted(where[t] for t in given.release_task[given.release_pool == pool].tolist() if t in where), np.int64)
        last = np.searchsorted(end[givers], start[takers], "right") - 1
        for taker, at in zip(takers, last.tolist(), strict=True):
            if at >= 0:
                deps[taker].append(int(givers[at]))


def critical_path(timeline: Timeline, dependencies: Dependencies | None = None) -> CriticalPath:
    """Walk back from the last end.

    Times of a simulation are exact: the cause ends in the very picosecond. A measured run reacts
    late, so there a lane neighbour or dependency counts when it ended within the usual gap of the
    nearest end. `dependencies` make the choice among tasks that end together sure; without them
    tasks of the same step, layer and micro-batch are preferred.
    """
    walk = _Walk(timeline, dependencies)
    if not len(walk.rows):
        return CriticalPath(np.empty(0, np.int64), np.empty(0, np.int64))
    path = np.array(walk.back()[::-1], np.int64)
    ends = np.concatenate([[0], walk.end[path[:-1]]])
    return CriticalPath(walk.rows[path], walk.start[path] - ends)


def shares(timeline: Timeline, path: CriticalPath) -> list[Share]:
    """The path's seconds by op and lane, the largest first, and the waits between its tasks as one row."""
    total = max(1, timeline.makespan_ps)
    key = timeline.op[path.rows].astype(np.int64) * len(timeline.lanes) + timeline.lane[path.rows]
    ps = timeline.duration_ps[path.rows]
    found = []
    for k in np.unique(key).tolist():
        mine = key == k
        spent = int(ps[mine].sum())
        op, lane = timeline.ops[k // len(timeline.lanes)], timeline.lanes[k % len(timeline.lanes)]
        found.append(Share(op, lane, int(mine.sum()), spent / 1e12, spent / total))
    waited = int(path.wait_ps.sum())
    if waited:
        found.append(Share("", "", int((path.wait_ps > 0).sum()), waited / 1e12, waited / total))
    return sorted((s for s in found if s.seconds > 0), key=lambda s: -s.seconds)
