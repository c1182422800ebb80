"""What the tiles of one layer share: buffers, counters, and the stamps that they leave."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from kernels.fused_moe.tiles import Tiles

TICKET, EXITED, ROUTED, DISPATCHED, GATED = range(5)
"""Counters: next ticket; blocks that have left; route and dispatch tiles that are done; from GATED on,
gate_up tiles done of each slot, then down tiles done of each combine chunk."""


class Sizes(NamedTuple):
    """The numbers of `Tiles` as compiled code takes them."""

    tokens: int
    hidden: int
    ffn: int
    experts: int
    top_k: int
    token_rows: int
    route_columns: int
    rows: int
    gate_up_columns: int
    down_columns: int
    combine_columns: int
    route_tiles: int
    token_blocks: int
    slots: int
    gate_up_chunks: int
    decode: bool


(
    TOKENS, HIDDEN, FFN, EXPERTS, TOP_K, TOKEN_ROWS, ROUTE_COLUMNS, ROWS, GATE_UP_COLUMNS, DOWN_COLUMNS, COMBINE_COLUMNS,
    ROUTE_TILES, TOKEN_BLOCKS, SLOTS, GATE_UP_CHUNKS, DECODE,
) = range(len(Sizes._fields))  # fmt: skip
"""Places in `Sizes` where it is handed over as an int32 array."""


def sizes(tiles: Tiles) -> Sizes:
    return Sizes(
        *tiles.shape, *tiles.tiling, route_tiles=tiles.token_blocks * tiles.route_chunks, token_blocks=tiles.token_blocks,
        slots=tiles.slots, gate_up_chunks=tiles.gate_up_chunks, decode=tiles.decode,
    )  # fmt: skip


class State(NamedTuple):
    """Memory that outlives a tile. p stands for 1, or in the CPU's decode form for the blocks, each of which
    keeps its own copy of what it chose (on a GPU, in shared memory).

    logits [tokens, experts] float32. ids [p, tokens, k] int16, weights [p, tokens, k] float32,
    positions [p, tokens, k]: the row of each route. token_of [p, routes]: token of each row.
    cursor [p, experts]: scratch. counts [token blocks, experts]: histogram of each block.
    table [p, slots, 3]: expert, first row, row behind the last. found [p]: slots that came about.
    act [routes, ffn], y [routes, hidden]. counters: see TICKET. known [1]: nanosecond at which routing
    was known, 0 before. stamps [n, 2]: start and end of each ticket in ns; ran_on [n]: its block, or
    ~block where it was surplus.
    """

    logits: Any
    ids: Any
    weights: Any
    positions: Any
    token_of: Any
    cursor: Any
    counts: Any
    table: Any
    found: Any
    act: Any
    y: Any
    counters: Any
    known: Any
    stamps: Any
    ran_on: Any


def layout(tiles: Tiles, p: int, tickets: int, element: Any = np.float32) -> dict[str, tuple[tuple[int, ...], Any]]:
    """Shape and dtype of each array of `State`."""
    s, cursors = tiles.shape, max(p, tiles.token_blocks)
    return {
        "logits": ((s.tokens, s.experts), np.float32),
        "ids": ((p, s.tokens, s.top_k), np.int16),
        "weights": ((p, s.tokens, s.top_k), np.float32),
        "positions": ((p, s.tokens, s.top_k), np.int32),
        "token_of": ((p, s.routes), np.int32),
        "cursor": ((cursors, s.experts), np.int32),
        "counts": ((tiles.token_blocks, s.experts), np.int32),
        "table": ((p, tiles.slots, 3), np.int32),
        "found": ((p,), np.int32),
        "act": ((s.routes, s.ffn), element),
        "y": ((s.routes, s.hidden), element),
        "counters": ((GATED + tiles.slots + tiles.combine_chunks,), np.int32),
        "known": ((1,), np.int64),
        "stamps": ((tickets, 2), np.int64),
        "ran_on": ((tickets,), np.int32),
    }


def host_state(tiles: Tiles, blocks: int, tickets: int, **given: np.ndarray) -> State:
    """Arrays in host memory, but for those that are given; a launch leaves the counters at zero for the next."""
    arrays = layout(tiles, blocks if tiles.decode else 1, tickets).items()
    return State(**{name: np.zeros(shape, dtype) for name, (shape, dtype) in arrays if name not in given}, **given)
