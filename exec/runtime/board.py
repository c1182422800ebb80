"""The board: which tasks are open, what each waits for, who may start.

It is the part of the runtime that decides; it has no thread and no clock. Its caller holds a lock,
tells it what happened and when, and runs what `start` hands out.
"""

from __future__ import annotations

import heapq
from bisect import bisect_right
from collections.abc import Mapping, Sequence

from exec.runtime.errors import describe
from exec.runtime.hazards import BufferGuard
from exec.runtime.lanes import LaneQueue
from exec.runtime.pools import Pools
from exec.runtime.records import ENDED, OPEN, RUNNING, Record
from sim.engines.run import CANCELLED, DONE, FAILED
from sim.errors import UserError, unknown
from sim.events import Event, Failed, Finished, Result
from sim.machines.schema import Lane
from sim.tasks import Time

_NAMES = {CANCELLED: "cancelled", FAILED: "failed"}

Ended = tuple[int, str | None, Time, Time, int]
"""(number, lane, start_ps, end_ps, status) of a task."""


class Board:
    """Open tasks of one run.

    events: what has happened and was not taken yet, as (time, submission number, event).
    ended: (number, lane or None, start_ps, end_ps, status) in order of their end; a task that never
        started has both times at the end.
    running: tasks handed out and not ended, timers included. open: tasks not ended.
    """

    def __init__(self, lanes: Sequence[Lane], pools: Mapping[str, int]) -> None:
        self.lanes = {lane.name: LaneQueue(lane) for lane in lanes}
        self.pools = Pools(pools)
        self.guard = BufferGuard()
        self.events: list[tuple[Time, int, Event]] = []
        self.ended: list[Ended] = []
        self.timers: list[tuple[Time, int, Record]] = []
        self.running = 0
        self.open = 0
        self._known: dict[int, Record] = {}
        """Open tasks."""
        self._lost: dict[int, int] = {}
        """Status of the tasks that failed or were cancelled; every other one that has ended is done."""
        self._runs: list[tuple[int, int]] = []
        """(first, last) of each run of successive numbers submitted: what a long service remembers of its past."""
        self._laneless: list[tuple[int, Record]] = []
        """Joins and timers whose dependencies are done: a heap by number."""
        self._dying: dict[int, Record] = {}
        """Cancelled tasks whose ops have not let go of their buffers yet."""
        self._last = -1
        self._latest: Time = 0
        """Latest end so far."""

    # What the scheduler commands ----------------------------------------------------------------

    def submit(self, tasks: Sequence[Record], now: Time) -> None:
        """Take tasks in. Raises UserError for a number that does not ascend, an unknown lane or
        dependency, or a take that its pool can never grant."""
        for task in tasks:
            if task.number <= self._last:
                raise UserError(f"task {task.number}: was submitted after task {self._last}; numbers must ascend")
            self._note(task.number)
            if task.takes:
                task.takes = self.pools.checked(task.number, task.takes)
            self._known[task.number] = task
            self.open += 1
            self._link(task, now)

    def _note(self, number: int) -> None:
        """This number is submitted, and no lower one will be."""
        if self._runs and number == self._last + 1:
            self._runs[-1] = (self._runs[-1][0], number)
        else:
            self._runs.append((number, number))
        self._last = number

    def _was_submitted(self, number: int) -> bool:
        k = bisect_right(self._runs, number, key=lambda run: run[0]) - 1
        return k >= 0 and number <= self._runs[k][1]

    def _link(self, task: Record, now: Time) -> None:
        if task.lane is not None:
            if task.lane not in self.lanes:
                raise unknown(f"task {task.number} ({task.work.op}): lane", task.lane, self.lanes)
            self.lanes[task.lane].submitted(task)
        lost = None
        for dep in task.deps:
            other = self._known.get(dep)
            if other is not None:
                if other is task:
                    raise _no_such_dependency(task, dep)
                other.dependents.append(task)
                task.waiting += 1
            elif dep in self._lost:
                lost = lost or (dep, self._lost[dep])
            elif not self._was_submitted(dep):
                raise _no_such_dependency(task, dep)
        if lost is not None:
            self._give_up(task, f"dependency {lost[0]} {_NAMES[lost[1]]}", now)
        elif task.waiting == 0:
            self._became_ready(task, now)

    def cancel(self, number: int, reason: str, now: Time) -> Record | None:
        """Give a task up. A task that runs on a lane is returned: it ends when its op has let go; who
        needs its buffers waits for that."""
        task = self._known.get(number)
        if task is None:
            if not self._was_submitted(number):
                raise UserError(f"Cancel({number}): no such task was submitted")
            return None
        if task.state == RUNNING and task.lane is not None:
            task.cancelled = reason
            self._dying[number] = task
            return task
        self.fail(task, reason, _elapsed(task, now), CANCELLED, now)
        return None

    # What has happened --------------------------------------------------------------------------

    def done(self, task: Record, result: Result | None, now: Time) -> None:
        """A task ended well: its holds and dependents move on."""
        self._end(task, DONE, now)
        for other in task.dependents:
            other.waiting -= 1
            if other.waiting == 0 and other.state == OPEN:
                self._became_ready(other, now)
        if task.notify:
            self.events.append((now, task.number, Finished(task.number, result or Result())))

    def fail(self, task: Record, reason: str, fraction_done: float, status: int, now: Time) -> None:
        """A task ended as failed or cancelled: its own holds roll back, and its dependents, none of
        which has started, are given up in number order."""
        self._end(task, status, now)
        self.pools.release(task.number)
        self.events.append((now, task.number, Failed(task.number, reason, fraction_done)))
        heap = [(other.number, task.number, status, other) for other in task.dependents]
        heapq.heapify(heap)
        while heap:
            _, cause, how, other = heapq.heappop(heap)
            if other.state != ENDED:
                self._give_up(other, f"dependency {cause} {_NAMES[how]}", now)
                for further in other.dependents:
                    heapq.heappush(heap, (further.number, other.number, CANCELLED, further))

    def due_timers(self, now: Time) -> None:
        """End the timers whose time has come, each at the instant it was due."""
        while self.timers and self.timers[0][0] <= now:
            due, _, task = heapq.heappop(self.timers)
            if task.state == RUNNING:
                self.done(task, None, due)

    # Who may start ------------------------------------------------------------------------------

    def start(self, now: Time) -> list[Record]:
        """Close joins, arm timers, and start what may start: lanes in declared order. Nothing starts
        before the latest end that the board was told of, in whichever order lanes came to tell."""
        now = max(now, self._latest)
        self._start_laneless(now)
        started = []
        for queue in self.lanes.values():
            while queue.free and (task := queue.pop(self._has_room)) is not None:
                queue.free -= 1
                self._start(task, now)
                started.append(task)
        return started

    def _has_room(self, task: Record) -> bool:
        """Whether its pools have room, and no cancelled op still touches its buffers: on the simulated
        clock that would have ended at once, so no plan waits for it."""
        if self._dying and not self.guard.free_of(task, self._dying.values()):
            return False
        return not task.takes or self.pools.has_room(task.takes)

    def _start_laneless(self, now: Time) -> None:
        blocked = []
        while self._laneless:
            number, task = heapq.heappop(self._laneless)
            if task.state != OPEN:
                continue
            if not self._has_room(task):
                blocked.append((number, task))
                continue
            self._start(task, now)
            if task.work.latency_ps:
                heapq.heappush(self.timers, (now + task.work.latency_ps, number, task))
                continue
            self.done(task, None, now)
            while blocked:  # what the join released may be what they wait for
                heapq.heappush(self._laneless, blocked.pop())
        for entry in blocked:
            heapq.heappush(self._laneless, entry)

    def _start(self, task: Record, now: Time) -> None:
        self.guard.enter(task)
        if task.takes:
            self.pools.acquire(task.number, task.takes)
        task.state = RUNNING
        task.start_ps = now
        self.running += 1

    def _became_ready(self, task: Record, now: Time) -> None:
        task.ready_ps = now
        if task.lane is None:
            heapq.heappush(self._laneless, (task.number, task))
        else:
            self.lanes[task.lane].became_ready(task)

    def _end(self, task: Record, status: int, now: Time) -> None:
        self._latest = max(self._latest, now)
        if task.state == RUNNING:
            self.running -= 1
            self.guard.leave(task)
            self._dying.pop(task.number, None)
            if task.lane is not None:
                self.lanes[task.lane].free += 1
        self.ended.append((task.number, task.lane, task.start_ps if task.state == RUNNING else now, now, status))
        task.state = ENDED
        del self._known[task.number]
        if status != DONE:
            self._lost[task.number] = status
        self.open -= 1
        for number in task.releases:
            self.pools.release(number, task.number)

    def _give_up(self, task: Record, reason: str, now: Time) -> None:
        self._end(task, CANCELLED, now)
        self.events.append((now, task.number, Failed(task.number, reason)))

    # What may be forgotten ----------------------------------------------------------------------

    @property
    def oldest(self) -> int:
        """Every task below this number has ended."""
        return min(self._known, default=self._last + 1)

    # Why nothing can happen ---------------------------------------------------------------------

    def story(self) -> str:
        """What the blocked heads wait for, one clause a task."""
        heads = [task for queue in self.lanes.values() for task in queue.waiting()]
        heads += [task for _, task in sorted(self._laneless, key=lambda entry: entry[0])]
        if not heads:
            heads = list(self._known.values())[:8]
        return "; ".join(f"{describe(task)} on {_where(task)} waits for {self._waits(task)}" for task in heads)

    def _waits(self, task: Record) -> str:
        reasons = [f"task {dep} ({other.work.op})" for dep in task.deps if (other := self._known.get(dep)) is not None]
        for pool, units in task.takes:
            if self.pools.free[pool] < units:
                holders = ", ".join(f"task {n}" for n in self.pools.holders(pool))
                reasons.append(f"{units} of pool {pool!r} ({self.pools.free[pool]} of {self.pools.capacity[pool]} free, held by {holders})")
        return " and ".join(reasons) or "a free server"


def _no_such_dependency(task: Record, dep: int) -> UserError:
    who = f"task {task.number} ({task.work.op})"
    return UserError(f"{who}: depends on task {dep}, which was not submitted before it; deps name earlier tasks")


def _where(task: Record) -> str:
    return f"lane {task.lane!r}" if task.lane is not None else "no lane"


def _elapsed(task: Record, now: Time) -> float:
    """Share of a running timer that has passed."""
    if task.state != RUNNING or not task.work.latency_ps:
        return 0.0
    return min(1.0, (now - task.start_ps) / task.work.latency_ps)
