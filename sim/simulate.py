"""simulate: one job on the simulated clock, from names or objects to an Outcome."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sim.bounds import lower_bound_s
from sim.costs import CostModel, Routing
from sim.drive import Log, drive
from sim.engines.run import DONE, Run
from sim.handout import Reacts, WholeEngine
from sim.job import Job, prepare
from sim.machines import Machine
from sim.machines import load as load_machine
from sim.models import ModelSpec
from sim.models import load as load_model
from sim.schedulers.policy import Policy
from sim.summary import About, summarize
from sim.workloads import Outcomes, Workload
from sim.workloads import load as load_workload

EngineName = Literal["auto", "simpy", "compiled"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """A simulated job.

    log: events and the hashes of the commands that answered them. summary: the object of `run --json`.
    wall_s: real time from the scheduler's first event to the last.
    """

    job: Job
    costs: CostModel
    run: Run
    log: Log
    summary: dict[str, Any]
    wall_s: float


def simulate(
    model: str | Path | ModelSpec,
    machine: str | Path | Machine,
    workload: str | Path | Workload,
    scheduler: str,
    policy: Policy | None = None,
    *,
    seed: int = 0,
    engine: EngineName = "auto",
    routing: Routing | None = None,
) -> Outcome:
    """Simulate a schedule. Names are those of the command line; `routing` drives the experts' loads.

    Raises `UserError` for bad input and `sim.drive.Deadlock` where tasks wait for each other for ever.
    """
    job = prepare(
        model if isinstance(model, ModelSpec) else load_model(model),
        machine if isinstance(machine, Machine) else load_machine(machine),
        workload if isinstance(workload, Workload) else load_workload(workload),
        scheduler, policy, seed=seed,
    )  # fmt: skip
    return simulate_job(job, engine=engine, routing=routing)


def simulate_job(job: Job, *, engine: EngineName = "auto", routing: Routing | None = None, bound: bool = True) -> Outcome:
    """Run a prepared job on the simulated clock.

    `auto` is the compiled engine where the scheduler hands everything out on the arrivals; where it
    reacts to what happens, the job begins again on SimPy. Without `bound` the summary's lower bound is
    0: for millions of tasks it takes longer than the run.
    """
    costs = CostModel(job.machine, job.model, routing)
    began = time.perf_counter()
    run, log = _on(engine, job, costs, routing)
    wall_s = time.perf_counter() - began
    servers = {lane.name: lane.servers for lane in job.machine.lanes}
    lowest_s = lower_bound_s(run.sources, costs, servers, run.status == DONE) if bound else 0.0
    about = About.of(job, "simulated", "synthetic" if routing is None else "trace", job.peak_by_memory, lowest_s)
    return Outcome(job, costs, run, log, summarize(about, run, job.requests, job.lengths, wall_s), wall_s)


def _on(engine: EngineName, job: Job, costs: CostModel, routing: Routing | None) -> tuple[Run, Log]:
    if engine != "simpy":
        try:
            return _compiled(job, costs)
        except Reacts:
            if engine == "compiled":
                raise
    return _simpy(job, costs, routing)


def pools_of(job: Job, scheduler: Any) -> dict[str, int]:
    """Capacity of each pool: the machine's, and what the scheduler adds or overrides."""
    return {**job.machine.pools, **scheduler.pools}


def _compiled(job: Job, costs: CostModel) -> tuple[Run, Log]:
    scheduler, log = job.fresh(), Log()
    engine = WholeEngine(costs, job.requests, pools_of(job, scheduler))
    drive(scheduler, engine, log)
    return engine.run, log


def _simpy(job: Job, costs: CostModel, routing: Routing | None) -> tuple[Run, Log]:
    from sim.engines.simpy_engine import SimPyEngine  # numba

    scheduler, log = job.fresh(), Log()
    outcomes = Outcomes(job.lengths, routing)
    engine = SimPyEngine(costs.lanes, pools_of(job, scheduler), costs, profile=costs, arrivals=job.requests, outcomes=outcomes)
    drive(scheduler, engine, log)
    return engine.run, log
