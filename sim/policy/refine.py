"""Refinement: the best points by their bounds, run on the compiled engine with the real schedule."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

from sim.costs import CostModel
from sim.drive import Log, drive
from sim.handout import WholeEngine
from sim.job import Job
from sim.policy.launched import launched
from sim.policy.optimum import Objective, Ranked
from sim.policy.space import Order, Point, Space
from sim.simulate import pools_of
from sim.tasks import PS_PER_S

MOST_TASKS = 6_000_000
"""Of a run that is simulated; its arrays take about 100 bytes a task, its Plan as much again."""
ALIKE = math.log(1.25)
"""Points of one launch order whose micro-batch and batch are within this of each other are taken for alike."""
LOOKED_AT = 2000
"""Points by bound among which unlike ones are sought."""


@dataclass(frozen=True, slots=True)
class Simulated:
    """A point that was simulated. value: what is largest for the best. bound: the same, by its closed form."""

    point: Point
    tokens_per_s: float
    makespan_s: float
    value: float
    bound: float


def tasks(point: Point, costs: CostModel, steps: int) -> int:
    """How many tasks a batch of it has, about; streamed weights move in pages, one for each micro-batch."""
    counted = launched(point.order, costs.model)
    n = min(point.microbatches, max(counted.base))
    one = sum(counted.base[n].values()) + steps * sum(counted.per_step[n].values())
    return one * point.microbatches // n


def run(job: Job, costs: CostModel) -> tuple[float, int]:
    """(makespan in seconds, tokens generated) of a job on the compiled engine.

    Raises `sim.handout.Reacts` where the schedule depends on what happens in the run.
    """
    scheduler = job.fresh()
    engine = WholeEngine(costs, job.requests, pools_of(job, scheduler))
    drive(scheduler, engine, Log())
    return engine.run.makespan_ps / PS_PER_S, sum(job.lengths)


class Refinement:
    """Simulates at most `budget` points.

    First unlike points in the order of their bounds, each launch order's best among them; then neighbours of the best one so
    far, until none of them is better. What cannot beat the best by its bound is not simulated.
    """

    def __init__(
        self, space: Space, objective: Objective, budget: int, simulate: Callable[[Point], tuple[float, int] | None],
        bound: Callable[[Point], Ranked | None], say: Callable[[str], None],
    ) -> None:  # fmt: skip
        """simulate: makespan and tokens of a point, None where it is too large to simulate. bound: None where it does not fit."""
        self.space, self.objective, self.budget = space, objective, budget
        self._simulate, self._bound, self._say = simulate, bound, say
        self.done: list[Simulated] = []
        self._seen: set[Point] = set()

    @property
    def best(self) -> Simulated | None:
        return max(self.done, key=lambda s: s.value, default=None)

    def search(self, ranked: Iterable[Ranked]) -> Simulated | None:
        """The best found; None where no point could be simulated."""
        unlike = self._unlike(ranked)
        for r in unlike:
            if len(self.done) * 2 >= self.budget or self._beaten(r.value):
                break
            self._try(r)
        while self.best is not None and len(self.done) < self.budget:
            if not self._improve(self.best):
                break
        return self.best

    def _beaten(self, value: float) -> bool:
        """Whether a bound tells that a point is no better than the best."""
        return self.best is not None and value <= self.best.value

    def _try(self, ranked: Ranked) -> Simulated | None:
        self._seen.add(ranked.point)
        found = self._simulate(ranked.point)
        if found is None:
            return None
        makespan_s, tokens = found
        value = 1.0 / makespan_s if self.objective == "latency" else tokens / makespan_s
        self.done.append(Simulated(ranked.point, tokens / makespan_s, makespan_s, value, ranked.value))
        self._say(f"{len(self.done)} of {self.budget} simulated: {ranked.point.order.scheduler}, {tokens / makespan_s:.4g} tokens/s")
        return self.done[-1]

    def _unlike(self, ranked: Iterable[Ranked]) -> Iterator[Ranked]:
        chosen: list[Point] = []
        for k, r in enumerate(ranked):
            if k >= LOOKED_AT:
                return
            if not any(_alike(r.point, other) for other in chosen):
                chosen.append(r.point)
                yield r

    def _improve(self, at: Simulated) -> bool:
        """Simulate neighbours, the one with the largest bound first, up to the first that is better."""
        near = [b for p in self._neighbours(at.point) if p not in self._seen and (b := self._bound(p)) is not None]
        for r in sorted(near, key=lambda r: -r.value):
            if self._beaten(r.value) or len(self.done) >= self.budget:
                return False
            found = self._try(r)
            if found is not None and found.value > at.value:
                return True
        return False

    def _neighbours(self, p: Point) -> Iterator[Point]:
        for order in self.space.orders:
            statics = self.space.statics(order)
            if order != p.order:
                yield replace(p, order=order, static_experts=p.static_experts if p.static_experts in statics else statics[-1])
        for n in self._beside(self.space.counts(p.microbatch), p.microbatches):
            yield replace(p, microbatches=n)
        for mu in self._beside(self.space.microbatch, p.microbatch):
            for n in {p.microbatches, max(1, p.batch // mu)} & set(self.space.counts(mu)):
                yield replace(p, microbatch=mu, microbatches=n, prefill_microbatch=self.space.prefills(mu)[0])
        for e in self._beside(self.space.statics(p.order), p.static_experts):
            yield replace(p, static_experts=e)
        for c in self._beside(self.space.prefills(p.microbatch), p.prefill_rows):
            yield replace(p, prefill_microbatch=c)
        for pages in {2 * p.microbatches, max(1, p.microbatches // 2)}:
            yield replace(p, pages=None if p.pages else pages)

    @staticmethod
    def _beside(values: tuple[int, ...], value: int) -> list[int]:
        """The next smaller and the next larger one."""
        below, above = [v for v in values if v < value], [v for v in values if v > value]
        return [*([max(below)] if below else []), *([min(above)] if above else [])]


def _alike(a: Point, b: Point) -> bool:
    close = all(abs(math.log(x / y)) < ALIKE for x, y in ((a.microbatch, b.microbatch), (a.batch, b.batch)))
    return a.order == b.order and close and abs(a.static_experts - b.static_experts) <= 1


def same_policy(order: Order, orders: Iterable[Order]) -> list[Order]:
    """Launch orders that may follow a policy with the same place of attention."""
    return [o for o in orders if o.attention == order.attention]
