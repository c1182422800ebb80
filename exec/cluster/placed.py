"""Placed experts on one rank: copies that come and go, rows whose experts a trace names, requests that go on where they stood."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exec import decoder
from exec.cluster import shards
from exec.cluster.backend import RankBackend
from exec.cluster.experts import MoELayers, Op
from exec.cluster.job import Order
from exec.cluster.mesh import AHEAD, Landing
from exec.cluster.outputs import Outputs
from exec.cluster.rows import Floats, Piece, RowMemory, lasting
from exec.cluster.store import Store
from exec.runtime import Interrupt, Record
from exec.weights import Weights, expert_floats
from sim.ep.chosen import Chosen
from sim.ep.copies import Copies, buffers_of, copies_of
from sim.events import Result
from sim.placement.placement import Bools
from sim.plan import Plan
from sim.schedulers.ep.placed import WEIGHTS

States = dict[int, Floats]
"""The row [hidden] of each request."""


@dataclass(frozen=True, slots=True)
class PlacedOrder(Order):
    """chosen: experts of each row. held [layers, experts, ranks]: copies that are loaded at once; None: none, they come later."""

    chosen: Chosen | None = None
    held: Bools | None = None


class Shelf:
    """Copies of experts that this rank has, by (layer, expert). Memory of those that went is used for those that come."""

    def __init__(self, order: PlacedOrder, rank: int) -> None:
        self._order, self._rank = order, rank
        self._free: list[Floats] = []
        self._held: dict[tuple[int, int], Floats] = {}
        if order.held is not None:
            for layer, expert in np.argwhere(order.held[:, :, rank]).tolist():
                self.load(layer, expert)

    def keep(self, wanted: set[tuple[int, int]]) -> None:
        """Let go what is not wanted, and make room for what is."""
        for key in self._held.keys() - wanted:
            self._free.append(self._held.pop(key))
        for key in sorted(wanted - self._held.keys()):
            self._held[key] = self._free.pop() if self._free else lasting("expert", (expert_floats(self._order.model),))

    def load(self, layer: int, expert: int) -> None:
        """From where weights are kept."""
        self.keep(self._held.keys() | {(layer, expert)})
        self._held[layer, expert][:] = shards.drawn_expert(self._order, layer, expert)

    def of(self, layer: int, expert: int) -> Floats:
        return self._held[layer, expert]

    def rows(self, layer: int, expert: int) -> Floats:
        """A copy as rows as long as activations [3 F, H]."""
        return self._held[layer, expert].reshape(-1, self._order.model.hidden)


class PlacedMoE(MoELayers):
    """Ops of `sim.schedulers.ep.placed`."""

    order: PlacedOrder

    def __init__(self, order: PlacedOrder, rank: int, weights: Weights, rows: RowMemory, store: Store) -> None:
        super().__init__(order, rank, weights, rows, store)
        self.shelf = Shelf(order, rank)
        self._copies: dict[int, Copies] = {}
        self._row: dict[int, int] = {}
        self._states = np.empty((0, order.model.hidden), np.float32)

    def ops(self) -> dict[str, Op]:
        return {**super().ops(), "load": self._load}

    def begin(self, plan: Plan, states: States) -> None:
        """Copies that the plan computes with or fills are kept; its requests go on from their states."""
        read, written = buffers_of(plan)
        self.shelf.keep({(layer, e) for r, layer, e in read | written if r == self.rank})
        self._copies = copies_of(plan, self.order.ranks, self.model.experts)
        mine = {q for group in np.unique(plan.group[(plan.rank == self.rank) & (plan.group >= 0)]).tolist() for q in plan.groups[group]}
        self._row = {request: i for i, request in enumerate(sorted(mine))}
        self._states = np.array([states[q] for q in self._row], np.float32).reshape(-1, self.model.hidden)

    def states(self) -> States:
        return {request: self._states[i] for request, i in self._row.items()}

    def landed(self, name: str, landing: Landing) -> None:
        """Rows of tokens, or a part of an expert, whose header says where it begins."""
        if not name.startswith("weights."):
            super().landed(name, landing)
            return
        _, _, layer, expert = name.split(".")
        at, first = int(landing.counts[0]), landing.piece.first + 1
        self.shelf.rows(int(layer), int(expert))[at : at + landing.rows] = self._rows.array[first : first + landing.rows]
        self._rows.give(landing.piece)

    # Ops ----------------------------------------------------------------------------------------

    def _load(self, task: Record, _: Interrupt) -> None:
        self.shelf.load(task.layer, task.page)

    def _gate(self, task: Record, _: Interrupt) -> Result:
        """The router's weights, of the experts that the trace names."""
        at = [self._row[q] for q in task.requests]
        if task.layer == 0:
            self.store.hidden = self._states[at]
        assert self.order.chosen is not None
        ids = self.order.chosen.rows(task.requests, task.work.expert_tokens, task.layer)
        self._route(task, ids)
        return Result(experts=tuple(np.bincount(ids.ravel(), minlength=self.model.experts).tolist()))

    def _serving(self, layer: int, ids: NDArray[np.int16]) -> tuple[NDArray[np.int16], NDArray[np.int32], Sequence[int]]:
        copies = self._copies[layer % self.model.layers]
        serving = copies.serving(ids, self.rank)
        return serving.astype(np.int16), copies.rank[serving].astype(np.int32), copies.first.tolist()

    def _some_experts(self) -> tuple[Any, int]:
        return [np.zeros(expert_floats(self.model), np.float32)], 1

    def _experts_of(self, layer: int) -> Any:
        return [self.shelf.of(layer, e) for e in self._copies[layer].held[self.rank]]

    def _run(self, experts: Any, rows: Floats, counts: NDArray[np.int32]) -> None:
        offsets = np.concatenate([[0], np.cumsum(counts)])
        for start in range(0, len(rows), decoder.EXPERT_ROWS):
            part = rows[start : start + decoder.EXPERT_ROWS]
            here = np.clip(offsets - start, 0, len(part)).astype(np.int32)
            decoder.run_pieces(self._own, enumerate(experts), part, here, part, decoder.Scratch(self._space))

    def _put(self, task: Record, interrupt: Interrupt) -> None:
        if task.work.variant != WEIGHTS:
            super()._put(task, interrupt)
            return
        assert self.mesh is not None and task.lane is not None
        _, _, layer, expert = task.reads[0].split(".")
        at, piece = task.microbatch * self.order.most_rows, self._rows.send()
        self._rows.array[piece.first + 1 : piece.first + 1 + task.work.tokens] = (
            self.shelf.rows(int(layer), int(expert))[at : at + task.work.tokens]
        )  # fmt: skip
        message = Piece(piece.first, task.work.tokens + 1)
        self.mesh.put(int(task.lane.rpartition(".")[2]), self.numbers[task.number], message, (at,))
        self._rows.give(piece)

    def _unpermute(self, task: Record, interrupt: Interrupt) -> None:
        super()._unpermute(task, interrupt)
        if task.layer == self.model.layers - 1:
            self._states[[self._row[q] for q in task.requests]] = self.store.hidden


