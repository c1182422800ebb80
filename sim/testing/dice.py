"""A clock that rolls dice: tasks take any time at all, and fail where they are told to.

It keeps the rules of an engine that matter to a scheduler's correctness (lanes in order, one task
at a time; dependencies; pools; releases; failures that spread; cancelling) and none of the physics,
so that a launch order that is right only at likely durations is found out.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from random import Random

from sim.drive import Deadlock
from sim.events import Arrived, Event, Failed, Finished, Profile, Request, Result, Started
from sim.plan import Plan
from sim.tasks import Cancel, Command, Task, Time

UNDECLARED = 1 << 30
"""Room in a pool that nobody declared: the battery's rule on pools tells of it."""


class Dice:
    """Engine whose durations are drawn from a seed.

    Attributes
    ----------
    times: (start, end, status) of each task that ended, by number.
    doomed: which tasks fail when they end.
    """

    def __init__(
        self,
        pools: Mapping[str, int],
        profile: Profile,
        arrivals: Sequence[Request],
        outcomes: Callable[[Task], Result],
        seed: int,
        doomed: Callable[[Task], bool] = lambda task: False,
    ) -> None:
        self._free = dict(pools)
        self._outcomes = outcomes
        self._rng = Random(seed)
        self._doomed = doomed
        self._arrivals = deque((r.arrival_ps, Arrived(r, r is arrivals[-1])) for r in arrivals)
        self._events: deque[Event] = deque([Started(profile)])
        self._now: Time = 0
        self._open: dict[int, Task] = {}
        self._waits: dict[int, int] = {}
        self._dependents: dict[int, list[int]] = {}
        self._lanes: dict[str, deque[int]] = {}
        self._laneless: list[int] = []
        self._busy: dict[str, int] = {}
        self._holds: dict[int, tuple[tuple[str, int], ...]] = {}
        self._running: list[tuple[Time, int]] = []
        self._started: dict[int, Time] = {}
        self.tasks: dict[int, Task] = {}
        self.times: dict[int, tuple[Time, Time, str]] = {}

    # Commands -----------------------------------------------------------------------------------

    def submit(self, commands: Sequence[Command]) -> None:
        for command in commands:
            if isinstance(command, Cancel):
                if command.task in self._open:
                    self._fail(self._open[command.task], "cancelled", command.reason)
                continue
            for task in command.tasks() if isinstance(command, Plan) else (command,):
                self._take_in(task)

    def _take_in(self, task: Task) -> None:
        self.tasks[task.number] = self._open[task.number] = task
        if task.lane is not None:
            self._lanes.setdefault(task.lane, deque()).append(task.number)
        else:
            self._laneless.append(task.number)
        for pool, _ in task.takes:
            self._free.setdefault(pool, UNDECLARED)
        waits = [d for d in task.deps if d in self._open]
        self._waits[task.number] = len(waits)
        for d in waits:
            self._dependents.setdefault(d, []).append(task.number)
        lost = [d for d in task.deps if d in self.times and self.times[d][2] != "done"]
        if lost:
            self._fail(task, "cancelled", f"dependency {lost[0]} {self.times[lost[0]][2]}")

    # What happens -------------------------------------------------------------------------------

    def wait(self) -> tuple[Time, Event] | None:
        while not self._events:
            self._start()
            if not self._running and not self._arrivals:
                if self._open:
                    raise Deadlock(self._story())
                return None
            self._next_instant()
        return self._now, self._events.popleft()

    def _start(self) -> None:
        lanes = list(self._lanes)
        self._rng.shuffle(lanes)
        for name in lanes:
            queue = self._lanes[name]
            while queue and queue[0] not in self._open:
                queue.popleft()
            if queue and name not in self._busy and self._may_start(self._open[queue[0]]):
                self._busy[name] = queue[0]
                self._run(self._open[queue.popleft()])
        self._laneless = [n for n in self._laneless if n in self._open]
        for number in [n for n in self._laneless if not self._waits[n]]:
            self._laneless.remove(number)
            self._run(self._open[number])

    def _may_start(self, task: Task) -> bool:
        return not self._waits[task.number] and all(self._free[pool] >= units for pool, units in task.takes)

    def _run(self, task: Task) -> None:
        for pool, units in task.takes:
            self._free[pool] -= units
        self._holds[task.number] = task.takes
        self._started[task.number] = self._now
        lasts = 0 if task.lane is None else self._rng.choice((0, 1, 10, 100, 1000)) * self._rng.randint(0, 9)
        heapq.heappush(self._running, (self._now + task.work.latency_ps + lasts, task.number))

    def _next_instant(self) -> None:
        soonest = self._running[0][0] if self._running else self._arrivals[0][0]
        if self._arrivals and self._arrivals[0][0] <= soonest:
            at, event = self._arrivals.popleft()
            self._now = max(self._now, at)
            self._events.append(event)
            return
        self._now, number = heapq.heappop(self._running)
        if number in self._open:
            self._end(self._open[number])

    def _end(self, task: Task) -> None:
        if self._doomed(task):
            self._fail(task, "failed", "the dice said so")
            return
        self._leave(task, "done")
        for n in self._dependents.pop(task.number, ()):
            self._waits[n] -= 1
        if task.notify:
            self._events.append(Finished(task.number, self._outcomes(task)))

    def _fail(self, task: Task, status: str, reason: str) -> None:
        """End a task as failed or cancelled, and all that waits for it, in number order."""
        spread = [(task.number, status, reason)]
        while spread:
            number, status, reason = heapq.heappop(spread)
            if number not in self._open:
                continue
            self._leave(self._open[number], status)
            self._give_back(number)
            self._events.append(Failed(number, reason))
            for n in self._dependents.pop(number, ()):
                heapq.heappush(spread, (n, "cancelled", f"dependency {number} {status}"))

    def _leave(self, task: Task, status: str) -> None:
        del self._open[task.number]
        self.times[task.number] = (self._started.get(task.number, self._now), self._now, status)
        if task.lane is not None and self._busy.get(task.lane) == task.number:
            del self._busy[task.lane]
        for n in task.releases:
            self._give_back(n)

    def _give_back(self, number: int) -> None:
        for pool, units in self._holds.pop(number, ()):
            self._free[pool] += units

    def _story(self) -> str:
        heads = [q[0] for q in self._lanes.values() if q]
        told = [f"{n} {self._open[n].op} on {self._open[n].lane}: {self._waits[n]} deps, takes {self._open[n].takes}" for n in heads]
        return f"{len(self._open)} tasks are open and nothing runs; heads: {'; '.join(told)}; free {self._free}"
