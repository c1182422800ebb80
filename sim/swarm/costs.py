"""Costs over named resources: what a swarm's tasks demand of nodes and links."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sim.costs import PricedPlan, Prices, pack
from sim.demands import Demand, Row
from sim.plan import Plan
from sim.tasks import PS_PER_S, Task, Time, Work

Price = Callable[[str | None, Work], tuple[float, Sequence[Demand]]]
"""(lane, work) -> latency in s on top of the work's own, and demands by resource name."""


@dataclass(frozen=True, slots=True)
class Queue:
    """A lane as engines need it."""

    name: str
    order: str = "ready"
    servers: int = 1


class NamedCosts:
    """Implements `sim.costs.Costs` and `sim.events.Profile` over resources with capacities in any unit. repeated: ops whose tasks are
    alike by the thousand: each kind is priced once."""

    def __init__(self, capacities: Mapping[str, float], price: Price, digest: str, repeated: Collection[str] = ()) -> None:
        self.resources = tuple(capacities)
        self.capacity = np.array(list(capacities.values()), np.float64)
        self.digest = hashlib.sha256(f"{digest} {sorted(capacities.items())}".encode()).hexdigest()
        self._index = {name: i for i, name in enumerate(self.resources)}
        self._price, self._repeated = price, frozenset(repeated)
        self._prices: dict[tuple[str | None, Work], Prices] = {}

    def row(self, lane: str | None, work: Work) -> Row:
        if lane is None:
            return work.latency_ps, []
        latency_s, demands = self._price(lane, work)
        found = [(self._index[name], amount, cap, weight) for name, amount, cap, weight in demands if amount > 0]
        return work.latency_ps + round(latency_s * PS_PER_S), found

    def task(self, task: Task) -> Prices:
        key = (task.lane, task.work)
        if task.work.op not in self._repeated:
            return pack([self.row(*key)])
        if key not in self._prices:
            self._prices[key] = pack([self.row(*key)])
        return self._prices[key]

    def estimate(self, task: Task) -> Time:
        latency, demands = self.row(task.lane, task.work)
        seconds = max((amount / min(float(self.capacity[k]), cap) for k, amount, cap, _ in demands), default=0.0)
        return latency + int(np.ceil(seconds * PS_PER_S))

    def bind(self, plan: Plan) -> PricedPlan:
        """One row for each (lane, work) that occurs."""
        keys = plan.work.astype(np.int64) * (len(plan.lanes) + 1) + (plan.lane + 1)
        distinct, cls = np.unique(keys, return_inverse=True)
        pairs = [divmod(int(k), len(plan.lanes) + 1) for k in distinct]
        rows = [self.row(plan.lanes[lane - 1] if lane else None, plan.works[work]) for work, lane in pairs]
        return PricedPlan(plan, cls.astype(np.int32), pack(rows), self.resources, self.capacity)
