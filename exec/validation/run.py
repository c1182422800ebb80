"""Runs cases on both clocks, one after the other; what is finished stays finished."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from exec.calibration.links import relink
from exec.devices import DeviceName
from exec.execute import execute, simulated_twin, spec_of, weights_of
from exec.validation.grid import Case
from exec.validation.score import busy_errors, rank_agreement, relative, stratum, summarize
from exec.weights import Weights
from sim.bounds import lane_totals_s
from sim.errors import UserError
from sim.job import Job, prepare
from sim.machines.schema import Machine
from sim.schedulers.policy import Policy
from sim.workloads.lengths import Fixed, Uniform
from sim.workloads.schema import Workload


def job_of(case: Case, machine: Machine, device: DeviceName = DeviceName.cpu) -> Job:
    """The job of one case. Raises UserError for a case that cannot be run."""
    lengths = Uniform(min=max(1, case.prompt // 2), max=case.prompt) if case.ragged else Fixed(tokens=case.prompt)
    workload = Workload(name="case", source="a case of the validation grid", prompt=lengths, generation=Fixed(tokens=case.gen))
    policy = Policy(batch=case.batch, microbatch=case.microbatch)
    return prepare(spec_of(case.model, device), relink(machine, case.rates), workload, case.scheduler, policy, seed=case.seed)


class Finished:
    """Cases that are done, kept in a file of JSON lines from one run of the command to the next."""

    def __init__(self, path: Path, machine: Machine) -> None:
        self.path = path
        self._key = machine.digest
        self._rows: dict[str, dict[str, Any]] = {}
        if path.exists():
            for line in path.read_text().splitlines():
                self._take(line)

    def _take(self, line: str) -> None:
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            return  # the line that an interruption cut off
        if row["machine"] == self._key:
            self._rows[row["case"]] = row["result"]

    def __len__(self) -> int:
        return len(self._rows)

    def get(self, case: Case, repeats: int) -> dict[str, Any] | None:
        return self._rows.get(f"{case.model_dump_json()} x {repeats}")

    def add(self, case: Case, repeats: int, result: dict[str, Any]) -> None:
        name = f"{case.model_dump_json()} x {repeats}"
        self._rows[name] = result
        try:
            with self.path.open("a") as f:
                f.write(json.dumps({"machine": self._key, "case": name, "result": result}) + "\n")
        except OSError as e:
            raise UserError(f"{self.path}: finished cases cannot be kept there ({e.strerror})") from None

    def forget(self) -> None:
        self.path.unlink(missing_ok=True)


def validate(
    machine: Machine, cases: Sequence[Case], repeats: int, finished: Finished, say: Callable[[str], None] = lambda text: None,
    device: DeviceName = DeviceName.cpu,
) -> dict[str, Any]:  # fmt: skip
    """The object of `validate --json`. Checks all cases before it runs the first."""
    for i, case in enumerate(cases):
        try:
            job_of(case, machine, device)
        except UserError as e:
            raise UserError(f"--grid: case {i + 1} ({case.scheduler}): {e}") from None
    weights: dict[str, Weights] = {}
    rows = []
    for i, case in enumerate(cases):
        row = finished.get(case, repeats)
        if row is None:
            if case.model not in weights:
                weights = {case.model: weights_of(case.model, spec_of(case.model, device), 0)}
            row = _one(case, machine, weights[case.model], repeats, device)
            finished.add(case, repeats, row)
        say(f"{i + 1} of {len(cases)}: {case.scheduler}, {row['stratum']}, error {row['error']:+.1%}")
        rows.append(row)
    ranked = rank_agreement([(c, r["simulated_s"], r["measured_s"]) for c, r in zip(cases, rows, strict=True)])
    return {"machine": machine.name, "repeats": repeats, "cases": rows, **summarize(rows), "rank_agreement": ranked}


def _one(case: Case, machine: Machine, weights: Weights, repeats: int, device: DeviceName) -> dict[str, Any]:
    """Run a case `repeats` times; its simulation is driven by the routing of the first run."""
    job = job_of(case, machine, device)
    runs = [execute(job, weights, record_routing=True, device=device) for _ in range(repeats)]
    twin = simulated_twin(runs[0])
    makespans = [r.summary["makespan_s"] for r in runs]
    measured_s, simulated_s = float(np.median(makespans)), twin.summary["makespan_s"]
    busy = {lane: float(np.median([r.summary["lanes"][lane]["busy_s"] for r in runs])) for lane in runs[0].summary["lanes"]}
    naive_s = max(lane_totals_s(twin.run.sources, twin.costs).values())
    return {
        **{k: v for k, v in case.model_dump().items() if v is not None},
        "clock": runs[0].summary["clock"],
        "stratum": stratum({lane: b / measured_s for lane, b in busy.items()}),
        "simulated_s": simulated_s,
        "measured_s": measured_s,
        "repeat_spread": (max(makespans) - min(makespans)) / measured_s,
        "error": relative(simulated_s, measured_s),
        "lane_busy_error": busy_errors({k: v["busy_s"] for k, v in twin.summary["lanes"].items()}, busy, measured_s),
        "utilization": {lane: b / measured_s for lane, b in busy.items()},
        "naive_s": naive_s,
        "naive_error": relative(naive_s, measured_s),
    }
