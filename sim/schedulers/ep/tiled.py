"""What the tile-level schedulers share: one layer as the tiles of persistent kernels on all ranks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from sim.ep import names
from sim.models.spec import ModelSpec
from sim.plan import Plan
from sim.schedulers.ep.base import ExpertParallel, Shape
from sim.schedulers.ep.columns import ColumnBuilder, Ints, Joined, Labels, grouped
from sim.schedulers.ep.mixed import Mixed
from sim.schedulers.ep.packets import Packets, Tiling, check_rows, packets, upper_bounds
from sim.schedulers.policy import Policy
from sim.tasks import Work

SIGNAL_BYTES = 8

TILE = -1
FETCH = 1
"""Priorities on a block: a tile begins where its descriptor was fetched, before another is fetched there."""


class Tiled(ExpertParallel):
    """rows [ranks, experts]: what each rank sends to each expert, where a trace tells; None: all that the capacity allows, the
    upper bound. capacity_factor: see `sim.schedulers.ep.packets.capacity`. sms: multiprocessors of a GPU. gpus_per_node: ranks
    that store into each other's memory (NVLink); None: all. tiling: of the experts' products.
    """

    default_tiling: ClassVar[Tiling] = Tiling()

    def __init__(
        self, model: ModelSpec, policy: Policy, *, seed: int = 0, ranks: int = 8, layers: int = 1, rows: NDArray[np.int64] | None = None,
        capacity_factor: float = 1.0, sms: int = 132, gpus_per_node: int | None = None, tiling: Tiling | None = None,
    ) -> None:  # fmt: skip
        self.tiling = tiling or self.default_tiling
        super().__init__(model, policy, seed=seed, ranks=ranks, layers=layers)
        self.rows, self.capacity_factor, self.sms = rows, capacity_factor, sms
        self.gpus_per_node = gpus_per_node or ranks
        self.at_least_one(sms=sms, gpus_per_node=self.gpus_per_node)

    @property
    def resident(self) -> int:
        """Blocks that share a GPU's tensor cores."""
        raise NotImplementedError

    def shape(self, tokens: Sequence[int]) -> Shape:
        return self.tiling.check(super().shape(tokens))

    def plan(self, tokens: Sequence[int], first: int = 0) -> Plan:
        shape = self.shape(tokens)
        rows = upper_bounds(shape, self.capacity_factor) if self.rows is None else check_rows(self.rows, tokens, shape)
        builder = ColumnBuilder(first)
        sent = packets(rows, self.ranks)
        ends = np.full(self.ranks, -1)
        for number in range(self.layers):
            ends = self.add_layer(builder, shape, sent, number, ends)
        return builder.build()

    def add_layer(self, builder: ColumnBuilder, shape: Shape, sent: Packets, number: int, before: Ints) -> Ints:
        """before [ranks]: last task of the layer before on each rank, -1: none. Returns that of this layer."""
        raise NotImplementedError

    def near(self, a: Ints, b: Ints) -> NDArray[np.bool_]:
        """Whether two ranks store into each other's memory."""
        return np.asarray(a // self.gpus_per_node == b // self.gpus_per_node)


class TileLayer:
    """One layer being built: lanes by rank, and kinds of tasks that several schedulers use."""

    def __init__(self, builder: ColumnBuilder, shape: Shape, sent: Packets, number: int) -> None:
        self.builder, self.shape, self.sent, self.number = builder, shape, sent, number
        self.ranks = range(shape.ranks)
        self.put_lanes = np.zeros((shape.ranks, shape.ranks), np.int64)
        for a in self.ranks:
            self.put_lanes[a] = builder.lanes_of(names.put(a, b) if a != b else names.host(a) for b in self.ranks)

    def lanes(self, family: str) -> Ints:
        """[ranks]"""
        return self.builder.lanes_of(f"{family}.{r}" for r in self.ranks)

    @property
    def each_rank(self) -> Labels:
        """Labels of one task a rank."""
        return {"rank": np.arange(len(self.ranks)), "layer": self.number}

    def launch(self, before: Ints, count: int = 1) -> Ints:
        """The host enqueues `count` kernels, which run behind the layer before. Returns what the last of them waits for."""
        last = np.empty(0, np.int64)
        for _ in range(count):
            last = self.builder.block(
                len(self.ranks), Work("launch", variant="layer"), self.lanes("host"), labels=self.each_rank
            )
        waits = [last] if before[0] < 0 else [last, before]
        return self.builder.block(len(self.ranks), Work("join"), None, waits, labels=self.each_rank)

    def gate(self, family: str, after: Ints, rows: int, columns: int) -> Ints:
        """Tiles [rows, columns] of the router's product [tokens, experts]. Returns a join for each rank."""
        strips = -(-np.array(self.shape.tokens) // rows)
        rank = np.repeat(np.arange(len(self.ranks)), strips * -(-self.shape.experts // columns))
        work = Work("gate_tile", tokens=rows, columns=columns)
        tiles = self.builder.block(len(rank), work, self.lanes(family)[rank], [after[rank]], labels={"rank": rank, "layer": self.number})
        return self.join(tiles, rank, after)

    def join(self, numbers: Ints, rank: Ints, at_least: Ints) -> Ints:
        """For each rank a join over its numbers, and over at_least [ranks]."""
        everyone = np.arange(len(self.ranks))
        lengths = np.bincount(rank, minlength=len(self.ranks)) + 1
        order = np.argsort(np.concatenate([everyone, rank]), kind="stable")
        joined = Joined(lengths, np.concatenate([at_least, numbers])[order])
        return self.builder.block(len(self.ranks), Work("join"), None, joined=joined, labels=self.each_rank)

    def router(self, started: Ints) -> Ints:
        """The gate as a kernel of its own, one task a rank."""
        work = self.builder.works_of(Work("gate", tokens=t, experts=self.shape.experts) for t in self.shape.tokens)
        return self.builder.block(len(self.ranks), work, self.lanes("gpu"), [started], labels=self.each_rank)

    def met(self, ready: Ints, count_bytes: int) -> Ints:
        """A barrier in which every rank tells every other one so much. Returns a join for each rank."""
        w = len(self.ranks)
        source, target = (a.reshape(-1) for a in np.nonzero(~np.eye(w, dtype=np.bool_)))
        told = Work("signal", bytes=SIGNAL_BYTES + count_bytes, messages=1)
        labels: Labels = {"rank": source, "layer": self.number, "page": target}
        told_at = self.builder.block(len(source), told, self.put_lanes[source, target], [ready[source]], labels=labels)
        return self.join(told_at, target, ready)

    def pulled(self, rows: Mixed, known: Ints, family: str) -> Ints:
        """Blocks of `family` fetch the segments of each block of rows, expert by expert. Returns a join for each block [M]."""
        target = rows.target[rows.block]
        work = self.put_works("pull", rows.length, rows.source, target, self.shape.row_bytes)
        labels: Labels = {"rank": target, "layer": self.number, "page": rows.source}
        got = self.builder.block(len(target), work, self.lanes(family)[target], [known[target]], labels=labels)
        full: Labels = {"rank": rows.target, "layer": self.number}
        return self.builder.block(rows.count, Work("join"), None, joined=grouped(got, rows.block, rows.count), labels=full)

    def put_works(self, op: str, rows: Ints, source: Ints, target: Ints, row_bytes: int, columns: int = 0) -> Ints:
        """Works of tasks that write rows [n] to another rank; within a rank no byte crosses a wire."""
        return self.stored_works(op, rows, np.where(source == target, 0, rows * row_bytes), source, target, columns)

    def stored_works(self, op: str, rows: Ints, stored: Ints, source: Ints, target: Ints, columns: int) -> Ints:
        """Works over rows [n] that store so many bytes [n] in another rank's memory. Equal ones share a row."""
        keys, inverse = np.unique(np.stack([rows, stored, source, target], axis=1), axis=0, return_inverse=True)
        works = [Work(op, tokens=r, bytes=n, columns=columns, variant=f"{a}.{b}" if n else "") for r, n, a, b in keys.tolist()]
        return self.builder.works_of(works)[inverse.reshape(-1)]

    def row_works(self, op: str, rows: Ints, columns: int = 0, variant: str = "") -> Ints:
        """Works of tasks over rows [n]."""
        keys, inverse = np.unique(rows, return_inverse=True)
        return self.builder.works_of(Work(op, tokens=r, columns=columns, variant=variant) for r in keys.tolist())[inverse]
