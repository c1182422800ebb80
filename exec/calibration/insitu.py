"""Correction from whole runs: what tasks take beyond the sum of their kernels, and what handing one to a lane takes.

A kernel timed alone has no Python around it, another state of the caches, and no other lane beside
it. A few short runs, none of them in the validation grid, are compared task by task with their own
simulation: for each op the median difference (short ops) or ratio (long ones) becomes a row of the
op table.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from exec import session
from exec.calibration.links import relink
from exec.prompts import byte_prompts
from exec.weights import Weights
from sim.columns import columns_of
from sim.costs import CostModel
from sim.engines.run import DONE, Run
from sim.job import Job, prepare
from sim.machines.schema import Machine, OpRate
from sim.models.spec import ModelSpec
from sim.ops import COMPUTE
from sim.schedulers.policy import Policy
from sim.simulate import simulate_job
from sim.workloads.lengths import Fixed, Uniform
from sim.workloads.schema import Workload
from traces.routing import RoutingIndex

SHORT_S = 400e-6
"""Ops whose median is shorter are corrected by a difference, longer ones by a ratio."""

ROUNDS = 2
"""The second round corrects what the first left, the lanes being busy at other times then."""


class Probe(NamedTuple):
    """One run to calibrate with. rates as for `relink`."""

    scheduler: str
    batch: int
    microbatch: int
    prompt: int
    gen: int
    rates: dict[str, float]


PROBES = (
    Probe("resident", 20, 10, 40, 9, {}),
    Probe("resident", 3, 3, 90, 9, {}),
    Probe("cgopipe", 60, 12, 36, 6, {}),
    Probe("cgopipe", 40, 20, 72, 5, {"h2d": 0.0, "d2h": 0.0}),
    Probe("flexgen", 44, 11, 50, 5, {}),
    Probe("flexgen-c", 26, 13, 44, 5, {"h2d": 3e9}),
    Probe("deepspeed", 14, 14, 60, 6, {"h2d": 2.2e9}),
)


def job_for(probe: Probe, machine: Machine, spec: ModelSpec) -> Job:
    prompts = Uniform(min=probe.prompt // 2, max=probe.prompt)
    workload = Workload(name="probe", source="chosen for calibration", prompt=prompts, generation=Fixed(tokens=probe.gen))
    return prepare(spec, relink(machine, probe.rates), workload, probe.scheduler, Policy(batch=probe.batch, microbatch=probe.microbatch))


def really(job: Job, weights: Weights, record: bool = True) -> session.Outcome:
    """Run a job on this computer with prompts from the standard library."""
    prompts = byte_prompts([r.prompt_tokens for r in job.requests], job.seed)
    profile = CostModel(job.machine, job.model)
    return session.run(
        job.model, weights, job.machine, job.fresh(), job.requests, prompts, lengths=job.lengths, profile=profile, record_routing=record
    )


def corrected(machine: Machine, spec: ModelSpec, weights: Weights, say: Callable[[str], None]) -> Machine:
    """The machine with rows task.OP, rows of single copies, and dispatch times."""
    runs = []
    for k, probe in enumerate(PROBES):
        say(f"whole runs: {k + 1} of {len(PROBES)}, {probe.scheduler}")
        runs.append((probe, really(job_for(probe, machine, spec), weights)))
    gaps = _gaps([outcome.run for _, outcome in runs])
    lanes = tuple(lane.model_copy(update={"dispatch_s": gaps.get(lane.name, 0.0)}) for lane in machine.lanes)
    machine = machine.model_copy(update={"lanes": lanes})
    for _ in range(ROUNDS):
        machine = _one_round(machine, spec, runs)
    return machine


def _one_round(machine: Machine, spec: ModelSpec, runs: list[tuple[Probe, session.Outcome]]) -> Machine:
    pairs: dict[tuple[str, str], list[NDArray[np.float64]]] = defaultdict(list)
    for probe, outcome in runs:
        job = job_for(probe, machine, spec)
        assert outcome.routing is not None
        simulated = simulate_job(job, routing=RoutingIndex(outcome.routing)).run
        for key, rows in _durations(job.machine, outcome.run, simulated):
            pairs[key].append(rows)
    rows = {(r.lane, r.op): r for r in machine.ops}
    for (lane, op), parts in pairs.items():
        _correct(rows, lane, op, np.concatenate(parts))
    return machine.model_copy(update={"ops": tuple(rows.values())})


def _durations(machine: Machine, measured: Run, simulated: Run) -> Iterator[tuple[tuple[str, str], NDArray[np.float64]]]:
    """By (lane, op): [tasks, 2] seconds measured and simulated, the latter without the hand-over."""
    assert np.array_equal(measured.number, simulated.number)
    columns = columns_of(measured.sources)
    for i, lane in enumerate(measured.lanes):
        for op in sorted({columns.works[w].op for w in np.unique(columns.work[measured.lane == i]).tolist()}):
            at = (measured.lane == i) & columns.where_op(op)
            spans = [(r.end_ps[at] - r.start_ps[at]) / 1e12 for r in (measured, simulated)]
            yield (lane, op), np.stack([spans[0], spans[1] - machine.lane[lane].dispatch_s], axis=1)


def _correct(rows: dict[tuple[str, str], OpRate], lane: str, op: str, seconds: NDArray[np.float64]) -> None:
    name = f"task.{op}" if op in COMPUTE else op
    base = rows.get((lane, name)) or (None if op in COMPUTE else rows[lane, "*"])
    row = OpRate(op=name, lane=lane, source="calibrated") if base is None else base.model_copy(update={"op": name})
    measured, simulated = seconds[:, 0], np.maximum(seconds[:, 1], 1e-9)
    source = f"calibrated: {len(seconds)} tasks of whole runs"
    if op in COMPUTE and np.median(measured) > SHORT_S:
        # Weighted by time: long tasks are what a makespan is made of.
        update: dict[str, Any] = {"scale": row.scale * float(np.clip(_weighted_median(measured / simulated, measured), 0.5, 2.0))}
    else:
        update = {"latency_s": max(0.0, row.latency_s + float(np.median(measured - simulated)))}
    rows[lane, name] = row.model_copy(update={**update, "source": source})


def _weighted_median(values: NDArray[np.float64], weights: NDArray[np.float64]) -> float:
    order = np.argsort(values)
    total = np.cumsum(weights[order])
    return float(values[order][np.searchsorted(total, total[-1] / 2)])


def _gaps(runs: list[Run]) -> dict[str, float]:
    """Median time by lane between the moment when a task could start and its start, in seconds.

    It could start when the task before it on the lane and all its dependencies had ended. Gaps of a
    millisecond and more are waits for a pool, not hand-overs.
    """
    found: dict[str, list[float]] = defaultdict(list)
    for run in runs:
        columns = columns_of(run.sources)
        assert (run.status == DONE).all()
        able = np.zeros(len(run), np.int64)
        ptr, dep = columns.dep_ptr, np.searchsorted(columns.number, columns.dep)
        some = np.diff(ptr) > 0
        able[some] = np.maximum.reduceat(run.end_ps[dep], ptr[:-1][some]) if some.any() else 0
        for i, lane in enumerate(run.lanes):
            at = np.flatnonzero(run.lane == i)
            at = at[np.argsort(run.start_ps[at], kind="stable")]
            before = np.concatenate([[0], run.end_ps[at][:-1]])
            gap = (run.start_ps[at] - np.maximum(able[at], before)) / 1e12
            found[lane] += gap[(gap > 0) & (gap < 1e-3)].tolist()
    return {lane: float(np.median(gaps)) for lane, gaps in found.items() if gaps}

