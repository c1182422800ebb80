"""Lives: what happens to tasks on SimPy's clock, from the lane to the end, and what it makes happen to others.

The engine decides *when* (`sim.engines.simpy_engine`); the rules of one task stand here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from heapq import heappop, heappush
from math import ceil
from typing import TYPE_CHECKING, Any

import simpy

from sim.drive import Deadlock
from sim.engines.book import ENDED, OPEN, RUNNING, STARTABLE, Book
from sim.engines.fluid import Fluid
from sim.engines.queues import Pools, Queue, queues
from sim.engines.run import CANCELLED, DONE, FAILED, SKIPPED, STATUSES, LaneLike
from sim.engines.slots import Rates
from sim.engines.story import Wait, deadlock
from sim.errors import UserError
from sim.events import Event, Failed, Finished, Result
from sim.tasks import Cancel, Task, Time

if TYPE_CHECKING:
    from sim.costs import Costs


class Lives:
    """All tasks of a run.

    Attributes
    ----------
    events: (row, event) that tasks raised and nobody has delivered yet. due: rows whose time is over.
    joins: heap of rows that end as soon as they are looked at. open: tasks that have not ended, those inside bodies apart.
    """

    def __init__(
        self,
        env: simpy.Environment,
        lanes: Sequence[LaneLike],
        pools: Mapping[str, int],
        costs: Costs,
        failures: Mapping[int, float],
        outcomes: Callable[[Task], Result] | None,
    ) -> None:
        rates = Rates(costs.capacity, sum(min(lane.servers, 64) for lane in lanes))
        self._env = env
        self.events: list[tuple[int, Event]] = []
        self.due: list[int] = []
        self.joins: list[int] = []
        self.open = 0
        self.fluid = Fluid(rates, env, self.due.extend)
        self.book = Book(lanes, pools, costs, rates)
        self._pools = Pools(pools, self.book)
        self._queues = queues(lanes, self.book, self._pools)
        self._failures = failures
        self._outcomes = outcomes
        self._dirty: set[int] = set()
        self._blocked: set[int] = set()
        self._entering: list[int] = []
        self._inside: dict[int, int] = {}
        """Tasks that have not ended of each body that has begun."""

    @property
    def now(self) -> Time:
        return int(self._env.now)

    def queue(self, rows: range) -> None:
        """New rows stand in their lanes; those whose dependencies are done may start. Rows of bodies wait for their task."""
        book = self.book
        self.open += len(rows)
        members: dict[int, list[int]] = {}
        for i, lane in zip(rows, book.lane[rows.start : rows.stop], strict=True):
            members.setdefault(lane, []).append(i)
        for lane, of_lane in members.items():
            self._queues[lane].add(of_lane)
        doomed = []
        for i, missing in zip(rows, book.missing[rows.start : rows.stop], strict=True):
            if missing == 0:
                self._make_startable(i)
            elif missing < 0:
                doomed.append((i, -1 - missing))
        self._doom(doomed)

    def _make_startable(self, i: int) -> None:
        book = self.book
        if book.state[i] != OPEN:
            return
        book.state[i] = STARTABLE
        lane = book.lane[i]
        cls = book.cls[i]
        if lane < 0 and not book.latency[cls] and not book.fluid[cls] and i not in book.takes:
            heappush(self.joins, i)
        else:
            self._queues[lane].ready(i, self.now)
            self._dirty.add(lane)

    def start(self, now: Time) -> None:
        """Start what can start; tasks without a lane first, then lanes in declared order."""
        for lane in sorted(self._dirty):
            queue = self._queues[lane]
            while (i := queue.take()) >= 0:
                self._begin(i, queue, now)
            if queue.blocked:
                self._blocked.add(lane)
        self._dirty.clear()

    def _begin(self, i: int, queue: Queue, now: Time) -> None:
        book = self.book
        book.state[i] = RUNNING
        book.start[i] = now
        queue.free -= 1
        self._pools.acquire(i)
        cls = book.cls[i]
        latency = book.latency[cls]
        if self._failures and not book.fluid[cls] and book.number[i] in self._failures:
            latency = ceil(latency * self._failures[book.number[i]])
        if latency:
            self._env.timeout(latency, i).callbacks.append(self._latency_over)
        elif book.fluid[cls]:
            self._entering.append(i)
        else:
            self.due.append(i)

    def _latency_over(self, event: Any) -> None:
        i = event.value
        if self.book.state[i] == RUNNING:
            (self._entering if self.book.fluid[self.book.cls[i]] else self.due).append(i)

    def end_due(self, now: Time) -> None:
        """End what is due, in number order, then joins, which may close more joins."""
        due = sorted(self.due)
        self.due.clear()  # the same list: the fluid side and scheduled callbacks append to it
        for i in due:
            self._conclude(i, now)
        while self.joins:
            i = heappop(self.joins)
            if self.book.state[i] == RUNNING:
                self._end(i, now, DONE)  # the last of its body has ended
            elif self.book.state[i] != ENDED:
                self.book.start[i] = now
                self._conclude(i, now)

    def _conclude(self, i: int, now: Time) -> None:
        """All that was to do is done: the task ends, or its body begins, or it fails if it was to."""
        fraction = self._failures.get(self.book.number[i])
        if fraction is not None:
            self._end(i, now, FAILED)
            self._fail(i, "failed", fraction)
        elif self.book.bodies.get(i):
            self._begin_body(i)
        else:
            self._end(i, now, SKIPPED if i in self.book.surplus else DONE)

    def _begin_body(self, i: int) -> None:
        """The own work of a task is over; its server and its holds stay taken."""
        self.fluid.leave(i)
        rows = self.book.bodies[i]
        self._inside[i] = len(rows)
        for j in rows:
            if self.book.missing[j] == 0:
                self._make_startable(j)

    def _end_inside(self, i: int) -> None:
        """A row of the body of task `i` has ended; behind the last of them the task ends too."""
        self._inside[i] -= 1
        if self._inside[i] == 0:
            heappush(self.joins, i)

    def _end(self, i: int, now: Time, status: int) -> None:
        """The task is over: its server and slot are free, what it releases goes back, dependents may start."""
        book = self.book
        if book.state[i] == RUNNING:
            lane = book.lane[i]
            self._queues[lane].free += 1
            self._dirty.add(lane)
            self.fluid.leave(i)
        else:
            book.start[i] = now
        book.state[i] = ENDED
        book.status[i] = status
        book.end[i] = now
        self.open -= i not in book.outer
        for holder in book.releases.get(i, ()):
            self._give_back(holder)
        if status not in (DONE, SKIPPED):
            self._give_back(i)
            for j in book.bodies.get(i, ()):
                if book.state[j] != ENDED:
                    self._end(j, now, CANCELLED)
            return
        if i in book.outer:
            self._end_inside(book.outer[i])
        if book.notify[i]:
            result = self._outcomes(book.task(i)) if self._outcomes else Result()
            self.events.append((i, Finished(book.number[i], result)))
        dependents = book.dependents[i]
        if dependents is not None:
            book.dependents[i] = None
            missing = book.missing
            for d in dependents:
                missing[d] -= 1
                if missing[d] == 0:
                    self._make_startable(d)

    def _give_back(self, i: int) -> None:
        if self._pools.give_back(i):
            self._dirty |= self._blocked
            self._blocked.clear()

    def _fail(self, i: int, reason: str, fraction: float) -> None:
        """Tell of a task that ended without being done, and give up its dependents."""
        self.events.append((i, Failed(self.book.number[i], reason, fraction)))
        self._doom([(d, i) for d in self.book.dependents[i] or ()])

    def _doom(self, waiting: Sequence[tuple[int, int]]) -> None:
        """Cancel rows because of a dependency, and theirs in turn, in number order: pairs (row, dependency)."""
        book = self.book
        heap = sorted(waiting)
        while heap:
            i, cause = heappop(heap)
            if book.state[i] == ENDED:
                continue
            self._end(i, self.now, CANCELLED)
            reason = f"dependency {book.number[cause]} {STATUSES[book.status[cause]]}"
            self.events.append((i, Failed(book.number[i], reason)))
            for d in book.dependents[i] or ():
                heappush(heap, (d, i))

    def cancel(self, command: Cancel) -> None:
        i = self.book.index(command.task)
        if i < 0:
            raise UserError(f"cancel of task {command.task}: no such task was submitted; the number of a submitted one would be right")
        if self.book.state[i] == ENDED:
            return
        fraction = self._fraction_done(i)
        self._end(i, self.now, CANCELLED)
        self._fail(i, command.reason, fraction)

    def _fraction_done(self, i: int) -> float:
        """Part of the fluid phase that is done; of the latency where there is no other phase; once a body has begun, of its tasks."""
        book = self.book
        if book.state[i] != RUNNING:
            return 0.0
        cls = book.cls[i]
        left = self.fluid.left(i)
        if i in self._inside:
            return 1.0 - self._inside[i] / len(book.bodies[i])
        if left is not None:
            return self._failures.get(book.number[i], 1.0) - left
        if book.fluid[cls] or not book.latency[cls]:
            return 0.0
        return (self.now - book.start[i]) / book.latency[cls]

    def settle(self) -> None:
        """End of the instant: those whose latency is over begin their fluid phase, speeds are settled."""
        if not self._entering:
            self.fluid.settle((), (), ())
            return
        book = self.book
        rows = [i for i in self._entering if book.state[i] == RUNNING]
        self._entering.clear()
        self.fluid.settle(rows, [book.cls[i] for i in rows], [self._failures.get(book.number[i], 1.0) for i in rows])

    def stuck(self) -> Deadlock:
        """The story of the tasks that nothing can start: the first of each lane, and what it waits for."""
        book, waits = self.book, []
        seen: set[int] = set()
        for i in range(len(book)):
            if i in book.outer or book.state[i] == ENDED or (book.state[i] != RUNNING and book.lane[i] in seen):
                continue
            task = book.task(i)
            running = book.state[i] == RUNNING
            if not running:
                seen.add(book.lane[i])
            deps = tuple(d for d in task.deps if book.state[book.index(d)] != ENDED)
            waits.append(Wait(task.number, task.op, task.lane, running, deps, task.takes))
        return deadlock(self.open, waits, dict(zip(self._pools.names, self._pools.room, strict=True)), self._pools.holders())
