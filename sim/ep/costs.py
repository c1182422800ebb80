"""EpCosts: prices the Plans of expert parallelism on a machine of ranks, by what the router really chose."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from sim.costs import PricedPlan, Prices, pack
from sim.demands import Row
from sim.ep.layer import MoELayer
from sim.ep.prices import Kernels, OpPrices
from sim.ep.routing import Counts, part
from sim.machines.parts import Lane
from sim.machines.schema import Machine
from sim.ops import FREE
from sim.plan import Plan, plan_of
from sim.schedulers.ep.base import ExpertParallel
from sim.tasks import PS_PER_S, Task, Time, Work

NO_COST = FREE | {"barrier"}


def with_lanes(machine: Machine, scheduler: ExpertParallel) -> Machine:
    """A machine of ranks (`sim.fabric.expand`) with the further lanes that a scheduler's persistent kernels have."""
    added = []
    for name in scheduler.lanes:
        family, _, rest = name.partition(".")
        if name not in machine.lane:
            order, servers = scheduler.orders.get(family, "ready"), scheduler.servers.get(family, 1)
            own = {"name": name, "order": order, "servers": servers, "families": (family,)}
            device = machine.lane[f"gpu.{rest.partition('.')[0]}"]
            added.append(Lane.model_construct(**{**dict(device), **own}))  # there may be thousands: nothing to check anew
    return machine.model_copy(update={"lanes": (*machine.lanes, *added)})


class EpCosts:
    """Implements `sim.costs.Costs` and `sim.events.Profile`.

    counts [ranks, experts]: rows that are sent, padding included where a system pads. chunks: parts that the scheduler cuts them
    into. Upper bounds in the works of kernel-level schedulers give way to these.
    """

    def __init__(self, machine: Machine, layer: MoELayer, counts: Counts, kernels: Kernels, *, chunks: int = 1) -> None:
        self.machine, self.layer, self.counts = machine, layer, counts
        self.prices = OpPrices(machine, layer, kernels)
        self.parts = [part(counts, c, chunks) for c in range(chunks)]
        self.resources = tuple(machine.resources)
        self.capacity = np.array([r.capacity for r in machine.resources.values()], np.float64)
        self._index = {name: i for i, name in enumerate(self.resources)}
        self._rows: dict[tuple[str | None, Work], Row] = {}

    @property
    def lanes(self) -> tuple[Lane, ...]:
        return self.machine.lanes

    @cached_property
    def digest(self) -> str:
        counts = hashlib.sha256(np.ascontiguousarray(self.counts).tobytes()).hexdigest()
        return hashlib.sha256(f"{self.machine.digest} {self.layer!r} {self.prices.kernels!r} {counts}".encode()).hexdigest()

    def estimate(self, task: Task) -> Time:
        """Solo time in ps."""
        return self.solo_ps(task.lane, self.exact(task.work, task.rank, task.microbatch, task.page))

    def solo_ps(self, lane: str | None, work: Work) -> Time:
        latency, demands = self.row(lane, work)
        seconds = max((amount / min(self.capacity[k], cap) for k, amount, cap, _ in demands), default=0.0)
        return latency + int(np.ceil(seconds * PS_PER_S))

    def row(self, lane: str | None, work: Work) -> Row:
        """Price of one (lane, exact work); cached."""
        key = (lane, work)
        if key not in self._rows:
            self._rows[key] = self._price(lane, work)
        return self._rows[key]

    def _price(self, lane: str | None, work: Work) -> Row:
        if lane is None or work.op in NO_COST:
            return work.latency_ps, []
        latency_s, demands = self.prices.price(lane, work)
        rows = [(self._index[name], amount, cap, weight) for name, amount, cap, weight in demands if amount > 0]
        return work.latency_ps + round(latency_s * PS_PER_S), rows

    def task(self, task: Task) -> Prices:
        return self.bind(plan_of([replace(task, number=0, deps=(), releases=())])).prices

    def bind(self, plan: Plan) -> PricedPlan:
        plan = self.routed(plan)
        key = plan.work.astype(np.int64) * (len(plan.lanes) + 1) + plan.lane + 1
        used = np.zeros(len(plan.works) * (len(plan.lanes) + 1), np.bool_)
        used[key] = True
        keys = np.flatnonzero(used).tolist()
        lanes: Sequence[str | None] = (None, *plan.lanes)
        rows = [self.row(lanes[k % len(lanes)], plan.works[k // len(lanes)]) for k in keys]
        cls = (np.cumsum(used, dtype=np.int32) - 1)[key]
        return PricedPlan(plan, cls, pack(rows), self.resources, self.capacity)

    def routed(self, plan: Plan) -> Plan:
        """The Plan with rows and bytes that this routing gives in place of upper bounds."""
        bounds = np.array([self._is_bound(work) for work in plan.works], np.bool_)
        if not bounds.any():
            return plan
        table = {work: i for i, work in enumerate(plan.works)}
        column = plan.work.copy()
        for i in np.flatnonzero(bounds[plan.work]).tolist():
            work = self.exact(plan.works[plan.work[i]], int(plan.rank[i]), int(plan.microbatch[i]), int(plan.page[i]))
            column[i] = table.setdefault(work, len(table))
        return replace(plan, works=tuple(table), work=column)

    @staticmethod
    def _is_bound(work: Work) -> bool:
        return work.op == "experts" or (work.op == "put" and not work.messages)

    def exact(self, work: Work, rank: int, chunk: int, page: int) -> Work:
        """What a put or a rank's experts really have to do. A put with messages says itself."""
        if not self._is_bound(work):
            return work
        here = self.experts_of(rank)
        if work.op == "experts":
            rows = self.parts[chunk][:, here].sum(axis=0) if page < 0 else self.parts[chunk][page, here]
            return work._replace(tokens=int(rows.sum()), expert_tokens=tuple(sorted(rows.tolist(), reverse=True)))
        sent = self.parts[chunk][rank, self.experts_of(page)] if work.variant == "dispatch" else self.parts[chunk][page, here]
        return work._replace(tokens=int(sent.sum()), bytes=int(sent.sum()) * self.layer.row_bytes)

    def experts_of(self, rank: int) -> slice:
        each = self.counts.shape[1] // self.counts.shape[0]
        return slice(rank * each, (rank + 1) * each)

    def resource(self, name: str) -> int:
        return self._index[name]

    def amounts(self, priced: PricedPlan) -> NDArray[np.float64]:
        """[resources], the sum of what all tasks demand of each."""
        p = priced.prices
        times = np.bincount(priced.cls, minlength=len(p.latency_ps))
        owner = np.repeat(np.arange(len(p.latency_ps)), np.diff(p.ptr))
        return np.bincount(p.resource, weights=p.amount * times[owner], minlength=len(self.resources)).astype(np.float64)
