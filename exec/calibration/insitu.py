"""Correction from whole runs: what tasks take beyond the sum of their kernels, waking their lane included.

A kernel timed alone has no Python around it, another state of the caches, and no other lane beside
it. A few short runs, none of them in the validation grid, are compared task by task with their own
simulation: for each op the ratio, by size, becomes a row of the op table; for copies over a paced
link, whose rate is given, the mean difference does.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from exec import session
from exec.calibration.links import relink
from exec.calibration.reference import Reference
from exec.prompts import byte_prompts
from exec.weights import Weights
from sim.columns import columns_of
from sim.costs import CostModel
from sim.demands import ratio_at, size_of
from sim.engines.run import Run
from sim.job import Job, prepare
from sim.machines.schema import Machine, OpRate
from sim.models.spec import ModelSpec
from sim.ops import COMPUTE
from sim.schedulers.policy import Policy
from sim.simulate import simulate_job
from sim.workloads.lengths import Fixed, Uniform
from sim.workloads.schema import Workload
from traces.routing import RoutingIndex

if TYPE_CHECKING:
    from exec.backends.cuda.device import Device

BUSY = 0.6
"""Utilization from which a compute lane is what limits a run."""

FEWEST = 3
"""Tasks of one octave of sizes that make a point."""

LIMITS = (0.3, 5.0)
"""Ratios beyond these mean that the runs were disturbed."""

Rows = NDArray[np.float64]

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
    Probe("resident", 5, 5, 70, 12, {}),
    Probe("cgopipe", 60, 12, 36, 6, {}),
    Probe("cgopipe", 40, 20, 72, 5, {"h2d": 0.0, "d2h": 0.0}),
    Probe("cgopipe", 70, 14, 20, 9, {"h2d": 2.4e9}),
    Probe("fastdecode", 44, 11, 30, 6, {"h2d": 1.4e9}),
    Probe("flexgen", 44, 11, 50, 5, {}),
    Probe("flexgen", 36, 18, 40, 5, {"h2d": 0.0, "d2h": 0.0}),
    Probe("flexgen-c", 26, 13, 44, 5, {"h2d": 3e9}),
    Probe("deepspeed", 14, 14, 60, 6, {"h2d": 2.2e9}),
)


def job_for(probe: Probe, machine: Machine, spec: ModelSpec) -> Job:
    prompts = Uniform(min=probe.prompt // 2, max=probe.prompt)
    workload = Workload(name="probe", source="chosen for calibration", prompt=prompts, generation=Fixed(tokens=probe.gen))
    return prepare(spec, relink(machine, probe.rates), workload, probe.scheduler, Policy(batch=probe.batch, microbatch=probe.microbatch))


def really(job: Job, weights: Weights, record: bool = True, device: Device | None = None) -> session.Outcome:
    """Run a job on this computer with prompts from the standard library; device as in `session.run`."""
    prompts = byte_prompts([r.prompt_tokens for r in job.requests], job.seed)
    profile = CostModel(job.machine, job.model)
    return session.run(
        job.model, weights, job.machine, job.fresh(), job.requests, prompts, lengths=job.lengths, profile=profile, record_routing=record,
        device=device,
    )  # fmt: skip


def corrected(
    machine: Machine, spec: ModelSpec, weights: Weights, say: Callable[[str], None], probes: Sequence[Probe] = PROBES,
    open_device: Callable[[], Device | None] = lambda: None,
) -> Machine:  # fmt: skip
    """The machine with rows task.OP and rows of single copies, from runs while the computer was calm, as far as it ever was."""
    runs, reference = [], Reference()
    for k, probe in enumerate(probes):
        say(f"whole runs: {k + 1} of {len(probes)}, {probe.scheduler}")
        runs.append((probe, reference.calmly(lambda probe=probe: really(job_for(probe, machine, spec), weights, device=open_device()))))
    for _ in range(ROUNDS):
        machine = _one_round(machine, spec, runs)
    return machine


def _one_round(machine: Machine, spec: ModelSpec, runs: list[tuple[Probe, session.Outcome]]) -> Machine:
    pairs: dict[tuple[str, str, bool], list[Rows]] = defaultdict(list)
    for probe, outcome in runs:
        job = job_for(probe, machine, spec)
        assert outcome.routing is not None
        simulated = simulate_job(job, routing=RoutingIndex(outcome.routing)).run
        for key, rows in _durations(job.machine, outcome.run, simulated):
            pairs[key].append(rows)
    rows = {(r.lane, r.op): r for r in machine.ops}
    for (lane, op, paced), parts in pairs.items():
        _correct(rows, lane, op, paced, np.concatenate(parts))
    return machine.model_copy(update={"ops": tuple(rows.values())})


def _durations(machine: Machine, measured: Run, simulated: Run) -> Iterator[tuple[tuple[str, str, bool], Rows]]:
    """By (lane, op, whether the lane is paced): [tasks, 4] size, seconds measured, seconds simulated, and
    the lane's utilization in that run."""
    assert np.array_equal(measured.number, simulated.number)
    columns = columns_of(measured.sources)
    sizes = np.array([size_of(w) for w in columns.works])
    busy = measured.busy_ps()
    for i, lane in enumerate(measured.lanes):
        share = busy[lane] / measured.makespan_ps
        for op in sorted({columns.works[w].op for w in np.unique(columns.work[measured.lane == i]).tolist()}):
            at = (measured.lane == i) & columns.where_op(op)
            spans = [(r.end_ps[at] - r.start_ps[at]) / 1e12 for r in (measured, simulated)]
            rows = np.stack([sizes[columns.work[at]], *spans, np.full(at.sum(), share)], axis=1)
            yield (lane, op, machine.lane[lane].paced_bytes_per_s is not None), rows


