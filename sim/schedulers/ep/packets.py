"""Packets: what each rank sends to each expert, cut into strips of rows that become tiles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sim.errors import UserError
from sim.schedulers.ep.base import Shape
from sim.schedulers.ep.columns import Ints


class Tiling(NamedTuple):
    """Rows and columns of an output tile."""

    rows: int = 128
    columns: int = 64

    def check(self, shape: Shape) -> Shape:
        """Raises UserError where tiles do not cover the layer's matrices exactly."""
        for name, value in self._asdict().items():
            if value < 1:
                raise UserError(f"tiling.{name}: is {value}; 1 or more is needed")
        for name in ("hidden", "ffn"):
            if getattr(shape, name) % self.columns:
                raise UserError(f"tiling.columns: is {self.columns}; a divisor of {name} = {getattr(shape, name)} is needed")
        return shape

    def across(self, width: int) -> int:
        """Tiles that cover so many columns."""
        return width // self.columns


@dataclass(frozen=True, eq=False, slots=True)
class Packets:
    """P = ranks x experts packets. rows [P]; target: the rank that holds the expert.

    A target has its own packets first, then those of the next rank, and so on: so what comes at once is not taken from one source
    everywhere.
    """

    source: Ints
    expert: Ints
    target: Ints
    rows: Ints

    @property
    def count(self) -> int:
        return len(self.rows)


@dataclass(frozen=True, eq=False, slots=True)
class Strips:
    """M strips of at most so many rows of one packet each. packet [M], rows [M]."""

    packet: Ints
    rows: Ints

    @property
    def count(self) -> int:
        return len(self.rows)


def packets(rows: NDArray[np.int64], ranks: int) -> Packets:
    """rows [ranks, experts]."""
    source, expert = np.divmod(np.arange(rows.size), rows.shape[1])
    target = expert // (rows.shape[1] // ranks)
    order = np.lexsort((expert, (source - target) % ranks))
    return Packets(source[order], expert[order], target[order], rows.reshape(-1)[order])


def strips(of: Packets, height: int) -> Strips:
    """Packets without rows have none."""
    count = -(-of.rows // height)
    packet = np.repeat(np.arange(of.count), count)
    place = np.arange(len(packet)) - np.repeat(np.cumsum(count) - count, count)
    return Strips(packet, np.minimum(height, of.rows[packet] - place * height))


def capacity(tokens: int, experts: int, top_k: int, factor: float) -> int:
    """Rows that an expert takes from one rank: factor x k x ceil(tokens / experts) (FlashDMoE, arXiv 2506.04667, section 3)."""
    return min(tokens, int(np.ceil(factor * top_k * -(-tokens // experts))))


def upper_bounds(shape: Shape, factor: float) -> NDArray[np.int64]:
    """[ranks, experts], rows where only the capacity is known."""
    per_rank = [capacity(t, shape.experts, shape.top_k, factor) for t in shape.tokens]
    return np.repeat(np.array(per_rank, np.int64)[:, None], shape.experts, axis=1)


def check_rows(rows: NDArray[np.int64], tokens: Sequence[int], shape: Shape) -> NDArray[np.int64]:
    """Raises UserError unless rows [ranks, experts] can be what top-k routing of these tokens gives (after drops)."""
    if rows.shape != (shape.ranks, shape.experts):
        raise UserError(f"rows: have shape {rows.shape}; [{shape.ranks}, {shape.experts}] (rank, expert) is needed")
    most = np.array(tokens)[:, None]
    if (rows < 0).any() or (rows > most).any() or (rows.sum(axis=1) > most[:, 0] * shape.top_k).any():
        raise UserError(f"rows: are not what top-{shape.top_k} routing of {list(tokens)} tokens gives: each expert at most once a token")
    return rows
