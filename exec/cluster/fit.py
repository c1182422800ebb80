"""Fits the profile of ranks to whole layers: few parameters for each op, none for any case of a validation grid."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from exec.calibration.insitu import LIMITS, _tamed
from exec.cluster.backend import PASSING
from exec.cluster.machine import NETWORK
from exec.cluster.observe import Observed
from exec.cluster.prices import HANDED, SPREAD, ClusterCosts, rows_of, simulate
from sim.demands import ratio_at
from sim.machines.schema import Machine, OpRate

ROUNDS = 2
CORRECTED = "; corrected by "
HANDS = ("launch", "enter")


def fitted(machine: Machine, observed: Sequence[Observed]) -> Machine:
    """The machine with each op corrected by what whole layers took over what the simulator says. The second round corrects
    what the first left, ops being beside others then. `HANDED` is fitted where ranks compute on the cores that hand out."""
    on_cores = not any(seen.order.device for seen in observed)
    for _ in range(ROUNDS):
        if on_cores:
            machine = _handing_corrected(machine, observed)
        found: dict[tuple[str, str], list[_Tasks]] = defaultdict(list)
        for seen in observed:
            for key, tasks in _durations(machine, seen):
                found[key].append(tasks)
        rows = {(r.lane, r.op): r for r in machine.ops}
        for (family, op), parts in found.items():
            _correct(rows, family, op, _joined(parts))
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


def _handing_corrected(machine: Machine, observed: Sequence[Observed]) -> Machine:
    """With `HANDED` such that passing on takes as much of what the cores do, beside the ops that compute, as it really did: a share,
    because both are as much slower when the computer is. What hands out tasks and takes in messages is in no op's time."""
    found = []
    for seen in observed:
        passing_s, computing_s = core_s(machine, seen)
        really = float(np.median([s.cpu_s / s.computed_s - 1.0 for s in seen.settled]))
        launches = int(np.array([work.op in HANDS for work in seen.plan.works])[seen.plan.work].sum())
        found.append((really * computing_s - passing_s) / launches)
    before_s = sum(row.curve[0][1] for row in machine.ops if row.op == HANDED)
    curve = ((1.0, max(1e-9, before_s + float(np.median(found)))),)
    row = OpRate(op=HANDED, lane="host", curve=curve, source="calibrated: CPU time of ranks in whole layers, outside the ops that compute")
    return machine.model_copy(update={"ops": (*(r for r in machine.ops if r.op != HANDED), row)})


def core_s(machine: Machine, seen: Observed) -> tuple[float, float]:
    """Seconds of the cores as priced, for passing on and for computing."""
    priced = ClusterCosts(machine, seen.order, rows_of(seen.outputs)).bind(seen.plan)
    prices = priced.prices
    cores = np.array([name.startswith("cores.") for name in priced.resources])
    demands = np.add.reduceat(np.append(prices.amount * cores[prices.resource], 0.0), prices.ptr[:-1]) * (np.diff(prices.ptr) > 0)
    compute = np.array([work.op not in PASSING and work.op != "barrier" for work in priced.plan.works])[priced.plan.work]
    each = demands[priced.cls]
    return float(each[~compute].sum()), float(each[compute].sum())


class _Tasks(NamedTuple):
    """[tasks] each. alone_s: as priced. A task is stretched by what runs beside it: simulated_s over alone_s."""

    measured_s: NDArray[np.float64]
    simulated_s: NDArray[np.float64]
    alone_s: NDArray[np.float64]


def _durations(machine: Machine, seen: Observed) -> Iterator[tuple[tuple[str, str], _Tasks]]:
    """By (family of lanes, op)."""
    costs = ClusterCosts(machine, seen.order, rows_of(seen.outputs))
    plan, run = costs.routed(seen.plan), simulate(machine, seen.order, seen.plan, seen.outputs, draws=0)
    ops = np.array([work.op for work in plan.works])[plan.work]
    lanes: Sequence[str | None] = (*plan.lanes, None)
    families = np.array([machine.lane[lane].families[0] if lane else "comm" for lane in lanes])[plan.lane]
    alone_s = np.array([costs.solo_ps(lanes[k], plan.works[w]) for k, w in zip(plan.lane.tolist(), plan.work.tolist(), strict=True)]) / 1e12
    spans_s = (run.end_ps - run.start_ps) / 1e12
    for family, op in sorted(set(zip(families.tolist(), ops.tolist(), strict=True))):
        at = (families == family) & (ops == op)
        yield (family, op), _Tasks(seen.durations_s[at], spans_s[at], alone_s[at])


def _joined(parts: Sequence[_Tasks]) -> _Tasks:
    return _Tasks(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def _correct(rows: dict[tuple[str, str], OpRate], family: str, op: str, tasks: _Tasks) -> None:
    """Compute ops by a latency and a ratio, experts, which are long, by a ratio alone: few parameters, fitted to medians, because
    a shared computer disturbs single tasks much. What waits rather than computes by a latency, the mean, because the long waits
    are part of it; puts over a network by the median: what holds long messages up, both ways being full, is no latency of short ones."""
    name = op if op in ("put", "barrier") else f"task.{op}" if family == "gpu" else "*"
    row = rows[family, name]
    update: dict[str, Any] = {
        "source": f"{row.source.partition(CORRECTED)[0]}{CORRECTED}{len(tasks.measured_s)} tasks of whole layers"
    }
    if family == "gpu":
        base_s = np.maximum(1e-9, tasks.alone_s - row.latency_s) / ratio_at(row.ratio, 1.0)
        alone_s = tasks.measured_s * tasks.alone_s / np.maximum(tasks.simulated_s, 1e-9)
        latency_s = 0.0 if op == "experts" else max(0.0, float(np.median(alone_s - _slope(base_s, alone_s) * base_s)))
        update["latency_s"] = latency_s
        update["ratio"] = ((1.0, float(np.clip(np.median((alone_s - latency_s) / base_s), *LIMITS))),)
    else:
        left_s = tasks.measured_s - tasks.simulated_s
        more_s = float(np.median(left_s) if family == NETWORK else _tamed(left_s).mean())
        update["latency_s"] = max(0.0, row.latency_s + more_s)
    rows[family, name] = row.model_copy(update=update)


def _slope(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    """Median of the slopes between all pairs (Theil 1950, Sen 1968): half of the points may be far off."""
    i, j = np.triu_indices(len(x), 1)
    apart = np.abs(x[i] - x[j]) > 1e-6
    slopes = (y[i] - y[j])[apart] / (x[i] - x[j])[apart]
    return float(np.clip(np.median(slopes), *LIMITS)) if len(slopes) else 1.0
