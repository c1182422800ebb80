"""PlacedCosts: prices Plans of placed experts by what each row's router chose, and tells what the routers of a simulated run chose."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from functools import cached_property
from typing import Protocol

import numpy as np

from sim.demands import Demand, Row
from sim.ep import names
from sim.ep.chosen import Chosen
from sim.ep.copies import Copies, Ints, copies_of
from sim.ep.costs import EpCosts
from sim.ep.layer import MoELayer
from sim.ep.prices import Kernels
from sim.events import Result
from sim.machines.parts import Resource
from sim.machines.schema import Machine
from sim.plan import Plan
from sim.tasks import PS_PER_S, Task, Work

LOAD_BYTES_PER_S = 1e9
"""Rate at which an expert that nobody alive holds comes from where weights are kept, where the machine's op table has no `load`
(guessed)."""

Parts = dict[tuple[int, int, int], Ints]
"""(step, layer, source) -> rows that each copy serves [copies]."""


class Prices(Protocol):
    """What ops cost on a lane: latency in s, and demands."""

    def price(self, lane: str, work: Work) -> tuple[float, list[Demand]]: ...


def with_losses(machine: Machine, ranks: int) -> Machine:
    """The machine with the resources whose changes tell a scheduler of ranks that are lost and that come."""
    alive = {names.alive(r): Resource(kind="cores", capacity=1, source="whether the rank is there") for r in range(ranks)}
    return machine.model_copy(update={"resources": {**machine.resources, **alive}})


class PlacedCosts(EpCosts):
    """`EpCosts` for `sim.schedulers.ep.rebalancing`. prices: by the machine's op table. header_rows: that a put sends before its rows."""

    def __init__(
        self, machine: Machine, layer: MoELayer, ranks: int, chosen: Chosen, prices: Prices | None = None, header_rows: int = 0
    ) -> None:
        super().__init__(machine, layer, np.zeros((ranks, layer.experts), np.int64), Kernels({}))
        if prices is not None:
            self.prices = prices  # type: ignore[assignment]
        self.ranks, self.chosen, self._header_rows, self._guessed = ranks, chosen, header_rows, prices is None

    @cached_property
    def digest(self) -> str:
        chosen = hashlib.sha256(np.ascontiguousarray(self.chosen.table).tobytes()).hexdigest()
        how = f"{type(self.prices).__name__} {self._header_rows}"
        return hashlib.sha256(f"{self.machine.digest} {self.layer!r} {self.ranks} {chosen} {how}".encode()).hexdigest()

    def outcome(self, task: Task) -> Result:
        """What a gate's routers chose."""
        if task.op != "gate":
            return Result()
        ids = self.chosen.rows(task.requests, task.work.expert_tokens, task.layer)
        return Result(experts=tuple(np.bincount(ids.ravel(), minlength=self.layer.experts).tolist()))

    def _price(self, lane: str | None, work: Work) -> Row:
        if work.op == "load" and self._guessed:
            return round(work.bytes / LOAD_BYTES_PER_S * PS_PER_S), []
        return super()._price(lane, work)

    def routed(self, plan: Plan) -> Plan:
        copies = copies_of(plan, self.ranks, self.layer.experts)
        parts = self._parts(plan, copies)
        table = {work: i for i, work in enumerate(plan.works)}
        column = plan.work.copy()
        bounds = np.array([work.op in ("experts", "put") for work in plan.works], np.bool_)
        for i in np.flatnonzero(bounds[plan.work]).tolist():
            at = int(plan.step[i]), int(plan.layer[i])
            work = self._exact(plan.works[plan.work[i]], int(plan.rank[i]), int(plan.page[i]), at, parts, copies)
            column[i] = table.setdefault(work, len(table))
        return replace(plan, works=tuple(table), work=column)

    def _parts(self, plan: Plan, copies: dict[int, Copies]) -> Parts:
        parts: Parts = {}
        gates = np.array([work.op == "gate" for work in plan.works], np.bool_)
        for i in np.flatnonzero(gates[plan.work]).tolist():
            rank, layer, work = int(plan.rank[i]), int(plan.layer[i]), plan.works[plan.work[i]]
            ids = self.chosen.rows(plan.groups[plan.group[i]], work.expert_tokens, layer)
            parts[int(plan.step[i]), layer, rank] = copies[layer].rows(ids, rank)
        return parts

    def _exact(self, work: Work, rank: int, page: int, at: tuple[int, int], parts: Parts, copies: dict[int, Copies]) -> Work:
        """What the rows of one pair of ranks come to: `rank` sends, or serves what `page` has sent."""
        if work.op == "put" and work.variant not in ("dispatch", "combine"):
            return work._replace(bytes=work.bytes + self._header_rows * self.layer.row_bytes)
        source, server = (rank, page) if work.variant == "dispatch" else (page, rank)
        rows = parts[*at, source][copies[at[1]].of(server)]
        if work.op == "experts":
            return work._replace(tokens=int(rows.sum()), expert_tokens=tuple(sorted(rows.tolist(), reverse=True)))
        return work._replace(tokens=int(rows.sum()), bytes=(int(rows.sum()) + self._header_rows) * self.layer.row_bytes)
