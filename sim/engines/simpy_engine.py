"""The reference engine: SimPy's environment is the clock, and everything that can happen happens here.

An instant is all that is due in one tick, in rounds: end tasks, release holds, close joins, deliver
events and take in what they submit; when a round brings nothing new, start tasks, lanes in declared
order, then settle the rates. A task of no duration ends in the next round of the same instant.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from heapq import heappop, heappush
from math import ceil, inf
from typing import TYPE_CHECKING, Any

import simpy

from sim.drive import Deadlock
from sim.engines.book import ENDED, OPEN, RUNNING, STARTABLE, Book
from sim.engines.fluid import Fluid
from sim.engines.intake import Change, change_columns, check_failures, check_lanes
from sim.engines.queues import Pools, queues
from sim.engines.run import CANCELLED, DONE, FAILED, STATUSES, LaneLike, Run
from sim.engines.slots import Rates
from sim.engines.story import Wait, deadlock
from sim.errors import UserError
from sim.events import Arrived, Changed, Event, Failed, Finished, Profile, Request, Result, Started
from sim.plan import Plan
from sim.tasks import Cancel, Command, Task, Time

if TYPE_CHECKING:
    from sim.costs import Costs


class SimPyEngine:
    """An Engine on simulated time that runs Tasks, Plans and Cancels, and reacts.

    Parameters
    ----------
    lanes, pools: the machine's lanes in declared order; capacity of every pool.
    costs: prices tasks.
    profile: handed out in `Started` at time 0; None: no such event.
    arrivals: requests, each delivered at its `arrival_ps`.
    changes: (time in ps, resource, capacity from then on).
    failures: (task number, fraction): the task fails when that part of it is done.
    outcomes: gives the result of a task that ends with notify set.

    Among events of one round those scheduled here come first (changes, then arrivals, as given),
    then those of tasks, by number.
    """

    def __init__(
        self,
        lanes: Sequence[LaneLike],
        pools: Mapping[str, int],
        costs: Costs,
        *,
        profile: Profile | None = None,
        arrivals: Sequence[Request] = (),
        changes: Sequence[Change] = (),
        failures: Sequence[tuple[int, float]] = (),
        outcomes: Callable[[Task], Result] | None = None,
    ) -> None:
        self.lanes = tuple(lane.name for lane in lanes)
        check_lanes(self.lanes, pools)
        self._env = simpy.Environment(initial_time=0)
        self._due: list[int] = []
        rates = Rates(costs.capacity, sum(min(lane.servers, 64) for lane in lanes))
        self._fluid = Fluid(rates, self._env, self._due.extend)
        self._book = Book(self.lanes, pools, costs, rates)
        self._pools = Pools(pools, self._book)
        self._queues = queues(lanes, self._book, self._pools)
        self._dirty: set[int] = set()
        self._blocked: set[int] = set()
        self._resources = tuple(costs.resources)
        self._outcomes = outcomes
        self._failures = check_failures(failures)
        self._external: list[Event] = [] if profile is None else [Started(profile)]
        self._events: list[tuple[int, Event]] = []
        self._joins: list[int] = []
        self._entering: list[int] = []
        self._open = 0
        self._schedule_external(changes, arrivals)
        self._happenings = self._run()

    @property
    def now(self) -> Time:
        return int(self._env.now)

    def submit(self, commands: Sequence[Command]) -> None:
        """Take in commands at the present instant. Raises UserError where one is not possible."""
        for command in commands:
            if isinstance(command, Plan):
                self._queue(self._book.add_plan(command))
            elif isinstance(command, Task):
                i = self._book.add_task(command)
                self._queue(range(i, i + 1))
            else:
                self._cancel(command)

    def wait(self) -> tuple[Time, Event] | None:
        return next(self._happenings, None)

    @property
    def run(self) -> Run:
        """Times of all tasks so far."""
        return Run(sources=tuple(self._book.sources), lanes=self.lanes, **self._book.columns())

    # --- the clock ---

    def _schedule_external(self, changes: Sequence[Change], arrivals: Sequence[Request]) -> None:
        for time_ps, k, capacity in zip(*change_columns(changes, self._resources), strict=True):
            self._at(int(time_ps), self._external.append, Changed(self._resources[k], float(capacity)))
        last = max(range(len(arrivals)), key=lambda j: (arrivals[j].arrival_ps, j), default=-1)
        for j, request in enumerate(arrivals):
            self._at(request.arrival_ps, self._external.append, Arrived(request, last=j == last))

    def _at(self, delay: int, act: Callable[[Any], None], value: Any) -> None:
        self._env.timeout(delay, value).callbacks.append(lambda event: act(event.value))

    def _advance(self) -> bool:
        """Let SimPy go on to the next tick in which anything is due; False: there is none."""
        env = self._env
        now = env.peek()
        if now == inf:
            return False
        while env.peek() == now:
            env.step()
        return True

    def _run(self) -> Iterator[tuple[Time, Event]]:
        while True:
            now = self.now
            while self._due or self._joins or self._events or self._external:
                self._end_due(now)
                for event in self._round():
                    yield now, event
            self._start(now)
            self._settle()
            if not self._due and not self._advance():
                break
        if self._open:
            raise self._stuck()

    def _round(self) -> list[Event]:
        """Events of this round in order; changes of capacity take effect as they are noted."""
        external = list(self._external)
        self._external.clear()  # the same list: scheduled callbacks append to it
        for event in external:
            if isinstance(event, Changed):
                self._fluid.set_capacity(self._resources.index(event.resource), event.capacity)
        events, self._events = self._events, []
        return external + [event for _, event in sorted(events, key=lambda pair: pair[0])]

    # --- a task's life ---

    def _queue(self, rows: range) -> None:
        """New rows stand in their lanes; those whose dependencies are done may start."""
        book = self._book
        self._open += len(rows)
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
        book = self._book
        if book.state[i] != OPEN:
            return
        book.state[i] = STARTABLE
        lane = book.lane[i]
        cls = book.cls[i]
        if lane < 0 and not book.latency[cls] and not book.fluid[cls] and i not in book.takes:
            heappush(self._joins, i)
        else:
            self._queues[lane].ready(i, self.now)
            self._dirty.add(lane)

    def _start(self, now: Time) -> None:
        """Start what can start; tasks without a lane first, then lanes in declared order."""
        for lane in sorted(self._dirty):
            queue = self._queues[lane]
            while (i := queue.take()) >= 0:
                self._begin(i, queue, now)
            if queue.blocked:
                self._blocked.add(lane)
        self._dirty.clear()

    def _begin(self, i: int, queue: Any, now: Time) -> None:
        book = self._book
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
            self._due.append(i)

    def _latency_over(self, event: Any) -> None:
        i = event.value
        if self._book.state[i] == RUNNING:
            (self._entering if self._book.fluid[self._book.cls[i]] else self._due).append(i)

    def _end_due(self, now: Time) -> None:
        """End what is due, in number order, then joins, which may close more joins."""
        due = sorted(self._due)
        self._due.clear()  # the same list: the fluid side and scheduled callbacks append to it
        for i in due:
            self._conclude(i, now)
        while self._joins:
            i = heappop(self._joins)
            if self._book.state[i] != ENDED:
                self._book.start[i] = now
                self._conclude(i, now)

    def _conclude(self, i: int, now: Time) -> None:
        """All that was to do is done: the task ends, or fails if it was to."""
        fraction = self._failures.get(self._book.number[i])
        if fraction is None:
            self._end(i, now, DONE)
        else:
            self._end(i, now, FAILED)
            self._fail(i, "failed", fraction)

    def _end(self, i: int, now: Time, status: int) -> None:
        """The task is over: its server and slot are free, what it releases goes back, dependents may start."""
        book = self._book
        if book.state[i] == RUNNING:
            lane = book.lane[i]
            self._queues[lane].free += 1
            self._dirty.add(lane)
            self._fluid.leave(i)
        else:
            book.start[i] = now
        book.state[i] = ENDED
        book.status[i] = status
        book.end[i] = now
        self._open -= 1
        for holder in book.releases.get(i, ()):
            self._give_back(holder)
        if status != DONE:
            self._give_back(i)
            return
        if book.notify[i]:
            result = self._outcomes(book.task(i)) if self._outcomes else Result()
            self._events.append((i, Finished(book.number[i], result)))
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

    # --- failures ---

    def _fail(self, i: int, reason: str, fraction: float) -> None:
        """Tell of a task that ended without being done, and give up its dependents."""
        self._events.append((i, Failed(self._book.number[i], reason, fraction)))
        self._doom([(d, i) for d in self._book.dependents[i] or ()])

    def _doom(self, waiting: Sequence[tuple[int, int]]) -> None:
        """Cancel rows because of a dependency, and theirs in turn, in number order: pairs (row, dependency)."""
        book = self._book
        heap = sorted(waiting)
        while heap:
            i, cause = heappop(heap)
            if book.state[i] == ENDED:
                continue
            self._end(i, self.now, CANCELLED)
            reason = f"dependency {book.number[cause]} {STATUSES[book.status[cause]]}"
            self._events.append((i, Failed(book.number[i], reason)))
            for d in book.dependents[i] or ():
                heappush(heap, (d, i))

    def _cancel(self, command: Cancel) -> None:
        i = self._book.index(command.task)
        if i < 0:
            raise UserError(f"cancel of task {command.task}: no such task was submitted; the number of a submitted one would be right")
        if self._book.state[i] == ENDED:
            return
        fraction = self._fraction_done(i)
        self._end(i, self.now, CANCELLED)
        self._fail(i, command.reason, fraction)

    def _fraction_done(self, i: int) -> float:
        """Part of the fluid phase that is done; of the latency where there is no other phase."""
        book = self._book
        if book.state[i] != RUNNING:
            return 0.0
        cls = book.cls[i]
        left = self._fluid.left(i)
        if left is not None:
            return self._failures.get(book.number[i], 1.0) - left
        if book.fluid[cls] or not book.latency[cls]:
            return 0.0
        return (self.now - book.start[i]) / book.latency[cls]

    def _settle(self) -> None:
        """End of the instant: those whose latency is over begin their fluid phase, speeds are settled."""
        book = self._book
        rows = [i for i in self._entering if book.state[i] == RUNNING]
        self._entering.clear()
        self._fluid.settle(rows, [book.cls[i] for i in rows], [self._failures.get(book.number[i], 1.0) for i in rows])

    def _stuck(self) -> Deadlock:
        """The story of the tasks that nothing can start: the first of each lane, and what it waits for."""
        book, waits = self._book, []
        seen: set[int] = set()
        for i in range(len(book)):
            if book.state[i] == ENDED or (book.state[i] != RUNNING and book.lane[i] in seen):
                continue
            task = book.task(i)
            running = book.state[i] == RUNNING
            if not running:
                seen.add(book.lane[i])
            deps = tuple(d for d in task.deps if book.state[book.index(d)] != ENDED)
            waits.append(Wait(task.number, task.op, task.lane, running, deps, task.takes))
        return deadlock(self._open, waits, dict(zip(self._pools.names, self._pools.room, strict=True)), self._pools.holders())
