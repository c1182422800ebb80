"""COMET: communication and computation overlap tile by tile in two fused kernels; each kernel's blocks are split.

arXiv 2502.19811, sections 3 and 4 (Flux). Some blocks of a kernel communicate (lane movers.R), the others compute (blocks.R).
Layer 0: comm blocks gather rows, those of the own rank first, while GEMM0 tiles begin as their rows are there. Layer 1, behind
it: GEMM1 column by column of the result, so that comm blocks can send a column of tiles while the next is computed; where
the rows came from they are summed. (Rows of one token with two experts on a rank are summed before they are sent there; here they
are sent apart: for k much smaller than the ranks the difference is small.)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from sim.ep import names
from sim.errors import UserError
from sim.models.spec import ModelSpec
from sim.schedulers.ep.base import Shape
from sim.schedulers.ep.columns import ColumnBuilder, Ints, Labels, grouped
from sim.schedulers.ep.mixed import mixed
from sim.schedulers.ep.packets import Packets, Tiling
from sim.schedulers.ep.tiled import Tiled, TileLayer
from sim.schedulers.policy import Policy
from sim.tasks import Work


class Comet(Tiled):
    """comm_blocks: of `sms`, the rest computes. Found by profiling in COMET: 18 at 4096 rows, 26 at 16384 (TP 8). launches: of all
    kernels of a layer, the gate's and the two fused ones' among them."""

    default_tiling: ClassVar[Tiling] = Tiling(rows=128, columns=128)

    def __init__(
        self, model: ModelSpec, policy: Policy, *, seed: int = 0, ranks: int = 8, layers: int = 1, rows: NDArray[np.int64] | None = None,
        capacity_factor: float = 1.0, sms: int = 132, gpus_per_node: int | None = None, tiling: Tiling | None = None,
        comm_blocks: int = 26, launches: int = 33,
    ) -> None:  # fmt: skip
        super().__init__(
            model, policy, seed=seed, ranks=ranks, layers=layers, rows=rows, capacity_factor=capacity_factor, sms=sms,
            gpus_per_node=gpus_per_node, tiling=tiling,
        )  # fmt: skip
        if not 1 <= comm_blocks < sms:
            raise UserError(f"comm_blocks: is {comm_blocks}; 1 to {sms - 1} of {sms} are possible")
        if launches < 3:
            raise UserError(f"launches: is {launches}; 3 at least are needed (gate and two fused kernels)")
        self.comm_blocks, self.launches = comm_blocks, launches

    @property
    def lanes(self) -> tuple[str, ...]:
        ranks = range(self.ranks)
        own = (lane(r) for r in ranks for lane in (names.host, names.gpu, names.blocks, names.movers))
        return (*own, *(names.put(a, b) for a in ranks for b in ranks if a != b))

    @property
    def servers(self) -> Mapping[str, int]:
        return {"movers": self.comm_blocks, "blocks": self.sms - self.comm_blocks}

    @property
    def resident(self) -> int:
        return self.sms

    def add_layer(self, builder: ColumnBuilder, shape: Shape, sent: Packets, number: int, before: Ints) -> Ints:
        return _Layer(self, builder, shape, sent, number).add(before)


class _Layer(TileLayer):
    def __init__(self, kernel: Comet, builder: ColumnBuilder, shape: Shape, sent: Packets, number: int) -> None:
        super().__init__(builder, shape, sent, number)
        self.kernel, self.tiling = kernel, kernel.tiling
        self.mixed = mixed(sent, self.tiling.rows, shape.ranks)
        self.blocks, self.movers = self.lanes("blocks"), self.lanes("movers")

    def add(self, before: Ints) -> Ints:
        routed = self.router(self.launch(before, self.kernel.launches - 2))
        gathering = self.launch(self.met(routed, 8))
        done0 = self._tiles("gemm0", self.pulled(self.mixed, gathering, "movers"), self.tiling.across(self.shape.ffn))
        behind = self.launch(self.join(done0.reshape(-1), np.repeat(self.mixed.target, done0.shape[1]), gathering))
        done1 = self._tiles("gemm1", behind[self.mixed.target], self.tiling.across(self.shape.hidden))
        return self._send(done1, behind)

    def _tiles(self, op: str, after: Ints, across: int) -> Ints:
        """[M, across]; of GEMM1 the first columns of all rows first."""
        m, column = np.divmod(np.arange(self.mixed.count * across), across)
        work = self.row_works(op, self.mixed.rows, self.tiling.columns)
        labels: Labels = {"rank": self.mixed.target[m], "layer": self.number, "priority": column if op == "gemm1" else 0}
        done = self.builder.block(len(m), work[m], self.blocks[self.mixed.target[m]], [after[m]], labels=labels)
        return done.reshape(-1, across)

    def _send(self, done1: Ints, behind: Ints) -> Ints:
        """A column of tiles to each rank when it is there, in strips that the comm blocks share; then the sum. Returns a join for
        each rank."""
        w, across = len(self.ranks), done1.shape[1]
        column = self.mixed.target[:, None] * across + np.arange(across)
        numbers = np.concatenate([np.repeat(behind, across), done1.reshape(-1)])
        joined = grouped(numbers, np.concatenate([np.arange(w * across), column.reshape(-1)]), w * across)
        labels: Labels = {"rank": np.repeat(np.arange(w), across), "layer": self.number}
        made = self.builder.block(w * across, Work("join"), None, joined=joined, labels=labels)
        rows = np.zeros((w, w), np.int64)
        np.add.at(rows, (self.sent.target, self.sent.source), self.sent.rows)
        source, turn = np.divmod(np.arange(w * w), w)
        pair, piece = self._strips(rows[source, (source + turn) % w])
        source, target = source[pair], ((source + turn) % w)[pair]
        source, target, piece, column = (np.tile(source, across), np.tile(target, across), np.tile(piece, across),
                                         np.repeat(np.arange(across), len(pair)))  # fmt: skip
        work = self.put_works("push", piece, source, target, self.tiling.columns * self.shape.dtype_bytes, self.tiling.columns)
        labels = {"rank": source, "layer": self.number, "page": target, "priority": column}
        sent = self.builder.block(len(source), work, self.movers[source], [made[source * across + column]], labels=labels)
        return self._sum(sent, target * across + column, across, behind)

    def _strips(self, rows: Ints) -> tuple[Ints, Ints]:
        """Owner and rows of each strip of rows [n]."""
        count = -(-rows // self.tiling.rows)
        owner = np.repeat(np.arange(len(rows)), count)
        place = np.arange(len(owner)) - np.repeat(np.cumsum(count) - count, count)
        return owner, np.minimum(self.tiling.rows, rows[owner] - place * self.tiling.rows)

    def _sum(self, sent: Ints, group: Ints, across: int, behind: Ints) -> Ints:
        """A column of the result [tokens, columns] of each rank, in strips, when all ranks have sent theirs."""
        w = len(self.ranks)
        labels: Labels = {"rank": np.repeat(np.arange(w), across), "layer": self.number}
        there = self.builder.block(w * across, Work("join"), None, joined=grouped(sent, group, w * across), labels=labels)
        owner, rows = self._strips(np.array(self.shape.tokens))
        rank, column = np.tile(owner, across), np.repeat(np.arange(across), len(owner))
        work = self.row_works("combine", np.tile(rows, across), self.tiling.columns, "reduce")
        labels = {"rank": rank, "layer": self.number, "priority": column}
        done = self.builder.block(len(rank), work, self.movers[rank], [there[rank * across + column]], labels=labels)
        return self.join(done, rank, behind)
