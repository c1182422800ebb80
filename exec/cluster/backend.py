"""RankBackend: all ops of one rank, and what it hands back at the end of a run."""

from __future__ import annotations

from typing import Any

import numpy as np

from exec import decoder
from exec.backends.warmup import warm_up
from exec.cluster import shards
from exec.cluster.dense import DenseLayers
from exec.cluster.experts import MoELayers
from exec.cluster.job import Order
from exec.cluster.mesh import AHEAD, HEADER
from exec.cluster.outputs import Outputs
from exec.cluster.priority import SHORT_SLICE_NS, ask_for_slice, own_cores
from exec.cluster.rows import RowMemory
from exec.cluster.store import Store
from exec.runtime import Interrupt, Record
from sim.errors import UserError
from sim.events import Result
from sim.machines.schema import Lane
from sim.plan import Plan


class RankBackend:
    """Implements `exec.runtime.Backend` for one order. May be run several times; layers then begin with the same rows.

    before: backend of the order before, whose weights are kept where they are the same.
    """

    def __init__(self, order: Order, rank: int, before: RankBackend | None = None) -> None:
        if order.model.hidden < HEADER + order.experts_per_rank:
            raise UserError(f"--model {order.model.name}: rows of {order.model.hidden} numbers hold no header for its experts")
        self.order, self.rank = order, rank
        same = before is not None and _same_weights(before.order, order)
        self.weights = before.weights if before is not None and same else shards.shard(order, rank)
        self._warm = same and order.threads == before.order.threads
        self.store = Store()
        self.rows = _row_memory(order, rank)
        self.moe = MoELayers(order, rank, self.weights, self.rows, self.store)
        self.dense = DenseLayers(order, rank, self.weights, self.store) if order.serves else None
        self._ops = {**self.moe.ops(), **(self.dense.ops() if self.dense else {})}
        self._inputs = None if order.serves else shards.layer_inputs(order, rank)

    def begin(self, plan: Plan, states: Any) -> None:
        """Ready for another run of the same order. states: of requests, of which this kind of run has none."""
        self.store = self.moe.store = Store()
        self.moe.counts = []
        if self.dense:
            self.dense = DenseLayers(self.order, self.rank, self.weights, self.store)
            self._ops.update(self.dense.ops())
        else:
            assert self._inputs is not None
            self.store.hidden = self._inputs.copy()

    def enter_lane(self, lane: Lane) -> None:
        """Give the compute lane's thread its share of the cores; compile and load what it will run. The others only wait and
        pass on: they are let in as soon as they wake."""
        if lane.name.startswith("gpu."):
            own_cores(self.rank, self.order.ranks, self.order.threads)
            decoder.set_threads(self.order.threads)
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
        return self._ops[task.work.op](task, interrupt)

    def outputs(self, cpu_s: float) -> Outputs:
        left = self.store.left()
        assert not left, f"rank {self.rank}: buffers {', '.join(left)} were written and never read"
        keep, dense = self.order.keep, self.dense
        logits = {r: np.stack(rows) for r, rows in ((dense.logits or {}) if dense else {}).items() if rows}
        tokens = dense.sequences.outputs() if dense else {}
        hidden = self.store.hidden if keep and not dense else None
        return Outputs(self.moe.counts, hidden, tokens, logits, self.rows.peak, cpu_s)


def _same_weights(a: Order, b: Order) -> bool:
    return (a.model, a.ranks, a.seed, a.weights, a.serves, a.skew) == (b.model, b.ranks, b.seed, b.weights, b.serves, b.skew)


def _row_memory(order: Order, rank: int) -> RowMemory:
    """To land in: pieces posted ahead, and those that hold what was not used up: of each chunk and peer a dispatch, a
    combine, and a combine of the layer before whose sending thread has not come back yet; and one that has just come. To
    send from: a piece for each chunk."""
    landing = order.most_rows + 1, (order.ranks - 1) * (AHEAD + 3 * order.chunks + 1) + 1
    sending = -(-order.rows_of(rank) // order.chunks) * order.model.top_k + order.ranks, order.chunks
    return RowMemory(order.model.hidden, landing, sending)
