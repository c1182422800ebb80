"""The best of all schedules of a few tasks, by trying them: what a lower bound is measured against.

A schedule decides, whenever a task ends, which of the tasks that may start do; the rest wait for
another end. Exact fractions throughout, rates by the oracle of the engines' tests.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from itertools import combinations

from sim.tasks import Task
from tests.engine_support.fakes import Demand, FakeCosts, Lane
from tests.engine_support.oracle import PS, solo_s, speeds

Running = tuple[tuple[int, Fraction, Fraction], ...]
"""(task, latency left in s, share of the fluid phase left) of each task that runs."""


def with_hazards(tasks: Sequence[Task]) -> tuple[Task, ...]:
    """The same tasks with a dependency for each earlier one that touches a buffer of theirs, where one of the two writes."""
    found = []
    for i, t in enumerate(tasks):
        mine = {*t.reads, *t.writes}
        clash = [e.number for e in tasks[:i] if mine & set(e.writes) or set(t.writes) & set(e.reads)]
        found.append(replace(t, deps=tuple(sorted({*t.deps, *clash})), reads=(), writes=()))
    return tuple(found)


class _Search:
    def __init__(self, tasks: Sequence[Task], costs: FakeCosts, lanes: Sequence[Lane]) -> None:
        self.tasks = with_hazards(tasks)
        self.index = {t.number: i for i, t in enumerate(tasks)}
        self.servers = {lane.name: lane.servers for lane in lanes}
        self.capacity = costs.capacity.tolist()
        rows = [costs.row(t.work) for t in tasks]
        self.latency = [Fraction(latency, PS) for latency, _ in rows]
        self.demands: list[Sequence[Demand]] = [demands if t.lane is not None else () for t, (_, demands) in zip(tasks, rows, strict=True)]
        self.solo = [solo_s(d, self.capacity) or Fraction(0) for d in self.demands]
        self.tail = [Fraction(0)] * len(tasks)
        for i in range(len(tasks) - 1, -1, -1):
            for d in self.tasks[i].deps:
                j = self.index[d]
                self.tail[j] = max(self.tail[j], self.latency[i] + self.solo[i] + self.tail[i])
        self.best: Fraction | None = None

    def go(self, now: Fraction, done: frozenset[int], running: Running) -> None:
        if len(done) == len(self.tasks):
            self.best = now if self.best is None else min(self.best, now)
            return
        for started in self._choices(done, running):
            if not running and not started:
                continue
            self._advance(now, done, (*running, *((i, self.latency[i], Fraction(1)) for i in started)))

    def _choices(self, done: frozenset[int], running: Running) -> Iterator[tuple[int, ...]]:
        at_work = {i for i, _, _ in running}
        may = [i for i, t in enumerate(self.tasks) if i not in done and i not in at_work and all(self.index[d] in done for d in t.deps)]
        for size in range(len(may), -1, -1):
            for chosen in combinations(may, size):
                if self._fits([*at_work, *chosen]):
                    yield chosen

    def _fits(self, together: Sequence[int]) -> bool:
        used: dict[str | None, int] = {}
        for i in together:
            used[self.tasks[i].lane] = used.get(self.tasks[i].lane, 0) + 1
        return all(lane is None or count <= self.servers[lane] for lane, count in used.items())

    def _advance(self, now: Fraction, done: frozenset[int], running: Running) -> None:
        """To the next end of a task."""
        while True:
            fluid = [k for k, (i, latency, _) in enumerate(running) if latency == 0 and self.solo[i] > 0]
            rate = dict(zip(fluid, speeds([self.demands[running[k][0]] for k in fluid], self.capacity), strict=True))
            left = [running[k][2] * self.solo[running[k][0]] / rate[k] if k in rate else running[k][1] for k in range(len(running))]
            soonest = (now + latency + part * self.solo[i] + self.tail[i] for i, latency, part in running)
            if self.best is not None and max(soonest) >= self.best:
                return
            span = min(left)
            now += span
            ended: set[int] = set()
            kept = []
            for k, (i, latency, part) in enumerate(running):
                if k in rate:
                    part -= rate[k] * span / self.solo[i]
                else:
                    latency -= span
                if latency == 0 and (part <= 0 or self.solo[i] == 0):
                    ended.add(i)
                else:
                    kept.append((i, latency, part))
            running = tuple(kept)
            if ended:
                self.go(now, done | ended, running)
                return


def shortest_s(tasks: Sequence[Task], costs: FakeCosts, lanes: Sequence[Lane]) -> Fraction:
    """Makespan in seconds of the best schedule. Exponential in the number of tasks: up to seven or so."""
    search = _Search(tasks, costs, lanes)
    search.go(Fraction(0), frozenset(), ())
    assert search.best is not None
    return search.best


def servers_of(lanes: Sequence[Lane]) -> Mapping[str, int]:
    return {lane.name: lane.servers for lane in lanes}
