"""The list that the kernel's blocks draw tickets over, as one array."""

from __future__ import annotations

import numpy as np

from kernels.fused_moe.tiles import DOWN, GATE_UP

OP, BLOCK, CHUNK, JUMP = range(4)
"""Columns: kind of tile, token block or slot, chunk of columns, and where to go on when the slot is surplus."""


def program(op: np.ndarray, block: np.ndarray, chunk: np.ndarray) -> np.ndarray:
    """[n, 4] int32 in the order of tickets, which must respect every dependency between tiles.

    A ticket whose slot does not exist implies that the tickets behind it, as long as they are of its
    kind and of no lower slot, do not exist either: JUMP is the first that may. So one block passes
    over all of them, where drawing each would cost an atomic operation a piece.
    """
    n = len(op)
    rows = np.empty((n, 4), np.int32)
    rows[:, OP], rows[:, BLOCK], rows[:, CHUNK] = op, block, chunk
    stop = np.ones(n, np.bool_)
    stop[:-1] = (op[1:] != op[:-1]) | (block[1:] < block[:-1])
    ends = np.flatnonzero(stop) + 1
    jump = ends[np.searchsorted(ends, np.arange(n), side="right")]
    tiled = (op == GATE_UP) | (op == DOWN)
    rows[:, JUMP] = np.where(tiled, jump, np.arange(1, n + 1))
    return rows
