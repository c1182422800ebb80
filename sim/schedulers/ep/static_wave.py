"""Static wave: one fused kernel without a scheduler. Every block walks the same list of tiles, each its own stride.

DeepGEMM's Mega MoE (scheduler/mega_moe.cuh, heuristics/mega_moe.hpp; pull requests #304, #316, #383). The router is a kernel of
its own. Ranks tell each other their counts and meet in a barrier; from then on every block of a GPU knows all tiles, in waves of
experts: those of GEMM0 in the wave, then those of GEMM1. Tile i is block i modulo blocks' (lane block.R.i, in order): no
queue, and no other block helps. Dispatch warps beside pull rows from the ranks that have them and count each block of rows
full; GEMM1 stores into the source ranks' memory; after a second barrier each block sums its tokens' results.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from sim.ep import names
from sim.models.spec import ModelSpec
from sim.schedulers.ep.base import Shape
from sim.schedulers.ep.columns import ColumnBuilder, Ints, Labels, evenly
from sim.schedulers.ep.mixed import mixed
from sim.schedulers.ep.packets import Packets, Tiling
from sim.schedulers.ep.tiled import Tiled, TileLayer
from sim.schedulers.policy import Policy
from sim.tasks import Work

HEIGHTS = ((8.5, 16), (16.5, 32), (32.5, 64), (64.5, 96), (96.5, 128))
"""(Expected rows of an expert up to which, rows of a tile); beyond: 192. heuristics/mega_moe.hpp."""

TALLEST = 192

WAVE_TILES = 2
"""Guessed: GEMM0 tiles of a wave for each block, so that uneven experts leave few blocks idle (its imbalance factor is 2)."""

COUNT_BYTES = 4


class StaticWave(Tiled):
    """Columns of tiles are the tiling's; rows follow from the rows of an expert, unless `tiling` says them. experts_per_wave: None:
    as few as keep all blocks busy."""

    orders: ClassVar[Mapping[str, str]] = {"block": "submitted"}
    default_tiling: ClassVar[Tiling] = Tiling(rows=TALLEST, columns=128)

    def __init__(
        self, model: ModelSpec, policy: Policy, *, seed: int = 0, ranks: int = 8, layers: int = 1, rows: NDArray[np.int64] | None = None,
        capacity_factor: float = 1.0, sms: int = 132, gpus_per_node: int | None = None, tiling: Tiling | None = None,
        experts_per_wave: int | None = None, launches: int = 2,
    ) -> None:  # fmt: skip
        if tiling is None and rows is not None:
            tiling = Tiling(height(float(rows.sum()) / rows.shape[1]), self.default_tiling.columns)
        super().__init__(
            model, policy, seed=seed, ranks=ranks, layers=layers, rows=rows, capacity_factor=capacity_factor, sms=sms,
            gpus_per_node=gpus_per_node, tiling=tiling,
        )  # fmt: skip
        self.experts_per_wave, self.launches = experts_per_wave, launches
        self.at_least_one(launches=launches, experts_per_wave=experts_per_wave or 1)

    @property
    def lanes(self) -> tuple[str, ...]:
        ranks = range(self.ranks)
        own = (lane(r) for r in ranks for lane in (names.host, names.gpu, names.movers))
        blocks = (names.block(r, b) for r in ranks for b in range(self.sms))
        return (*own, *blocks, *(names.put(a, b) for a in ranks for b in ranks if a != b))

    @property
    def servers(self) -> Mapping[str, int]:
        return {"movers": self.sms}

    @property
    def resident(self) -> int:
        return self.sms

    def add_layer(self, builder: ColumnBuilder, shape: Shape, sent: Packets, number: int, before: Ints) -> Ints:
        return _Layer(self, builder, shape, sent, number).add(before)


def height(rows: float) -> int:
    """Rows of a tile where an expert expects so many."""
    return next((tall for most, tall in HEIGHTS if rows <= most), TALLEST)


class _Layer(TileLayer):
    """Arrays over tiles are [M, tiles across]."""

    def __init__(self, kernel: StaticWave, builder: ColumnBuilder, shape: Shape, sent: Packets, number: int) -> None:
        super().__init__(builder, shape, sent, number)
        self.kernel, self.tiling = kernel, kernel.tiling
        self.mixed = mixed(sent, self.tiling.rows, shape.ranks)
        self.blocks = np.array([builder.lanes_of(names.block(r, b) for b in range(kernel.sms)) for r in self.ranks])
        self.taken = np.zeros(shape.ranks, np.int64)
        """Tiles of each rank's list so far."""

    def add(self, before: Ints) -> Ints:
        known = self.met(self.router(self.launch(before, self.kernel.launches)), COUNT_BYTES * self.shape.experts_per_rank)
        full = self.pulled(self.mixed, known, "movers")
        done1 = [self._wave(full, blocks) for blocks in self._waves()]
        last = np.concatenate([d.reshape(-1) for d in done1]) if done1 else np.empty(0, np.int64)
        rank = np.concatenate([np.repeat(self.mixed.target[m], self.tiling.across(self.shape.hidden)) for m in self._waves()] or [last])
        return self._sum(self.met(self.join(last, rank, known), 0))

    def _waves(self) -> list[Ints]:
        """Blocks of rows of each wave, over all ranks."""
        local = self.mixed.expert % self.shape.experts_per_rank
        each = self.kernel.experts_per_wave or self._experts_per_wave()
        return [m for w in range(0, self.shape.experts_per_rank, each) if len(m := np.flatnonzero(local // each == w // each))]

    def _experts_per_wave(self) -> int:
        tiles = self.mixed.count / self.shape.experts * self.tiling.across(self.shape.ffn)
        wanted = int(np.ceil(WAVE_TILES * self.kernel.sms / max(tiles, 1e-9)))
        return min(max(1, wanted), self.shape.experts_per_rank)

    def _wave(self, full: Ints, m: Ints) -> Ints:
        """GEMM0 of the blocks m [w], then GEMM1. Returns [w, tiles]."""
        rows, rank = self.mixed.rows[m], self.mixed.target[m]
        work = self.row_works("gemm0", rows, self.tiling.columns)
        done0 = self._listed(rank, work, full[m], self.tiling.across(self.shape.ffn))
        labels: Labels = {"rank": rank, "layer": self.number}
        ready = self.builder.block(len(m), Work("join"), None, joined=evenly(done0), labels=labels)
        away, most = (column[m] for column in self.mixed.remote())
        stored = away * self.tiling.columns * self.shape.dtype_bytes
        return self._listed(rank, self.stored_works("gemm1", rows, stored, rank, most, self.tiling.columns), ready, self._down)

    @property
    def _down(self) -> int:
        return self.tiling.across(self.shape.hidden)

    def _listed(self, rank: Ints, work: Ints, after: Ints, across: int) -> Ints:
        """The next tiles of each rank's list, across each block of rows [w]."""
        order = np.argsort(rank, kind="stable")
        tiles = np.repeat(order, across)
        counts = np.bincount(rank, minlength=len(self.taken)) * across
        place = np.arange(len(tiles)) - np.repeat(np.cumsum(counts) - counts, counts)
        own = rank[tiles]
        lane = self.blocks[own, (self.taken[own] + place) % self.kernel.sms]
        self.taken += counts
        done = self.builder.block(len(tiles), work[tiles], lane, [after[tiles]], labels={"rank": own, "layer": self.number})
        found = np.empty((len(rank), across), np.int64)
        found[order] = done.reshape(-1, across)
        return found

    def _sum(self, ready: Ints) -> Ints:
        """Every block sums the results of its part of the tokens."""
        tokens, sms = np.array(self.shape.tokens)[:, None], np.arange(self.kernel.sms)
        rows = (tokens * (sms + 1) // self.kernel.sms - tokens * sms // self.kernel.sms).reshape(-1)
        rank = np.repeat(np.arange(len(self.ranks)), self.kernel.sms)
        work = self.row_works("combine", rows, self.shape.hidden, "reduce")
        labels: Labels = {"rank": rank, "layer": self.number}
        done = self.builder.block(len(rank), work, self.blocks.reshape(-1), [ready[rank]], labels=labels)
        return self.join(done, rank, ready)
