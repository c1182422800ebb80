"""FlashDMoE: the whole layer, dispatch and combine included, in one persistent kernel a GPU.

arXiv 2506.04667, section 3, and its repository (github.com/osayamenja/FlashMoE, 2025-12). The last block of a GPU is its
operating system: a scheduler warp, and subscriber warps that poll for signals. All other blocks are processors.

1. All blocks compute the gate. Groups of blocks then store each expert's rows into the memory of the rank that holds it:
   one packet for each (source rank, expert), behind which goes one signal, for an empty packet too. (Between nodes the
   packet is staged, and the NIC puts it.)
2. A subscriber sees the signal (`scan`) and writes a descriptor for each GEMM0 tile of the packet.
3. The scheduler warp rings the doorbell of a processor for each descriptor: it sweeps the subscribers' queues, then those that
   processors fill (GEMM1), each in the order in which descriptors came up. A processor has one doorbell, and is ready again
   before it runs: at most one task waits for each (pool doorbells.R).
4. The processor fetches the descriptor and computes the tile. The block that finishes a strip's last GEMM0 tile enqueues
   its GEMM1 tiles; GEMM1 stores its tile into the source rank's memory and signals it, each tile alone (between nodes: each
   strip). There a subscriber makes it a combine tile: scaled and added into the output.

A doorbell here belongs to whichever processor is free first, in the kernel to the one that it was rung at: a task never
waits behind a long tile while another processor idles.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from sim.ep import names
from sim.models.spec import ModelSpec
from sim.schedulers.ep.base import Shape
from sim.schedulers.ep.columns import ColumnBuilder, Ints, Labels, evenly, grouped
from sim.schedulers.ep.packets import Packets, Tiling, strips
from sim.schedulers.ep.tiled import FETCH, SIGNAL_BYTES, TILE, Tiled, TileLayer
from sim.schedulers.policy import Policy
from sim.tasks import Work

SUBSCRIBER_WARPS = 3
"""Of four warps of the operating system's block; the fourth schedules."""

FROM_SUBSCRIBERS, FROM_PROCESSORS = 0, 1
"""Order in which the scheduler warp sweeps the queues of descriptors."""


