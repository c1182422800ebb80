"""Mixed blocks: an expert's rows from all ranks together, cut into blocks that become rows of tiles."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sim.schedulers.ep.columns import Ints
from sim.schedulers.ep.packets import Packets


@dataclass(frozen=True, eq=False, slots=True)
class Mixed:
    """M blocks, expert by expert, and the S segments that they are filled with.

    expert, target, rows [M]. source, block, length [S]: so many rows of one rank in one block; an expert has the rows of its own
    rank first, then those of the next.
    """

    expert: Ints
    target: Ints
    rows: Ints
    source: Ints
    block: Ints
    length: Ints

    @property
    def count(self) -> int:
        return len(self.rows)

    def remote(self) -> tuple[Ints, Ints]:
        """[M], rows that came from other ranks, and the rank that most of those came from (without any: the target)."""
        away = np.where(self.source == self.target[self.block], 0, self.length)
        total = np.bincount(self.block, weights=away, minlength=self.count).astype(np.int64)
        most = self.target.copy()
        order = np.argsort(away, kind="stable")  # the last one written wins
        order = order[away[order] > 0]
        most[self.block[order]] = self.source[order]
        return total, most


def mixed(sent: Packets, height: int, ranks: int) -> Mixed:
    """Blocks of at most `height` rows."""
    order = np.lexsort(((sent.source - sent.target) % ranks, sent.expert))
    expert, source, rows = sent.expert[order], sent.source[order], sent.rows[order]
    ends = _running(rows, expert)
    experts = int(expert.max()) + 1
    total = np.bincount(expert, weights=rows, minlength=experts).astype(np.int64)
    blocks = -(-total // height)
    first = np.cumsum(blocks) - blocks
    low, high = (ends - rows) // height, -(-ends // height)
    pieces = np.where(rows > 0, high - low, 0)
    of = np.repeat(np.arange(len(rows)), pieces)
    place = low[of] + np.arange(len(of)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    length = np.minimum((place + 1) * height, ends[of]) - np.maximum(place * height, (ends - rows)[of])
    of_block = np.repeat(np.arange(experts), blocks)
    within = np.arange(len(of_block)) - first[of_block]
    return Mixed(
        expert=of_block, target=of_block // (experts // ranks), rows=np.minimum(height, total[of_block] - within * height),
        source=source[of], block=first[expert[of]] + place, length=length,
    )  # fmt: skip


def _running(rows: NDArray[np.int64], group: Ints) -> Ints:
    """Sums within each group, which stand one after another."""
    whole = np.cumsum(rows)
    before = np.zeros(int(group.max()) + 2, np.int64)
    np.add.at(before, group + 1, rows)
    return np.asarray(whole - np.cumsum(before)[group], np.int64)
