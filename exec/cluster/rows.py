"""Rows: the memory of a rank that puts read and write, one array of activation rows.

All messages are runs of rows of one array, so that what a peer sends back is found by row number,
wherever it landed, and the combine kernel sums it from there without a copy.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from exec.arena import ALIGN, Arena, rounded

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
    """array [rows, width] float32, handed out in pieces of two sizes, which never leave gaps between them.

    landing, sending: (rows of a piece, how many there are) for what peers send and for what is sent. make(name, shape): where
    it lies, by default in this computer's memory.
    """

    def __init__(
        self, width: int, landing: tuple[int, int], sending: tuple[int, int], make: Callable[[str, tuple[int, ...]], Any] = lasting
    ) -> None:
        self._sizes = landing, sending
        self._border = landing[0] * landing[1]
        self.array = make("rows", (self._border + sending[0] * sending[1], width))
        self._lock = threading.Lock()
        self.forget()

    def forget(self) -> None:
        """All pieces are free again, whoever had taken them."""
        (rows, count), (own, owned) = self._sizes
        self._landing = [Piece(k * rows, rows) for k in range(count)]
        self._sending = [Piece(self._border + k * own, own) for k in range(owned)]

    def land(self) -> Piece:
        """A piece for what a peer sends."""
        return self._take(self._landing, "landing")

    def send(self) -> Piece:
        """A piece for what is sent."""
        return self._take(self._sending, "sending")

    def _take(self, free: list[Piece], what: str) -> Piece:
        with self._lock:
            assert free, f"row memory: all pieces for {what} are taken; the schedule leaves more unread than it has chunks and peers"
            return free.pop()

    def give(self, piece: Piece) -> None:
        with self._lock:
            (self._landing if piece.first < self._border else self._sending).append(piece)

    def of(self, piece: Piece) -> Floats:
        return self.array[piece.first : piece.first + piece.count]
