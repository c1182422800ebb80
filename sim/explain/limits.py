"""What the time on the critical path is spent on: which resource, asked for by which lane.

Alone, a task takes its latency and then as long as the resource that it needs most (the binding
roof of the hierarchical roofline). If it took longer, somebody shared a resource with it: the one of
its resources that was used most while it ran.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sim.bounds import solo_ps
from sim.columns import plans_of
from sim.costs import CostModel, Prices
from sim.engines.run import Run
from sim.report.critical import CriticalPath
from sim.tasks import PS_PER_S

ROUNDING_PS = 2.0
"""Ends are rounded up: what a task takes longer than its solo time without anybody sharing."""
LATENCY, WAITING = "latency", "waiting"


@dataclass(frozen=True, slots=True)
class Limit:
    """One row of what the critical path is made of.

    resource: of the machine, "latency" of ops, or "waiting" for what is no task (lane "" then).
    seconds: time on the path that it binds; shared_s: the part of it in which others used it too. reach: share
    of the resource that these tasks get when they run alone, by the op table; 1 for latency and waiting.
    """

    lane: str
    resource: str
    seconds: float
    shared_s: float
    share: float
    reach: float


@dataclass(frozen=True, slots=True)
class Spans:
    """Solo time of n tasks: latency_ps and fluid_ps [n], resource [n] that binds the fluid part (-1: none), and the
    matrix uses [n, resources] of full-speed demands over capacities in ps."""

    latency_ps: NDArray[np.float64]
    fluid_ps: NDArray[np.float64]
    binding: NDArray[np.int64]
    cls: NDArray[np.int64]
    uses: NDArray[np.float64]

    @property
    def solo_ps(self) -> NDArray[np.float64]:
        return self.latency_ps + self.fluid_ps


def spans(run: Run, costs: CostModel) -> Spans:
    """Price what a run was given; tasks in order of their numbers."""
    parts, offset = [], 0
    for plan in plans_of(run.sources):
        priced = costs.bind(plan)
        classes = _classes(priced.prices, costs.capacity)
        parts.append((*classes, priced.cls.astype(np.int64) + offset))
        offset += len(classes[0])
    latency, fluid, binding, uses, cls = (np.concatenate(column) for column in zip(*parts, strict=True))
    return Spans(latency[cls], fluid[cls], binding[cls], cls, uses)


def _classes(
    prices: Prices, capacity: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64], NDArray[np.float64]]:
    """Latency, fluid time, binding resource [c] and uses [c, resources] of each price class."""
    c = len(prices.latency_ps)
    owner = np.repeat(np.arange(c), np.diff(prices.ptr))
    uses, alone = np.zeros((c, len(capacity))), np.zeros((c, len(capacity)))
    uses[owner, prices.resource] = prices.amount / capacity[prices.resource] * PS_PER_S
    alone[owner, prices.resource] = prices.amount / np.minimum(capacity[prices.resource], prices.cap)
    binding = np.where(alone.any(axis=1), alone.argmax(axis=1), -1)
    return prices.latency_ps.astype(np.float64), solo_ps(prices, capacity) - prices.latency_ps, binding, uses


def limits(run: Run, costs: CostModel, path: CriticalPath, priced: Spans) -> list[Limit]:
    """Rows of the critical path's time, the largest first; they add up to the makespan."""
    rows = path.rows
    took = (run.end_ps - run.start_ps)[rows].astype(np.float64)
    latency, fluid, binding = priced.latency_ps[rows], priced.fluid_ps[rows], priced.binding[rows]
    extra = took - latency - fluid
    extra[extra <= ROUNDING_PS] = 0.0
    sharing = np.where(extra > 0, _busiest(run, priced, rows), binding)
    count = len(costs.resources)
    lane = run.lane[rows].astype(np.int64) + 1
    on = np.where(binding < 0, count, binding)
    seconds, shared, alone, full = (np.zeros((len(run.lanes) + 1, count + 1)) for _ in range(4))
    np.add.at(seconds, (lane, np.full(len(lane), count)), latency)
    at_full = np.where(binding < 0, fluid, priced.uses[priced.cls[rows], binding])
    for table, amount in ((seconds, took - latency - extra), (alone, fluid), (full, at_full)):
        np.add.at(table, (lane, on), amount)
    for table in (seconds, shared):
        np.add.at(table, (lane, np.where(sharing < 0, count, sharing)), extra)
    reach = np.divide(full, alone, out=np.ones_like(full), where=alone > 0)
    reach[:, count] = 1.0
    names = (*costs.resources, LATENCY)
    found = [
        _limit(("", *run.lanes)[i], names[k], seconds[i, k], shared[i, k], reach[i, k], run.makespan_ps)
        for i, k in np.argwhere(seconds > 0).tolist()
    ]
    waited = float(path.wait_ps.sum())
    return sorted([*found, *([_limit("", WAITING, waited, 0.0, 1.0, run.makespan_ps)] if waited else [])], key=lambda x: -x.seconds)


def _limit(lane: str, resource: str, ps: float, shared_ps: float, reach: float, makespan_ps: int) -> Limit:
    return Limit(lane, resource, ps / PS_PER_S, shared_ps / PS_PER_S, ps / makespan_ps, float(reach))


def _busiest(run: Run, priced: Spans, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Of each row's resources the one that was used most while it ran; -1 for a task that uses none."""
    used = np.full((len(rows), priced.uses.shape[1]), -1.0)
    took = np.maximum(1, run.end_ps - run.start_ps)
    for k in range(used.shape[1]):
        amount = priced.uses[priced.cls, k]
        mine = amount[rows] > 0
        if mine.any():
            level = _Drawn(run.start_ps, run.end_ps, amount / took)
            at = rows[mine]
            used[mine, k] = (level.until(run.end_ps[at]) - level.until(run.start_ps[at])) / took[at]
    return np.where(used.max(axis=1) > 0, used.argmax(axis=1), -1)


class _Drawn:
    """What all tasks have drawn from a resource until a time, each at an even rate over its run."""

    def __init__(self, start: NDArray[np.int64], end: NDArray[np.int64], rate: NDArray[np.float64]) -> None:
        some = rate > 0
        times: NDArray[np.int64] = np.concatenate([start[some], end[some]])
        order = np.argsort(times, kind="stable")
        self._times = times[order]
        level = np.cumsum(np.concatenate([rate[some], -rate[some]])[order])
        self._drawn = np.concatenate([np.zeros(1), np.cumsum(level[:-1] * np.diff(self._times))])

    def until(self, times: NDArray[np.int64]) -> NDArray[np.float64]:
        drawn: NDArray[np.float64] = np.interp(times, self._times, self._drawn)
        return drawn
