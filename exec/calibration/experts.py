"""Correction of the ops of decodes whose experts come from disk, by runs of their own."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from exec.calibration.insitu import LIMITS
from exec.pool import run as pool
from exec.pool.make import make_manifest
from exec.pool.pool import Store
from exec.prompts import byte_prompts
from exec.weights import random_weights, save_hf
from sim.columns import columns_of
from sim.demands import ratio_at, size_of
from sim.engines.run import DONE, Run
from sim.events import Request
from sim.machines.schema import Machine, OpRate
from sim.models.spec import ModelSpec
from sim.ops import COMPUTE
from sim.tasks import Task

LAYERS = 2
PROMPT = 24
ROUNDS = 2
REACTS = ("gate", "cpu_experts")
"""Ops of an expert cache alone that its scheduler answers."""
SHARED = frozenset({"embed", "pre_attn", "attn_decode", "sample"})
"""Ops of every schedule: what `insitu` found for them stays, these runs add sizes that it has not seen."""


class Probe(NamedTuple):
    """ram, device: share of all experts that each holds."""

    batch: int
    gen: int
    ram: float
    device: float
    work: str


PROBES = (Probe(1, 14, 1.0, 0.6, "gpu"), Probe(3, 8, 0.8, 0.75, "gpu"), Probe(8, 6, 1.0, 1.5, "gpu"), Probe(2, 8, 1.0, 0.5, "cpu-expert"))
"""Loads that wait, loads that wait for the disk, all experts there, experts on the CPU."""


def job_of(probe: Probe, machine: Machine, spec: ModelSpec) -> pool.CacheJob:
    slots = spec.layers * spec.experts * pool.slot_bytes(spec)
    caching = pool.caching_for(spec, int(probe.ram * slots), int(probe.device * slots), evict="lru", work=probe.work)
    requests = tuple(Request(i, PROMPT, probe.gen, probe.gen) for i in range(probe.batch))
    return pool.CacheJob(spec, machine, caching, probe.batch, requests, (probe.gen,) * probe.batch)


def corrected(machine: Machine, model: ModelSpec, say: Callable[[str], None]) -> Machine:
    """The machine with rows for gate, experts, cpu_experts, combine and for single copies of experts.

    Writes a small checkpoint of the model's shape to the folder for temporary files.
    """
    spec = replace(model, layers=LAYERS)
    with TemporaryDirectory(prefix="tandem-calibration-") as folder:
        save_hf(random_weights(spec, 0), spec, Path(folder))
        make_manifest(Path(folder))
        with Store(Path(folder), spec) as store:
            runs = []
            for k, probe in enumerate(PROBES):
                say(f"experts from disk: {k + 1} of {len(PROBES)}")
                runs.append(pool.run(job_of(probe, machine, spec), store, byte_prompts([PROMPT] * probe.batch)))
    for _ in range(ROUNDS):
        machine = _one_round(machine, runs)
    return _reacting(machine, runs)


def _one_round(machine: Machine, runs: list[pool.Ran]) -> Machine:
    spans: dict[tuple[str, str, int], tuple[list[float], list[float]]] = defaultdict(lambda: ([], []))
    for ran in runs:
        simulated = pool.twin(replace(ran, job=replace(ran.job, machine=machine)))
        for which, run in enumerate((ran.outcome.run, simulated.run)):
            for key, seconds in _durations(run):
                spans[key][which].extend(seconds.tolist())
    rows = {(r.lane, r.op): r for r in machine.ops}
    for (lane, op, octave), (measured, expected) in sorted(spans.items()):
        if measured and expected:
            name = f"task.{op}" if op in COMPUTE else op
            old = rows.get((lane, name)) or (OpRate(op=name, lane=lane, source="calibrated") if op in COMPUTE else rows[lane, "*"])
            paced = machine.lane[lane].paced_bytes_per_s is not None
            rows[lane, name] = _row(old.model_copy(update={"op": name}), 2.0**octave, np.array(measured), np.array(expected), paced)
    return machine.model_copy(update={"ops": tuple(rows.values())})


def _reacting(machine: Machine, runs: list[pool.Ran]) -> Machine:
    """With the time that passes between the end of a task that the scheduler hears of and the first start that it brings
    about, as latency of that task: the scheduler itself, and the thread that drives it."""
    gaps: dict[tuple[str, str], list[float]] = defaultdict(list)
    for ran in runs:
        run = ran.outcome.run
        tasks = [task for task in run.sources if isinstance(task, Task)]
        start = dict(zip(run.number.tolist(), run.start_ps.tolist(), strict=True))
        end = dict(zip(run.number.tolist(), run.end_ps.tolist(), strict=True))
        for task, after in zip(tasks, tasks[1:], strict=False):
            if task.op in REACTS and task.lane is not None:
                gaps[task.lane, task.op].append((start[after.number] - end[task.number]) / 1e12)
    rows = {(r.lane, r.op): r for r in machine.ops}
    for (lane, op), seconds in gaps.items():
        latency_s = max(0.0, float(np.median(seconds)))
        rows[lane, f"task.{op}"] = rows[lane, f"task.{op}"].model_copy(update={"latency_s": latency_s})
    return machine.model_copy(update={"ops": tuple(rows.values())})


def _durations(run: Run) -> Iterator[tuple[tuple[str, str, int], NDArray[np.float64]]]:
    """Seconds of the tasks by (lane, op, octave of sizes); copies of whole experts have one size."""
    columns = columns_of(run.sources)
    octave = np.array([int(np.log2(max(size_of(w), 1.0))) for w in columns.works])[columns.work]
    seconds = (run.end_ps - run.start_ps) / 1e12
    for i, lane in enumerate(run.lanes):
        mine = (run.lane == i) & (run.status == DONE)
        for op in sorted({columns.works[w].op for w in np.unique(columns.work[mine]).tolist()}):
            at = mine & columns.where_op(op)
            for o in np.unique(octave[at]).tolist():
                yield (lane, op, o), seconds[at & (octave == o)]


def _row(row: OpRate, size: float, measured: NDArray[np.float64], expected: NDArray[np.float64], paced: bool) -> OpRate:
    """As `insitu` corrects it: a paced copy by what it takes beyond, all else by a ratio at this size. Means over tasks, the
    longest tenth of them cut: what counts is the lane's time, but for the pauses of the whole computer."""
    source = f"calibrated: {len(measured)} tasks of whole runs with experts from disk"
    mean, simulated = float(np.minimum(measured, np.percentile(measured, 90)).mean()), max(float(expected.mean()), 1e-9)
    if paced:
        return row.model_copy(update={"latency_s": max(0.0, row.latency_s + mean - simulated), "source": source})
    ratio = float(np.clip(ratio_at(row.ratio, size) * mean / simulated, *LIMITS))
    others = {x: r for x, r in row.ratio if abs(np.log2(x) - np.log2(size)) >= 1}
    if len(others) < len(row.ratio) and row.op.removeprefix("task.") in SHARED:
        return row
    return row.model_copy(update={"ratio": tuple(sorted({**others, size: ratio}.items())), "source": source})