class PlacedBackend(RankBackend):
    """`RankBackend` for plans of placed experts."""

    order: PlacedOrder
    moe: PlacedMoE

    def __init__(self, order: PlacedOrder, rank: int) -> None:
        self.order, self.rank, self.dense, self._warm = order, rank, None, False
        self._computed_s = []
        nothing = np.empty((0, order.model.hidden), np.float32)
        routers = tuple(shards.drawn_router(order, i) for i in range(order.model.layers))
        self.weights = Weights(nothing, nothing, nothing, routers, ())
        self.store = Store()
        self.rows = _row_memory(order)
        self.moe = PlacedMoE(order, rank, self.weights, self.rows, self.store)
        self._ops = self.moe.ops()

    def begin(self, plan: Plan, states: States) -> None:
        """Whatever the run before left lying, where it was given up, is void."""
        self.store = self.moe.store = Store()
        self._computed_s = []
        self.rows.forget()
        self.moe.begin(plan, states)

    def outputs(self, cpu_s: float) -> PlacedOutputs:
        left = self.store.left()
        assert not left, f"rank {self.rank}: buffers {', '.join(left)} were written and never read"
        return PlacedOutputs([], None, {}, {}, cpu_s, self.moe.states(), computed_s=self.computed_s)


@dataclass(frozen=True, slots=True)
class PlacedOutputs(Outputs):
    """states: of the requests that this rank served, after the Plan."""

    states: Mapping[int, Floats]


def _row_memory(order: PlacedOrder) -> RowMemory:
    """As a rank's of one chunk, with a piece to send a part of an expert from for each peer."""
    landing = order.most_rows + 1, (order.ranks - 1) * (AHEAD + 4) + 1
    sending = max(order.tokens[0] * order.model.top_k + order.ranks, order.most_rows + 1), order.ranks
    return RowMemory(order.model.hidden, landing, sending)
