"""Rows: the memory of a rank that puts read and write, one array of activation rows.

All messages are runs of rows of one array, so that what a peer sends back is found by row number,
wherever it landed, and the combine kernel sums it from there without a copy.
"""

from __future__ import annotations

import threading
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from exec.arena import ALIGN, Arena, Gaps, rounded
from sim.errors import UserError

Floats = NDArray[np.float32]


def lasting(name: str, shape: tuple[int, ...]) -> Floats:
    """Memory for as long as the array lives, in large pages where the system has them: what is streamed through small ones
    takes a third longer. Touched once, so that no page is missing later."""
    return Arena(name, rounded(4 * int(np.prod(shape)) or ALIGN)).take(name, shape, touch=True)


class Piece(NamedTuple):
    """Rows [first, first + count) of a `RowMemory`."""

    first: int
    count: int


class RowMemory:
    """array [rows, width] float32, handed out in pieces, first-fit."""

    def __init__(self, rows: int, width: int) -> None:
        self.array = lasting("rows", (rows, width))
        self._gaps = Gaps(rows)
        self._lock = threading.Lock()
        self._used = 0
        self.peak = 0
        """Most rows that were taken at a time."""

    def take(self, count: int) -> Piece:
        """Raises UserError where no gap is large enough."""
        with self._lock:
            first = self._gaps.take(count)
            if first is None:
                raise UserError(
                    f"row memory: {count} rows are missing, {self._gaps.largest} of {len(self.array)} are free in one piece; "
                    "lower --tokens or the batch"
                )
            self._used += count
            self.peak = max(self.peak, self._used)
        return Piece(first, count)

    def give(self, piece: Piece) -> None:
        with self._lock:
            self._gaps.give(*piece)
            self._used -= piece.count

    def of(self, piece: Piece) -> Floats:
        return self.array[piece.first : piece.first + piece.count]
