"""The roofline bound against what the simulator makes of the same policy."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim import machines, models, workloads
from sim.costs import CostModel
from sim.job import prepare
from sim.machines.schema import OpRate
from sim.policy.hrm import Roofline
from sim.policy.hull import hull
from sim.policy.launched import launched
from sim.policy.space import Order, Point, orders
from sim.policy.traffic import Traffic
from sim.simulate import simulate, simulate_job
from sim.workloads.lengths import Fixed, Uniform
from sim.workloads.schema import Workload
from tests.sim.policy import cases
from tests.sim.policy.test_optimum import Question


@pytest.mark.parametrize("block", range(4))
def test_no_simulated_schedule_beats_its_bound(block: int) -> None:
    tightest = 0.0
    for seed in range(4000 + 20 * block, 4020 + 20 * block):
        q = Question(seed, equal=seed % 2 == 0)
        for point in random.Random(seed).sample(list(q.space.points()), min(4, len(q.space))):
            job = q.job(point)
            if job is not None:
                bound, reached = q.search.rank(point).total_s, simulate_job(job).run.makespan_ps / 1e12
                assert bound <= reached * (1 + 1e-9), (seed, point)
                tightest = max(tightest, bound / reached)
    assert tightest > 0.9


def calibrated(seed: int):
    """A machine with measured curves in place of rooflines, of random bends."""
    dice, base = random.Random(seed), machines.load("t4")
    curves = []
    for lane, scale in (("gpu", 1e-9), ("cpu", 1e-8)):
        rows, value, points = 1.0, scale * dice.uniform(0.5, 2), []
        for _ in range(6):
            points.append((rows, value))
            rows, value = rows * dice.uniform(1.5, 4), value * dice.uniform(1.0, 3)
        ratio = tuple((10.0**k, dice.uniform(0.8, 1.3)) for k in range(4))
        curves.append(OpRate(op="*", lane=lane, curve=tuple(points), source="a test"))
        curves.append(OpRate(op="task.attn_decode", lane=lane, ratio=ratio, source="a test"))
    resources = {**base.resources, "cores": base.resources["cpu.flops"].model_copy(update={"kind": "cores", "capacity": 3.0})}
    lanes = tuple(lane.model_copy(update={"cores": "cores", "threads": 1}) if lane.kind == "compute" else lane for lane in base.lanes)
    ops = tuple(op for op in base.ops if op.lane not in ("gpu", "cpu"))
    return base.model_copy(update={"resources": resources, "lanes": lanes, "ops": (*curves, *ops)})


@pytest.mark.parametrize("seed", range(12))
def test_nor_on_a_machine_with_measured_curves(seed: int) -> None:
    dice = random.Random(seed)
    machine, model = calibrated(seed), cases.model(dice)
    load = Workload(name="w", source="a test", prompt=Uniform(min=2, max=40), generation=Fixed(tokens=dice.randint(2, 12)))
    costs, traffic = CostModel(machine, model), Traffic(load, 200)
    roofline = Roofline(costs, traffic, np.arange(1, 9))
    for order in orders(machine):
        point = Point(order, dice.randint(1, 9), dice.randint(1, 6), dice.randint(0, 7))
        at = np.array([point.microbatches - 1])
        bound = roofline.times(order, point.microbatch, point.prefill_rows, point.static_experts, None, at).total_s[0]
        reached = simulate(model, machine, load, order.scheduler, point.policy()).run.makespan_ps / 1e12
        assert bound <= reached * (1 + 1e-6), point


@pytest.mark.parametrize("order", [Order("cgopipe", "cpu"), Order("deepspeed", "gpu"), Order("resident", "gpu"), Order("flexgen", "gpu")])
@pytest.mark.parametrize("slots", [1, 3])
def test_nor_where_the_schedule_reacts(order: Order, slots: int) -> None:
    """Sequences that end early, refills and several batches: passes and rows are counted, not assumed."""
    model = replace(models.load("tiny-mixtral"), layers=2, hidden=64, ffn=256, vocab=512)
    load = workloads.load("mixed").with_generation(12).model_copy(update={"requests_per_slot": slots})
    machine = machines.load("t4")
    for mu, n in ((3, 1), (4, 2), (5, 3), (2, 6)):
        point = Point(order, mu, n, 3)
        roofline = Roofline(CostModel(machine, model), Traffic(load, mu * n), np.array([n]))
        bound = roofline.times(order, mu, mu, 3, None, np.array([0])).total_s[0]
        reached = simulate(model, machine, load, order.scheduler, point.policy()).run.makespan_ps / 1e12
        assert 0.1 * reached < bound <= reached, point


@pytest.mark.parametrize("name", ["mixtral-8x7b", "deepseek-v2-lite", "gpt-oss-20b"])
def test_counts_of_a_whole_model_are_those_of_its_plan(name: str) -> None:
    """Extrapolated from few layers, micro-batches and steps; read off the real Plan."""
    model, machine = models.load(name), machines.load("h100")
    load = Workload(name="w", source="a test", prompt=Fixed(tokens=4), generation=Fixed(tokens=4))
    for order in orders(machine):
        point = Point(order, 1, 6, pages=1)
        policy = point.policy().model_copy(update={"cache_tokens": 8})
        job = prepare(model, machine.model_copy(update={"memories": _roomy(machine)}), load, order.scheduler, policy)
        counted, plan = launched(order, model), cases.plan_of(job)
        real = sum(plan.lane >= 0)
        fixed = sum(counted.spread(k, 3)[0][-1] + 6 * counted.spread(k, 3)[1][-1] for k in counted.kinds)
        assert fixed == real, order


def _roomy(machine):
    return {n: m.model_copy(update={"bytes": 1 << 50}) for n, m in machine.memories.items()}


@given(st.lists(st.floats(0, 100), min_size=2, max_size=12), st.data())
@settings(max_examples=50, deadline=None)
def test_a_hull_lies_below_means(values: list[float], data: st.DataObject) -> None:
    x = np.arange(len(values), dtype=float)
    corners, heights = hull(x.tolist(), values)
    chosen = data.draw(st.lists(st.integers(0, len(values) - 1), min_size=1, max_size=6))
    mean = float(np.mean([values[i] for i in chosen]))
    assert float(np.interp(np.mean(chosen), corners, heights)) <= mean + 1e-9 * (1 + mean)
    assert np.all(np.interp(x, corners, heights) <= np.array(values) + 1e-9)
