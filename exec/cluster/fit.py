"""Fits the profile of ranks to whole layers: few parameters for each op, none for any case of a validation grid."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exec.calibration.insitu import LIMITS, _tamed
from exec.cluster.observe import Observed
from exec.cluster.prices import SPREAD, ClusterCosts, rows_of, simulate, size_of
from sim.costs import ratio_at
from sim.machines.schema import Machine, OpRate

ROUNDS = 2
CORRECTED = "; corrected by "


def fitted(machine: Machine, observed: Sequence[Observed]) -> Machine:
    """The machine with each op corrected by what whole layers took over what the simulator says. The second round corrects
    what the first left, ops being beside others then."""
    for _ in range(ROUNDS):
        found: dict[tuple[str, str], list[NDArray[np.float64]]] = defaultdict(list)
        for seen in observed:
            for key, rows in _durations(machine, seen):
                found[key].append(rows)
        rows = {(r.lane, r.op): r for r in machine.ops}
        for (family, op), parts in found.items():
            _correct(rows, family, op, np.concatenate(parts))
        machine = machine.model_copy(update={"ops": tuple(rows.values())})
    found = ((1.0, _spread(observed)),)
    spread = OpRate(op=SPREAD, lane="gpu", ratio=found, source="calibrated: experts tasks of whole layers, from run to run")
    return machine.model_copy(update={"ops": (*(row for row in machine.ops if row.op != SPREAD), spread)})


def _spread(observed: Sequence[Observed]) -> float:
    """Standard deviation of the logarithm of what the same experts task took in different runs."""
    squares, freedoms = 0.0, 0
    for seen in observed:
        experts = np.array([work.op == "experts" for work in seen.plan.works])[seen.plan.work]
        runs = seen.settled if len(seen.settled) > 1 else seen.samples
        logs = np.log([np.maximum(s.durations_s[experts], 1e-9) for s in runs])
        squares += float(_tamed(((logs - logs.mean(axis=0)) ** 2).ravel()).sum())
        freedoms += (len(logs) - 1) * int(experts.sum())
    return float(np.sqrt(squares / max(1, freedoms)))


def _durations(machine: Machine, seen: Observed) -> Iterator[tuple[tuple[str, str], NDArray[np.float64]]]:
    """By (family of lanes, op): [tasks, 3] size, seconds measured, seconds simulated."""
    costs = ClusterCosts(machine, seen.order, rows_of(seen.outputs))
    plan, run = costs.routed(seen.plan), simulate(machine, seen.order, seen.plan, seen.outputs, draws=0)
    sizes = np.array([size_of(work) for work in plan.works])[plan.work]
    ops = np.array([work.op for work in plan.works])[plan.work]
    families = np.array([machine.lane[lane].families[0] for lane in plan.lanes] + ["host"])[plan.lane]
    spans = (run.end_ps - run.start_ps) / 1e12
    for family, op in sorted(set(zip(families.tolist(), ops.tolist(), strict=True))):
        at = (families == family) & (ops == op)
        yield (family, op), np.stack([sizes[at], seen.durations_s[at], spans[at]], axis=1)


def _correct(rows: dict[tuple[str, str], OpRate], family: str, op: str, tasks: NDArray[np.float64]) -> None:
    """Compute ops by a latency and a ratio: few parameters, fitted to medians, because a shared computer disturbs single tasks
    much. What waits rather than computes by a latency, the mean, because the long waits are part of it."""
    _, measured, simulated = tasks.T
    name = op if op in ("put", "barrier") else f"task.{op}" if family == "gpu" else "*"
    row = rows[family, name]
    update: dict[str, Any] = {"source": f"{row.source.partition(CORRECTED)[0]}{CORRECTED}{len(measured)} tasks of whole layers"}
    if family == "gpu":
        before = ratio_at(row.ratio, 1.0)
        base = simulated - row.latency_s
        update["latency_s"] = latency_s = max(0.0, float(np.median(measured - _slope(base, measured) * base)))
        ratio = float(np.median((measured - latency_s) / np.maximum(base, 1e-9)))
        update["ratio"] = ((1.0, float(np.clip(ratio * before, *LIMITS))),)
    else:
        update["latency_s"] = max(0.0, row.latency_s + float(_tamed(measured - simulated).mean()))
    rows[family, name] = row.model_copy(update=update)


def _slope(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    """Median of the slopes between all pairs (Theil 1950, Sen 1968): half of the points may be far off."""
    i, j = np.triu_indices(len(x), 1)
    apart = np.abs(x[i] - x[j]) > 1e-6
    slopes = (y[i] - y[j])[apart] / (x[i] - x[j])[apart]
    return float(np.clip(np.median(slopes), *LIMITS)) if len(slopes) else 1.0
