"""The search's optimum against brute force over whole spaces, with bounds by plain sums over real Plans."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest

from sim.costs import CostModel
from sim.errors import UserError
from sim.job import Job
from sim.policy.fit import Fit, job_of
from sim.policy.hrm import Roofline
from sim.policy.optimum import ANY, Search
from sim.policy.space import Point
from sim.policy.traffic import Traffic
from tests.sim.policy import cases


class Question:
    """One random space and the search over it."""

    def __init__(self, seed: int, equal: bool, objective: str = "throughput") -> None:
        dice = random.Random(seed)
        self.model, self.workload = cases.model(dice), cases.workload(dice, equal)
        self.machine = cases.machine(dice, self.model, dice.randint(20, 300))
        self.space = cases.space(dice, self.machine, self.model)
        costs, traffic = CostModel(self.machine, self.model), Traffic(self.workload, self.space.largest)
        self.roofline = Roofline(costs, traffic, np.array(self.space.microbatches))
        self.search = Search(self.space, self.roofline, Fit(costs, traffic), objective, lambda p: self.job(p) is not None)

    def job(self, point: Point) -> Job | None:
        try:
            return job_of(point, self.model, self.machine, self.workload, 0)
        except UserError:
            return None


@pytest.mark.parametrize("block", range(10))
def test_the_optimum_is_that_of_brute_force(block: int) -> None:
    """200 spaces: every point is tried for fit by its real requests, and bounded by its real Plan."""
    feasible = infeasible = 0
    for seed in range(block * 20, block * 20 + 20):
        q = Question(seed, equal=True)
        found = next(q.search.ranked(), None)
        best = 0.0
        for point in q.space.points():
            job = q.job(point)
            if job is not None:
                best = max(best, sum(job.lengths) / cases.bound_s(job))
        feasible, infeasible = feasible + (best > 0), infeasible + (best == 0)
        assert (found is None) == (best == 0), seed
        if found is not None:
            assert found.tokens_per_s == pytest.approx(best, rel=1e-9), seed
    assert feasible >= 6 and infeasible >= 1, (feasible, infeasible)


@pytest.mark.parametrize("objective", ["throughput", "latency"])
@pytest.mark.parametrize("seed", [1000, 1006])
def test_every_point_that_fits_comes_in_the_order_of_its_bound(seed: int, objective: str) -> None:
    q = Question(seed, equal=False, objective=objective)
    ranked = list(q.search.ranked())
    fitting = [p for p in q.space.points() if q.job(p) is not None]
    assert sorted(map(repr, fitting)) == sorted(repr(r.point) for r in ranked)
    values = [1 / q.search.rank(p).total_s if objective == "latency" else q.search.rank(p).tokens_per_s for p in fitting]
    assert [r.value for r in ranked] == pytest.approx(sorted(values, reverse=True), rel=1e-12)
    assert len(ranked) > 1


def test_a_box_is_worth_no_less_than_its_points() -> None:
    """What the proof rests on: bounds over ranges of static experts and over all sizes of a prefill micro-batch."""
    for seed in range(2000, 2040):
        q = Question(seed, equal=seed % 2 == 0)
        for point in q.space.points():
            statics, counts = q.space.statics(point.order), q.space.counts(point.microbatch)
            own = q.search.rank(point).value
            whole = q.search.values(replace(point, prefill_microbatch=ANY), statics[-1], counts)
            assert whole[counts.index(point.microbatches)] >= own * (1 - 1e-12), (seed, point)


def test_what_fits_really_fits_by_the_bound() -> None:
    """The closed form never asks for more than the scheduler's own account of its requests."""
    for seed in range(3000, 3060):
        q = Question(seed, equal=seed % 2 == 0)
        for point in q.space.points():
            counts = (point.microbatches,)
            e, c = point.static_experts, (point.prefill_microbatch,)
            if q.job(point) is not None:
                assert q.search.fit.most(point, counts, gpu_at=e, cpu_at=e, prefills=c) == 1, (seed, point)
                assert q.search.fit.most(point, counts, gpu_at=0, cpu_at=8, prefills=q.space.prefills(point.microbatch)) == 1, (seed, point)
