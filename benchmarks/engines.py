"""Tasks per second of both engines where `sim bench` does not look: size, many servers, saturation.

    python benchmarks/engines.py

Prints one table, and how the time of `sim bench`'s plan grows with its tasks. CPU seconds, best of three, compilation not counted.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np

from sim import machines
from sim.benchmark import fixed_job, plan_of_job
from sim.costs import CostModel, PricedPlan, pack
from sim.engines.compiled import run_compiled
from sim.engines.simpy_engine import SimPyEngine
from sim.plan import Plan, PlanBuilder
from sim.tasks import Work


class Lane(NamedTuple):
    name: str
    order: str
    servers: int


def pipeline(tasks: int) -> tuple[Plan, list[Any], list[Lane]]:
    """Five lanes in a row, each stage on the one before it; a memory that two of them saturate."""
    builder = PlanBuilder()
    block = [builder.add(Work(f"stage{k}"), f"lane{k}", [k - 1] if k else ()) for k in range(5)]
    since = builder.mark()
    for k in range(5):
        builder.add(Work(f"stage{k}"), f"lane{k}", [builder.next - 5, *([builder.next - 1] if k else ())])
    builder.repeat(since, tasks // len(block) - 2)
    rows = [(5_000_000, [(0, 4e8 + 1e8 * k, 8e10, 1.0), (1 + k, 1e9, 1e11, 1.0)]) for k in range(5)]
    return builder.build(), rows, [Lane(f"lane{k}", "submitted", 1) for k in range(5)]


def blocks(tasks: int, load: float) -> tuple[Plan, list[Any], list[Lane]]:
    """264 blocks of a GPU at once, all of different length, that together want `load` times the memory's bandwidth."""
    rng = np.random.default_rng(0)
    builder = PlanBuilder()
    since = builder.mark()
    for k in range(1000):
        builder.add(Work(f"tile{k}"), "blocks")
    builder.repeat(since, tasks // 1000 - 1)
    rows = [(1_000_000, [(0, 1e6 * rng.uniform(0.5, 1.5), load * 1e11 / 264, 1.0)]) for _ in range(1000)]
    return builder.build(), rows, [Lane("blocks", "ready", 264)]


def rates(plan: Plan, rows: list[Any], lanes: Sequence[Lane], with_simpy: bool) -> tuple[float, float | None]:
    """Tasks per CPU second of the compiled engine and of SimPy's."""
    capacity = np.full(6, 1e11)
    names = tuple(f"r{k}" for k in range(6))
    priced = PricedPlan(plan, plan.work, pack(rows), names, capacity)
    run_compiled(priced, lanes, {})
    compiled_s = min(_cpu_s(lambda: run_compiled(priced, lanes, {})) for _ in range(3))
    if not with_simpy:
        return len(plan) / compiled_s, None
    costs: Any = SimpleNamespace(resources=names, capacity=capacity, bind=lambda plan: priced)
    engine = SimPyEngine(lanes, {}, costs)
    engine.submit([plan])
    return len(plan) / compiled_s, len(plan) / _cpu_s(engine.wait)


def growth() -> None:
    """The plan of `sim bench` at ten times and a hundred times its steps, on a box whose memory holds the KV cache of that."""
    box = machines.load("l4")
    memory = box.memories["cpu"].model_copy(update={"bytes": 10**13})
    box = box.model_copy(update={"memories": {**box.memories, "cpu": memory}})
    priced = []
    for gen in (14, 129, 1281):
        job = fixed_job(gen, box)
        costs = CostModel(job.machine, job.model)
        plan, pools = plan_of_job(job, costs)
        priced.append((costs.bind(plan), costs.lanes, pools))
    run_compiled(*priced[0])
    seconds = [[_cpu_s(lambda p=p: run_compiled(*p)) for p in priced] for _ in range(5)]
    best = np.min(seconds, axis=0)
    for (small, *_), (large, *_), a, b in zip(priced, priced[1:], best, best[1:], strict=False):
        more = len(large.plan) / len(small.plan)
        print(f"plan of sim bench: {len(small.plan):,} -> {len(large.plan):,} tasks ({more:.2f} times): {b / a:.2f} times the time")


def _cpu_s(work: Callable[[], Any]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


def main() -> None:
    print(f"{'plan':34} {'tasks':>10} {'compiled/s':>12} {'SimPy/s':>10}")
    for name, (plan, rows, lanes), with_simpy in [
        ("pipeline of 5 lanes", pipeline(50_000), True),
        ("pipeline of 5 lanes", pipeline(500_000), False),
        ("pipeline of 5 lanes", pipeline(5_000_000), False),
        ("264 blocks, memory wanted 0.9 times", blocks(100_000, 0.9), True),
        ("264 blocks, memory wanted 2 times", blocks(20_000, 2.0), True),
    ]:
        compiled, simpy = rates(plan, rows, lanes, with_simpy)
        print(f"{name:34} {len(plan):10,} {compiled:12,.0f} {'' if simpy is None else f'{simpy:10,.0f}'}", flush=True)
    growth()


if __name__ == "__main__":
    main()
