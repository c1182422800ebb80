"""RankBackend: all ops of one rank, and what it hands back at the end of a run."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from exec.backends.warmup import warm_up
from exec.cluster import shards
from exec.cluster.dense import DenseLayers
from exec.cluster.engine import RankEngine
from exec.cluster.experts import MoELayers
from exec.cluster.header import HEADER
from exec.cluster.job import Order
from exec.cluster.mesh import AHEAD, Counters, Mesh
from exec.cluster.outputs import Outputs
from exec.cluster.rows import Floats, RowMemory, lasting
from exec.cluster.store import Store
from exec.priority import SHORT_SLICE_NS, ask_for_slice, let_in, own_cores
from exec.products import set_threads
from exec.runtime import Interrupt, Record
from exec.weights import Weights
from sim.errors import UserError
from sim.events import Result
from sim.machines.schema import Lane
from sim.plan import Plan

PASSING = frozenset({"launch", "enter", "put", "load"})
"""Ops that compute nothing."""


class Kept(NamedTuple):
    """What the backend of one order leaves to that of the next. warm: all is compiled and loaded."""

    weights: Any
    warm: bool


class RankBackend:
    """Implements `exec.runtime.Backend` for one order. May be run several times; layers then begin with the same rows.

    kept: of the backend before. dense: the rest of the model in the run that goes on, where one is served.
    """

    def __init__(self, order: Order, rank: int, kept: Kept | None = None) -> None:
        if order.model.hidden < HEADER + order.experts_per_rank:
            raise UserError(f"--model {order.model.name}: rows of {order.model.hidden} numbers hold no header for its experts")
        self.order, self.rank = order, rank
        self._computed_s: list[float] = []
        self.weights, self._warm = kept or Kept(self._loaded(shards.shard(order, rank)), False)
        self.store = Store()
        self.rows = RowMemory(order.model.hidden, *_sizes(order, rank, self._ahead), self._make)
        self.moe = self._moe()
        self.dense: DenseLayers | None = None
        self._ops = self.moe.ops()
        self._inputs = None if order.serves else shards.layer_inputs(order, rank)

    def kept_for(self, order: Order) -> Kept | None:
        """What may be kept for that order: the same weights. All other memory is given back before new memory is taken."""
        same = _same_weights(self.order, order)
        return Kept(self.weights, self._warm and self.order.threads == order.threads) if same else None

    # Where things lie and who computes; `exec.cluster.device_backend` has others of these -----------

    _ahead = AHEAD
    _make = staticmethod(lasting)

    engine = RankEngine

    def mesh(self, peers: Sequence[int], counters: Counters, **told: Any) -> Mesh:
        """Streams of one run to `peers`; told: as `Mesh` has them."""
        return Mesh(self.rank, peers, self.rows, counters, **told)

    def _loaded(self, weights: Weights) -> Any:
        return weights

    def _copied(self, array: Floats) -> Any:
        return array.copy()

    def _moe(self) -> MoELayers:
        return MoELayers(self.order, self.rank, self.weights, self.rows, self.store)

    def _dense(self) -> DenseLayers:
        return DenseLayers(self.order, self.rank, self.weights, self.store)

    # --------------------------------------------------------------------------------------------

    def begin(self, plan: Plan, states: Any) -> None:
        """Ready for another run of the same order. states: of requests, of which this kind of run has none."""
        self.store = self.moe.store = Store()
        self._computed_s = []
        self.moe.counts = []
        if self.order.serves:
            self.dense, self._ops = None, self.moe.ops()  # another run's cache goes before there is a new one
            self.dense = self._dense()
            self._ops.update(self.dense.ops())
        else:
            assert self._inputs is not None
            self.store.hidden = self._copied(self._inputs)

    def enter_lane(self, lane: Lane) -> None:
        """Give the compute lane's thread its share of the cores; compile and load what it will run. The others only wait and
        pass on: they are let in as soon as they wake."""
        if lane.name.startswith("gpu."):
            own_cores(self.rank, self.order.ranks, self.order.threads)
            set_threads(self.order.threads)
            self._warm_up()
        else:
            ask_for_slice(SHORT_SLICE_NS)

    def _warm_up(self) -> None:
        """Once an order: runs of the same one find all loaded."""
        if not self._warm:
            self.moe.warm_up()
            if self.order.serves:
                warm_up(self.order.model, self.order.threads)
            self._warm = True

    def run(self, task: Record, interrupt: Interrupt) -> Result | None:
        computes = task.work.op not in PASSING
        if computes:
            let_in()
        began_s = time.thread_time()
        result = self._ops[task.work.op](task, interrupt)
        if computes:
            self._computed_s.append(time.thread_time() - began_s)
        return result

    @property
    def computed_s(self) -> float:
        """CPU seconds of the run in ops that compute, each of whose threads takes as long."""
        return self.order.threads * sum(self._computed_s)

    def outputs(self, cpu_s: float) -> Outputs:
        left = self.store.left()
        assert not left, f"rank {self.rank}: buffers {', '.join(left)} were written and never read"
        keep, dense = self.order.keep, self.dense
        logits = {r: np.stack(rows) for r, rows in ((dense.logits or {}) if dense else {}).items() if rows}
        tokens = dense.sequences.outputs() if dense else {}
        hidden = self.store.hidden if keep and not dense else None
        return Outputs(self.moe.counts, hidden, tokens, logits, cpu_s, computed_s=self.computed_s)


def _same_weights(a: Order, b: Order) -> bool:
    def of(order: Order) -> tuple[Any, ...]:
        return order.model, order.ranks, order.seed, order.weights, order.serves, order.skew, order.device

    return of(a) == of(b)


def _sizes(order: Order, rank: int, ahead: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Of the row memory. To land in: `ahead` pieces posted for each peer, and those that hold what was not used up: of each
    chunk and peer a dispatch, a combine, and a combine of the layer before whose sending thread has not come back yet; and one
    that has just come. To send from: a piece for each chunk."""
    landing = order.most_rows + 1, (order.ranks - 1) * (ahead + 3 * order.chunks + 1) + 1
    sending = -(-order.rows_of(rank) // order.chunks) * order.model.top_k + order.ranks, order.chunks
    return landing, sending
