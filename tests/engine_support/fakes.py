"""Costs, lanes and plans small enough to write down in a test."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np

from sim.plan import Plan
from sim.tasks import Task


class Lane(NamedTuple):
    name: str
    order: str = "submitted"
    servers: int = 1


class Demand(NamedTuple):
    """Units of a resource (index), at most `cap` units/s, weight when shared."""

    resource: int
    amount: float
    cap: float = np.inf
    weight: float = 1.0


Row = tuple[int, Sequence[Demand]]
"""latency_ps and the demands."""


class FakeCosts:
    """Prices ops by name. An op without a row costs its `work.latency_ps` only."""

    def __init__(self, capacity: Mapping[str, float], rows: Mapping[str, Row]) -> None:
        self.resources = tuple(capacity)
        self.capacity = np.array(list(capacity.values()), np.float64)
        self.rows = rows

    def row(self, work: Any) -> Row:
        latency, demands = self.rows.get(work.op, (0, ()))
        return latency + work.latency_ps, demands

    def bind(self, plan: Plan) -> Any:
        prices = pack([self.row(w) for w in plan.works])
        bodies = {i: self.bind(plan.bodies[plan.body[i]]) for i in np.flatnonzero(plan.body >= 0).tolist()}
        return SimpleNamespace(
            plan=plan, cls=plan.work, prices=prices, resources=self.resources, capacity=self.capacity, bodies=bodies,
            surplus=np.array([w.variant == "surplus" for w in plan.works], np.bool_)[plan.work],
        )  # fmt: skip

    def task(self, task: Task) -> Any:
        return pack([self.row(task.work)])


def pack(rows: Sequence[Row]) -> Any:
    """The columns of `sim.costs.Prices`."""
    flat = [d for _, demands in rows for d in demands]
    return SimpleNamespace(
        latency_ps=np.array([latency for latency, _ in rows], np.int64),
        ptr=np.concatenate([[0], np.cumsum([len(demands) for _, demands in rows])]).astype(np.int32),
        resource=np.array([d[0] for d in flat], np.int16),
        amount=np.array([d[1] for d in flat], np.float64),
        cap=np.array([d[2] for d in flat], np.float64),
        weight=np.array([d[3] for d in flat], np.float64),
    )