class FlashDMoE(Tiled):
    """processors: blocks of a GPU that compute; None: all of two a multiprocessor but the operating system's. launches: GPU
    operations a layer (1; 3 from v0.1 on, whose router is a kernel of its own)."""

    orders: ClassVar[Mapping[str, str]] = {"scheduler": "priority"}

    def __init__(
        self, model: ModelSpec, policy: Policy, *, seed: int = 0, ranks: int = 8, layers: int = 1, rows: NDArray[np.int64] | None = None,
        capacity_factor: float = 1.0, sms: int = 132, gpus_per_node: int | None = None, tiling: Tiling | None = None,
        processors: int | None = None, launches: int = 1,
    ) -> None:  # fmt: skip
        super().__init__(
            model, policy, seed=seed, ranks=ranks, layers=layers, rows=rows, capacity_factor=capacity_factor, sms=sms,
            gpus_per_node=gpus_per_node, tiling=tiling,
        )  # fmt: skip
        self.processors = 2 * sms - 1 if processors is None else processors
        self.launches = launches
        self.at_least_one(processors=self.processors, launches=launches)

    @property
    def lanes(self) -> tuple[str, ...]:
        ranks = range(self.ranks)
        own = (lane(r) for r in ranks for lane in (names.host, names.blocks, names.scheduler, names.subscriber))
        return (*own, *(names.put(a, b) for a in ranks for b in ranks if a != b))

    @property
    def resident(self) -> int:
        return self.processors + 1

    @property
    def servers(self) -> Mapping[str, int]:
        return {"blocks": self.processors, "scheduler": 1, "subscriber": SUBSCRIBER_WARPS}

    @property
    def pools(self) -> Mapping[str, int]:
        return {doorbells(r): self.processors for r in range(self.ranks)}

    def add_layer(self, builder: ColumnBuilder, shape: Shape, sent: Packets, number: int, before: Ints) -> Ints:
        return _Layer(self, builder, shape, sent, number).add(before)

    @property
    def blocks_per_expert(self) -> int:
        """Blocks that copy the rows of one expert together."""
        return max(-(-256 // max(self.model.experts, 4)), 2)


def doorbells(rank: int) -> str:
    """Pool: doorbells of processors that no descriptor was fetched for yet."""
    return f"doorbells.{rank}"


class _Layer(TileLayer):
    """M strips of packets, each with so many tiles across; arrays over tiles are [M, tiles]."""

    def __init__(self, kernel: FlashDMoE, builder: ColumnBuilder, shape: Shape, sent: Packets, number: int) -> None:
        super().__init__(builder, shape, sent, number)
        self.kernel, self.tiling = kernel, kernel.tiling
        self.strips = strips(sent, self.tiling.rows)
        self.blocks, self.schedulers, self.subscribers = (self.lanes(f) for f in ("blocks", "scheduler", "subscriber"))
        self.bells = builder.pools_of(doorbells(r) for r in self.ranks)
        self.source, self.target = sent.source[self.strips.packet], sent.target[self.strips.packet]

    def add(self, before: Ints) -> Ints:
        started = self.launch(before, self.kernel.launches)
        routed = self.gate("blocks", started, self.tiling.rows, self.tiling.columns)
        done0 = self._gemm0(self._dispatch(routed))
        done1 = self._gemm1(done0)
        done2 = self._combine(done1)
        across = done1.shape[1]
        ranks = np.concatenate([np.repeat(self.target, across), np.repeat(self.source, across)])
        over = self.join(np.concatenate([done1.reshape(-1), done2.reshape(-1)]), ranks, routed)
        interrupt = Work("doorbell", variant="interrupt")
        return self.builder.block(len(self.ranks), interrupt, self.schedulers, [over], labels=self.each_rank)

    def _dispatch(self, routed: Ints) -> Ints:
        """Groups of blocks copy the packets, a rank's own experts first. Returns the scan of each packet [P]."""
        sent, group = self.sent, self.kernel.blocks_per_expert
        turn = (sent.expert - sent.source * self.shape.experts_per_rank) % self.shape.experts
        packet = np.repeat(np.lexsort((turn, sent.source)), group)
        piece = np.tile(np.arange(group), sent.count)
        rows = sent.rows[packet] * (piece + 1) // group - sent.rows[packet] * piece // group
        source = sent.source[packet]
        stored_in = np.where(self.kernel.near(source, sent.target[packet]), sent.target[packet], source)
        work = self.put_works("dispatch", rows, source, stored_in, self.shape.row_bytes)
        copied = self.builder.block(len(packet), work, self.blocks[source], [routed[source]], labels=self._labels(packet, source))
        copied = grouped(copied, packet, sent.count).numbers.reshape(-1, group)
        arrived = self._announce("dispatch", np.arange(sent.count), sent.rows, sent.source, sent.target, copied)
        descriptors = -(-sent.rows // self.tiling.rows) * self.tiling.across(self.shape.ffn)
        return self._scan(arrived, np.arange(sent.count), sent.target, descriptors)

    def _gemm0(self, scanned: Ints) -> Ints:
        """Returns the join of each strip [M] over its tiles."""
        count, across = self.strips.count, self.tiling.across(self.shape.ffn)
        work = self.row_works("gemm0", self.strips.rows, self.tiling.columns)
        done = self._tiles(scanned[self.strips.packet], self.strips.packet, self.target, work, across)
        return self.builder.block(count, Work("join"), None, joined=evenly(done), labels=self._labels(self.strips.packet, self.target))

    def _gemm1(self, done0: Ints) -> Ints:
        """Tiles that are stored where the rows came from; between nodes staged. [M, tiles]"""
        stored_in = np.where(self.kernel.near(self.source, self.target), self.source, self.target)
        row_bytes = self.tiling.columns * self.shape.dtype_bytes
        work = self.put_works("gemm1", self.strips.rows, self.target, stored_in, row_bytes, self.tiling.columns)
        return self._tiles(done0, self.strips.packet, self.target, work, self.tiling.across(self.shape.hidden), FROM_PROCESSORS)

    def _combine(self, done1: Ints) -> Ints:
        """A signal and a scan for each tile, between nodes for each strip; then the tile where the rows came from. [M, tiles]"""
        across = done1.shape[1]
        scanned = np.empty_like(done1)
        near = self.kernel.near(self.source, self.target)
        for mine, each in ((near, 1), (~near, across)):
            at = np.repeat(np.flatnonzero(mine), across // each)
            if not len(at):
                continue
            packet = self.strips.packet[at]
            made, back = done1[mine].reshape(-1, each), self.source[at]
            arrived = self._announce("combine", packet, self.strips.rows[at], self.target[at], back, made)
            found = self._scan(arrived, packet, back, np.full(len(at), each))
            scanned[mine] = np.repeat(found, each).reshape(-1, across)
        work = self.row_works("combine", self.strips.rows, self.tiling.columns)
        return self._tiles(scanned, self.strips.packet, self.source, work, across)

    def _announce(self, variant: str, packet: Ints, rows: Ints, source: Ints, target: Ints, made: Ints) -> Ints:
        """Behind the tasks made [n, each] `target` hears of them: within a rank at once, by NVLink with a signal, else with a
        put of the rows. Returns the task [n] behind which they are there."""
        arrived = np.empty(len(packet), np.int64)
        near, local = self.kernel.near(source, target), source == target
        for mine, op in ((local, "join"), (near & ~local, "signal"), (~near, "put")):
            at = np.flatnonzero(mine)
            if not len(at):
                continue
            work: Work | Ints = Work("join") if op == "join" else Work("signal", bytes=SIGNAL_BYTES, messages=1)
            if op == "put":
                work = self._put_works(variant, rows[at])
            lane = None if op == "join" else self.put_lanes[source[at], target[at]]
            labels = self._labels(packet[at], source[at])
            arrived[at] = self.builder.block(len(at), work, lane, joined=evenly(made[at]), labels=labels)
        return arrived

    def _put_works(self, variant: str, rows: Ints) -> Ints:
        unit = self.shape.row_bytes
        works = (Work("put", tokens=r, bytes=r * unit + SIGNAL_BYTES, variant=variant, messages=1) for r in rows.tolist())
        return self.builder.works_of(works)

    def _scan(self, arrived: Ints, packet: Ints, rank: Ints, descriptors: Ints) -> Ints:
        """A subscriber sees each arrival and writes its descriptors."""
        work = self.row_works("scan", descriptors)
        return self.builder.block(len(arrived), work, self.subscribers[rank], [arrived], labels=self._labels(packet, rank))

    def _tiles(self, after: Ints, packet: Ints, rank: Ints, work: Ints, across: int, queue: int = FROM_SUBSCRIBERS) -> Ints:
        """Doorbell, fetch and tile, `across` of each strip. after [M] or [M, across]; packet, rank, work [M]. Returns [M, across]."""
        n = len(packet) * across
        wait = np.broadcast_to(after.reshape(len(packet), -1), (len(packet), across)).reshape(-1)
        packet, rank, work = (np.repeat(column, across) for column in (packet, rank, work))
        labels = self._labels(packet, rank)
        bell = {**labels, "priority": queue}
        rung = self.builder.block(n, Work("doorbell"), self.schedulers[rank], [wait], takes=self.bells[rank], labels=bell)
        fetched = self.builder.block(n, Work("fetch"), self.blocks[rank], [rung], releases=rung, labels={**labels, "priority": FETCH})
        tiles = self.builder.block(n, work, self.blocks[rank], [fetched], labels={**labels, "priority": TILE})
        return tiles.reshape(-1, across)

    def _labels(self, packet: Ints, rank: Ints) -> Labels:
        """Chunk: the expert's place on its rank; page: the source rank of the rows."""
        local = self.sent.expert[packet] % self.shape.experts_per_rank
        return {"rank": rank, "layer": self.number, "microbatch": local, "page": self.sent.source[packet]}
