"""A slow oracle of the engines, written from docs/decisions/0002-sharing-rule.md and the semantics of
`sim.tasks`, not from the engines: exact fractions, one task at a time, everything searched anew at
every step. No anchors, no running sums, no heaps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from math import ceil, floor, inf

from sim.tasks import Task
from tests.engine_support.fakes import Demand, FakeCosts, Lane

PS = 10**12
TOLERANCE = Fraction(1, 10**9)


def solo_s(demands: Sequence[Demand], capacity: Sequence[float]) -> Fraction | None:
    """Seconds that a task needs alone; None: for ever."""
    longest = Fraction(0)
    for d in demands:
        if d.amount > 0:
            if capacity[d.resource] == 0:
                return None
            rate = Fraction(capacity[d.resource]) if d.cap == inf else min(Fraction(capacity[d.resource]), Fraction(d.cap))
            longest = max(longest, Fraction(d.amount) / rate)
    return longest


def speeds(tasks: Sequence[Sequence[Demand]], capacity: Sequence[float]) -> list[Fraction]:
    """Speed of each running task relative to running alone; 0 where a capacity of 0 stalls it."""
    share: list[dict[int, Fraction]] = []
    weight: list[dict[int, Fraction]] = []
    for demands in tasks:
        alone = solo_s(demands, capacity)
        used = [d for d in demands if d.amount > 0] if alone else []
        share.append({d.resource: Fraction(d.amount) / (alone * Fraction(capacity[d.resource])) for d in used} if alone else {})
        weight.append({d.resource: Fraction(d.weight) for d in used})
    speed = [Fraction(0) if solo_s(demands, capacity) is None else Fraction(1) for demands in tasks]
    cut: set[int] = set()
    nothing = [Fraction(0)] * len(tasks)
    filled = _fill_all(share, weight, nothing, speed, range(len(capacity)), cut)
    while filled and (asking := [i for i in sorted(cut) if speed[i] < 1 and not any(_full(k, share, speed) for k in share[i])]):
        base = list(speed)
        for i in asking:
            speed[i] = Fraction(1)
        _fill_all(share, weight, base, speed, range(len(capacity)), cut)
    return speed


def _sum(k: int, share: Sequence[Mapping[int, Fraction]], speed: Sequence[Fraction]) -> Fraction:
    return sum((s * u[k] for s, u in zip(speed, share, strict=True) if k in u), Fraction(0))


def _full(k: int, share: Sequence[Mapping[int, Fraction]], speed: Sequence[Fraction]) -> bool:
    return 1 - _sum(k, share, speed) <= Fraction(1, 2**30)


def _fill_all(
    share: Sequence[Mapping[int, Fraction]],
    weight: Sequence[Mapping[int, Fraction]],
    base: Sequence[Fraction],
    speed: list[Fraction],
    resources: Sequence[int],
    cut: set[int],
) -> bool:
    """Settle oversubscribed resources, tightest first, by lowering `speed` (never under `base`)."""
    filled = False
    while True:
        ratios = {}
        for k in resources:
            wanted, had = _sum(k, share, speed), _sum(k, share, base)
            if wanted > 1 + Fraction(1, 2**38):
                ratios[k] = floor((wanted - had) / (1 - had) * 2**20 + Fraction(1, 2))
        if not ratios:
            return filled
        filled = True
        k = max(ratios, key=lambda k: (ratios[k], -k))
        users = [i for i in range(len(share)) if k in share[i] and speed[i] > base[i]]
        want = {i: (speed[i] - base[i]) * share[i][k] for i in users}
        level = _level([(want[i], weight[i][k]) for i in users], 1 - _sum(k, share, base))
        for i in users:
            if want[i] > weight[i][k] * level:
                speed[i] = base[i] + weight[i][k] * level / share[i][k]
                cut.add(i)


def _level(wants: Sequence[tuple[Fraction, Fraction]], room: Fraction) -> Fraction:
    """Level L with sum of min(want, weight L) = room: serve the lightest want per weight first."""
    left, weights = room, sum((w for _, w in wants), Fraction(0))
    for want, w in sorted(wants, key=lambda pair: pair[0] / pair[1]):
        if want / w > left / weights:
            break
        left -= want
        weights -= w
    return left / weights


@dataclass
class Life:
    """What the oracle knows of a task."""

    task: Task
    demands: Sequence[Demand]
    latency: int
    startable_at: int | None = None
    start: int | None = None
    fluid_at: int | None = None
    left: Fraction = Fraction(1)
    end: int | None = None
    holds: bool = False


@dataclass
class Oracle:
    """Runs tasks known at time 0. `ends`, if given, are another engine's: where one lies within
    1e-9 of the exact end (and the picosecond of rounding up) it is used, so that rounding never
    decides which of two tasks comes first. A wrong end is not used, and shows."""

    lanes: Sequence[Lane]
    pools: Mapping[str, int]
    costs: FakeCosts
    changes: Sequence[tuple[int, str, float]] = ()
    ends: Mapping[int, int] = field(default_factory=dict)

    def run(self, tasks: Sequence[Task]) -> dict[int, tuple[int, int]]:
        """(start, end) in ps of every task that ended."""
        self.lives = {t.number: Life(t, *reversed(self.costs.row(t.work))) for t in tasks}
        self.room = dict(self.pools)
        self.capacity = list(self.costs.capacity.tolist())
        self.now = 0
        todo = sorted(self.changes, key=lambda c: c[0])
        while True:
            while self._end_due() or self._close_joins():
                pass
            while todo and todo[0][0] <= self.now:
                _, resource, capacity = todo.pop(0)
                self.capacity[self.costs.resources.index(resource)] = capacity
            self._start_all()
            upcoming = [self._due(life) for life in self.lives.values() if life.start is not None and life.end is None]
            upcoming = [t for t in upcoming if t is not None] + [c[0] for c in todo[:1]]
            if not upcoming:
                return {n: (life.start, life.end) for n, life in self.lives.items() if life.start is not None and life.end is not None}
            self._advance(min(upcoming))

    def _running_fluid(self) -> list[Life]:
        return [v for v in self.lives.values() if v.fluid_at is not None and v.end is None]

    def _is_fluid(self, life: Life) -> bool:
        return any(d.amount > 0 for d in life.demands)

    def _is_join(self, life: Life) -> bool:
        return life.task.lane is None and life.latency == 0 and not self._is_fluid(life) and not life.task.takes


    def _due(self, life: Life) -> int | None:
        """When something happens to a running task: its latency is over, or it ends."""
        if life.fluid_at is None:
            return life.start + life.latency
        rate = self._rates[id(life)]
        if rate == 0:
            return None if life.left > 0 else self.now
        exact = self.now + life.left / rate
        hint = self.ends.get(life.task.number)
        if hint is not None and hint >= self.now and abs(hint - exact) <= 1 + TOLERANCE * (exact - life.fluid_at):
            return hint
        return max(self.now, ceil(exact))

    def _advance(self, to: int) -> None:
        for life in self._running_fluid():
            life.left = max(Fraction(0), life.left - (to - self.now) * self._rates[id(life)])
        self.now = to

    def _end_due(self) -> bool:
        ended = False
        for life in list(self.lives.values()):
            if life.start is None or life.end is not None:
                continue
            if life.fluid_at is not None and self._ended(life):
                self._end(life)
                ended = True
            elif life.fluid_at is None and life.start + life.latency <= self.now:
                if self._is_fluid(life):
                    life.fluid_at = self.now
                else:
                    self._end(life)
                    ended = True
        return ended

    def _ended(self, life: Life) -> bool:
        return self._known_due.get(life.task.number) == self.now

    def _end(self, life: Life) -> None:
        life.end = self.now
        for number in life.task.releases:
            holder = self.lives[number]
            if holder.holds:
                holder.holds = False
                for pool, units in holder.task.takes:
                    self.room[pool] += units

    def _close_joins(self) -> bool:
        closed = False
        for life in self.lives.values():
            if self._is_join(life) and life.start is None and self._deps_done(life):
                life.start = self.now
                self._end(life)
                closed = True
        return closed

    def _deps_done(self, life: Life) -> bool:
        done = all(self.lives[d].end is not None for d in life.task.deps)
        if done and life.startable_at is None:
            life.startable_at = self.now
        return done

    def _fits(self, life: Life) -> bool:
        wanted: dict[str, int] = {}
        for pool, units in life.task.takes:
            wanted[pool] = wanted.get(pool, 0) + units
        return all(units <= self.room[pool] for pool, units in wanted.items())

    def _start_all(self) -> None:
        for life in self.lives.values():
            self._deps_done(life)
        for lane in [Lane("", "ready", 10**9), *self.lanes]:
            while self._start_one(lane):
                pass
        fluid = self._running_fluid()
        found = speeds([v.demands for v in fluid], self.capacity)
        self._rates = {}
        for life, speed in zip(fluid, found, strict=True):
            alone = solo_s(life.demands, self.capacity)
            self._rates[id(life)] = speed / (alone * PS) if alone else Fraction(0)
        self._known_due = {v.task.number: self._due(v) for v in fluid}

    def _start_one(self, lane: Lane) -> bool:
        mine = [v for v in self.lives.values() if (v.task.lane or "") == lane.name and not self._is_join(v)]
        if sum(v.start is not None and v.end is None for v in mine) >= lane.servers:
            return False
        waiting = [v for v in mine if v.start is None]
        if lane.order == "submitted":
            candidates = [v for v in waiting[:1] if self._deps_done(v)]
        else:
            candidates = [v for v in waiting if self._deps_done(v)]
            candidates.sort(key=lambda v: (v.task.priority, v.startable_at, v.task.number))
            if lane.order == "priority":
                candidates = candidates[:1]
        for life in candidates:
            if self._fits(life):
                self._start(life)
                return True
        return False

    def _start(self, life: Life) -> None:
        life.start = self.now
        for pool, units in life.task.takes:
            self.room[pool] -= units
            life.holds = True
        if life.latency == 0 and self._is_fluid(life):
            life.fluid_at = self.now