def _correct(rows: dict[tuple[str, str], OpRate], lane: str, op: str, paced: bool, tasks: Rows) -> None:
    name = f"task.{op}" if op in COMPUTE else op
    row = rows.get((lane, name)) or (OpRate(op=name, lane=lane, source="calibrated") if op in COMPUTE else rows[lane, "*"])
    size, measured, simulated, share = tasks[:, 0], tasks[:, 1], np.maximum(tasks[:, 2], 1e-9), tasks[:, 3]
    update: dict[str, Any] = {"op": name, "source": f"calibrated: {len(tasks)} tasks of whole runs"}
    if paced:
        update["latency_s"] = max(0.0, row.latency_s + float(_tamed(measured - simulated).mean()))
    else:
        found = _ratios(size, measured, simulated, share)
        update["ratio"] = tuple((x, float(np.clip(r * ratio_at(row.ratio, x), *LIMITS))) for x, r in found)
    rows[lane, name] = row.model_copy(update=update)


def _ratios(
    size: NDArray[np.float64], measured: NDArray[np.float64], simulated: NDArray[np.float64], share: NDArray[np.float64]
) -> list[tuple[float, float]]:
    """(median size, measured over simulated seconds) of the tasks of each octave of sizes: sums, because
    a lane's busy time is one, without the most extreme of them.

    An op that follows a pause takes longer: its thread has slept, and what the caches held is gone.
    Where runs in which the lane was what limits show an octave, the others do not count for it.
    """
    octave = np.floor(np.log2(np.maximum(size, 1.0)))
    found = []
    for o in np.unique(octave):
        at = octave == o
        limiting = at & (share >= BUSY)
        at = limiting if limiting.sum() >= FEWEST else at
        if at.sum() >= FEWEST:
            found.append((float(np.median(size[at])), float(_tamed(measured[at]).sum() / simulated[at].sum())))
    return found


def _tamed(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Values above the 98th percentile cut down to it: one pause of the whole computer is no property of an op."""
    return np.minimum(values, np.percentile(values, 98))
