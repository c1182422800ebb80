"""Tiles of a fused MoE layer: how the work is cut, how many there are at most, and what one costs.

Stages, in the order in which data flows:

    route     logits of the router; where all experts are in one tile, the top-k too
    dispatch  each token's rows in the order of experts, and the table of slots
    gate_up   gate and up projection of some columns for one slot, and the activation
    down      down projection of some columns for one slot
    combine   weighted sum of each token's k rows over some columns, added to the residual

A *slot* is up to `rows` rows of one expert. How many slots there are is known only after routing, so
a list of tiles is made for the most that there can be. Tiles of a slot that does not come about are
surplus: nobody waits for them.

In the *decode* form the few tokens are one block, the router's experts are spread over tiles, and
every block of the kernel chooses the experts for itself, which saves the barrier behind `dispatch`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from kernels import combine, dispatch, expert_ffn, linear, router
from kernels.cost import EXPERT_ID_BYTES, ROW_BYTES, Cost

REGISTER_COLUMNS = 6
"""Columns of a register tile of the CPU form (kernels/gemm.py): tiles of a multiple leave none for the slow rest."""

OPS = ("route_tile", "dispatch_tile", "gate_up_tile", "down_tile", "combine_tile")
ROUTE, DISPATCH, GATE_UP, DOWN, COMBINE = range(5)


class Shape(NamedTuple):
    """One layer over `tokens` rows."""

    tokens: int
    hidden: int
    ffn: int
    experts: int
    top_k: int

    @property
    def routes(self) -> int:
        """Rows that the experts compute: each token has `top_k`."""
        return self.tokens * self.top_k


class Tiling(NamedTuple):
    """Sizes of tiles; the last of each kind may be smaller.

    tokens: rows of x in a route, dispatch or combine tile. experts: router columns of a route tile.
    rows: most rows of a slot. gate_up: columns of the activation. down, combine: columns of the
    result; `combine` is a multiple of `down`.
    """

    tokens: int
    experts: int
    rows: int
    gate_up: int
    down: int
    combine: int


@dataclass(frozen=True, slots=True)
class Tiles:
    """A layer cut into tiles: the number of each kind. Raises ValueError for sizes that do not fit together."""

    shape: Shape
    tiling: Tiling

    def __post_init__(self) -> None:
        if min(*self.shape, *self.tiling) < 1 or self.shape.top_k > self.shape.experts:
            raise ValueError(f"sizes must be positive, top_k at most experts: {self.shape}, {self.tiling}")
        if self.tiling.combine % self.tiling.down:
            raise ValueError(f"combine columns {self.tiling.combine} must be a multiple of down columns {self.tiling.down}")
        if self.decode and self.token_blocks > 1:
            raise ValueError(f"a router cut by experts needs all {self.shape.tokens} tokens in one block of {self.tiling.tokens}")

    @property
    def decode(self) -> bool:
        """Whether the router is cut by experts, and every block of the kernel chooses for itself."""
        return self.tiling.experts < self.shape.experts

    @property
    def token_blocks(self) -> int:
        return _parts(self.shape.tokens, self.tiling.tokens)

    @property
    def route_chunks(self) -> int:
        return _parts(self.shape.experts, self.tiling.experts)

    @property
    def slots(self) -> int:
        """Most slots under any routing.

        Each of the n experts that are touched has one slot, and `rows` further rows open another:
        sum of ceil(r_e / rows) is at most n + (routes - n) / rows; no expert has more rows than tokens.
        """
        touched = min(self.shape.experts, self.shape.routes)
        spread = touched + (self.shape.routes - touched) // self.tiling.rows
        return min(spread, touched * _parts(self.shape.tokens, self.tiling.rows))

    @property
    def gate_up_chunks(self) -> int:
        return _parts(self.shape.ffn, self.tiling.gate_up)

    @property
    def down_chunks(self) -> int:
        return _parts(self.shape.hidden, self.tiling.down)

    @property
    def combine_chunks(self) -> int:
        return _parts(self.shape.hidden, self.tiling.combine)


def _parts(size: int, part: int) -> int:
    return -(-size // part)


def part(size: int, width: int, index: int) -> int:
    """Width of part `index` when `size` is cut into parts of `width`."""
    return min(width, size - index * width)


def work(shape: Shape, expert_rows: Sequence[int], b: int) -> Cost:
    """A whole layer, whatever its tiles: router, dispatch, each expert over its `expert_rows` [experts], combine."""
    tokens, hidden, ffn, experts, k = shape
    whole = router.work(tokens, hidden, experts, k, b) + dispatch.work(tokens, k, hidden, b) + combine.work(tokens, k, hidden, b)
    return sum((expert_ffn.work(rows, hidden, ffn, b) for rows in expert_rows), start=whole)


def cost(op: int, rows: int, columns: int, shape: Shape, b: int) -> Cost:
    """Work of one tile of kind `op`: `rows` tokens or rows of a slot, `columns` of its result (route:
    experts; dispatch: none). The flops of all tiles of a layer sum to those of its separate ops.

    Bytes: operands once, results once; a slot's gate and up stay on the chip, its rows of x are
    gathered where they lie.
    """
    hidden, ffn, k = shape.hidden, shape.ffn, shape.top_k
    if op == ROUTE:
        chosen = router.select_work(rows, columns, k, b) if columns == shape.experts else Cost(0, 0)
        return linear.work(rows, hidden, columns, b) + chosen
    if op == DISPATCH:
        return Cost(0, rows * k * (EXPERT_ID_BYTES + 2 * ROW_BYTES))
    if op == GATE_UP:
        return Cost((4 * hidden + 5) * rows * columns, b * (rows * hidden + 2 * columns * hidden + rows * columns))
    if op == DOWN:
        return linear.work(rows, ffn, columns, b)
    assert op == COMBINE, f"op {op}"
    return combine.work(rows, k, columns, b)
