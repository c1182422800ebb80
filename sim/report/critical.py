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
        ran = np.flatnonzero(timeline.ran & ~timeline.inside)
        order = np.lexsort((timeline.task_id[ran], timeline.start_ps[ran], timeline.end_ps[ran]))
        self.rows: NDArray[np.int64] = ran[order]
        self.start = timeline.start_ps[self.rows]
        self.end = timeline.end_ps[self.rows]
        self.causes = None if dependencies is None else _causes(timeline.task_id[self.rows], self.start, self.end, dependencies)
        lane = timeline.lane[self.rows].astype(np.int64) * (int(timeline.rank.max(initial=0)) + 1) + timeline.rank[self.rows]
        queued = timeline.lane[self.rows] != timeline.code("lane", "")
        before = _lane_predecessors(self.start, self.end, np.where(queued, lane, -1))
        self.kin = np.stack([getattr(timeline, c)[self.rows] for c in ("rank", "step", "layer", "microbatch")], axis=1)
        latest = np.minimum(np.searchsorted(self.end, self.start, "right"), np.arange(len(order))) - 1
        # One task after another is looked at: lists answer faster than arrays.
        self.starts, self.ends, self.before, self.latest = self.start.tolist(), self.end.tolist(), before.tolist(), latest.tolist()
        self.slack_ps = 0 if timeline.clock == "simulated" else _usual_gap(self.start, self.end, latest)

    def known(self, i: int) -> Iterator[int]:
        """The lane's previous task, dependencies and pool releasers of i; a bottleneck's own queue comes first in a tie."""
        if self.before[i] >= 0:
            yield self.before[i]
        if self.causes is not None:
            yield from (j for j in self.causes.of(i) if j < i and self.ends[j] <= self.starts[i])

    def cause(self, i: int) -> int:
        """Position of the task that i waited for; -1 where nothing had ended before its start."""
        latest = self.latest[i]
        if latest < 0:
            return -1
        best = max(self.known(i), key=self.ends.__getitem__, default=-1)
        at_once = self.starts[i] - self.slack_ps
        sure = self.causes is not None
        late = sure and self.ends[latest] < at_once  # it waited for no task: for a request, say
        if best >= 0 and (late or self.ends[best] >= (at_once if sure else self.ends[latest] - self.slack_ps)):
            return best
        near = range(latest, max(-1, latest - LOOK_BACK), -1)
        related = (j for j in near if self.ends[j] >= self.ends[latest] - self.slack_ps)
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


class _Causes:
    """By position, the tasks that may have let each one start: CSR of positions."""

    def __init__(self, owner: NDArray[np.int64], cause: NDArray[np.int64], n: int) -> None:
        order = np.argsort(owner, kind="stable")
        self._ptr = np.searchsorted(owner[order], np.arange(n + 1)).tolist()
        self._cause = cause[order].tolist()

    def of(self, i: int) -> list[int]:
        found: list[int] = self._cause[self._ptr[i] : self._ptr[i + 1]]
        return found


def _causes(task_id: NDArray[np.int64], start: NDArray[np.int64], end: NDArray[np.int64], given: Dependencies) -> _Causes:
    """Dependencies, and for each task that takes from a pool the last one that had given back to it when
    the task started. Tasks that the timeline lacks are left out."""
    by_number = np.argsort(task_id)
    numbers = task_id[by_number]

    def positions(wanted: NDArray[np.int64]) -> NDArray[np.int64]:
        at = np.minimum(np.searchsorted(numbers, wanted), len(numbers) - 1)
        return np.where(numbers[at] == wanted, by_number[at], -1)

    owners = [positions(np.repeat(given.task, np.diff(given.ptr)))]
    causes = [positions(given.dep)]
    for pool in np.unique(given.take_pool).tolist():
        takers = positions(given.take_task[given.take_pool == pool])
        takers = takers[takers >= 0]
        givers = np.unique(positions(given.release_task[given.release_pool == pool]))
        givers = givers[givers >= 0]
        last = np.searchsorted(end[givers], start[takers], "right") - 1
        owners.append(takers[last >= 0])
        causes.append(givers[last[last >= 0]])
    owner, cause = np.concatenate(owners), np.concatenate(causes)
    both = (owner >= 0) & (cause >= 0)
    return _Causes(owner[both], cause[both], len(task_id))


def critical_path(timeline: Timeline, dependencies: Dependencies | None = None) -> CriticalPath:
    """Walk back from the last end.

    Times of a simulation are exact: the cause ends in the very picosecond. A measured run reacts
    late, so there a lane neighbour or dependency counts when it ended within the usual gap of the
    nearest end. `dependencies` make the choice among tasks that end together sure; without them
    tasks of the same step, layer and micro-batch are preferred.
    """
    if not timeline.ran.any():
        return CriticalPath(np.empty(0, np.int64), np.empty(0, np.int64))
    walk = _Walk(timeline, dependencies)
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
