"""How many tasks a second each engine simulates: one Plan, both engines, one process."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from sim import machines, models, workloads
from sim.costs import CostModel
from sim.drive import drive
from sim.engines.compiled import run_compiled
from sim.engines.run import Run
from sim.events import Event, Started
from sim.handout import WholeEngine
from sim.job import Job, prepare
from sim.machines.schema import Machine
from sim.plan import Plan
from sim.simulate import pools_of
from sim.tasks import Command, Time

REPEATS = 5


class Given:
    """A scheduler that hands out one finished Plan."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan

    def on(self, now: Time, event: Event) -> Sequence[Command]:
        return [self._plan] if isinstance(event, Started) else ()


def fixed_job(gen: int = 128, machine: Machine | None = None) -> Job:
    """CGOPipe of Mixtral 8x7B on the L4 box (or another), MTBench prompts, batch 1020, micro-batch 68."""
    workload = workloads.load("mtbench").with_generation(gen)
    return prepare(models.load("mixtral-8x7b"), machine or machines.load("l4"), workload, "cgopipe", batch=1020, microbatch=68)


def plan_of_job(job: Job, costs: CostModel) -> tuple[Plan, dict[str, int]]:
    """The Plan that the job's scheduler hands out on the arrivals, and the pools to run it with."""
    scheduler = job.fresh()
    pools = pools_of(job, scheduler)
    engine = WholeEngine(costs, job.requests, pools)
    drive(scheduler, engine)
    (plan,) = engine.run.sources
    assert isinstance(plan, Plan)
    return plan, pools


def bench(say: Callable[[str], None] = lambda text: None) -> dict[str, Any]:
    """Tasks per second, the best of five runs of the compiled engine and one run of SimPy's.

    Times are of the engine alone: the Plan is built and priced before. The first, compiling run is not
    counted. `same_times` says that both engines saw the same picoseconds.
    """
    from sim.engines.simpy_engine import SimPyEngine

    job = fixed_job()
    costs = CostModel(job.machine, job.model)
    say("building the plan, compiling")
    plan, pools = plan_of_job(job, costs)
    priced = costs.bind(plan)
    say(f"compiled engine, {len(plan):,} tasks")
    compiled_s, fast = min((_timed(lambda: run_compiled(priced, costs.lanes, pools)) for _ in range(REPEATS)), key=lambda r: r[0])
    say(f"SimPy, {len(plan):,} tasks")
    engine = SimPyEngine(costs.lanes, pools, costs, profile=costs)
    simpy_s, _ = _timed(lambda: drive(Given(plan), engine))
    return {
        "simpy_tasks_per_s": len(plan) / simpy_s,
        "compiled_tasks_per_s": len(plan) / compiled_s,
        "ratio": simpy_s / compiled_s,
        "tasks": len(plan),
        "bytes_per_task": (plan.nbytes + fast.nbytes) / len(plan),
        "same_times": fast.same_times(engine.run),
    }


def _timed(work: Callable[[], Any]) -> tuple[float, Run]:
    began = time.perf_counter()
    result = work()
    return time.perf_counter() - began, result
