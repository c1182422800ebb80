"""What the named buffers of one rank hold (`sim.ep`): routes, rows to send, rows that have arrived."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from exec.cluster.rows import Floats, Piece
from exec.runtime import HazardError


@dataclass(slots=True)
class Routes:
    """What the gate of one layer found. normed [t, H], ids [t, k] int16, weights [t, k]."""

    normed: Floats
    ids: NDArray[np.int16]
    weights: Floats


class Part(NamedTuple):
    """Rows of one pair of ranks: behind a header row of the row memory, sorted by expert.

    piece: what it lies in; first: its first row, the header being the row before; counts: rows of each
    expert of the rank that computes them.
    """

    piece: Piece
    first: int
    counts: NDArray[np.int32]

    @property
    def rows(self) -> int:
        return int(self.counts.sum())

    @property
    def message(self) -> Piece:
        return Piece(self.first - 1, self.rows + 1)


class Sent(NamedTuple):
    """A chunk's rows sorted by expert. parts [ranks]: by the rank that computes them; positions [t, k]: row in the
    row memory of each token's copies; server [t, k]: the rank that computes each; start: the chunk's first token."""

    piece: Piece
    parts: tuple[Part, ...]
    positions: NDArray[np.int32]
    server: NDArray[np.int32]
    start: int


class Store:
    """Contents by buffer name. Writing over what nobody has taken yet is an error of the schedule.

    hidden [t, H]: the residual stream of this rank's rows, updated in place as in the single process, so both
    hidden.R.0 and hidden.R.1. routes: what routes.R holds.
    """

    hidden: Floats
    routes: Routes

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held: dict[str, Any] = {}

    def write(self, name: str, value: Any) -> None:
        with self._lock:
            if name in self._held:
                raise HazardError(f"buffer {name!r}: is overwritten before it was read; a dependency is missing")
            self._held[name] = value

    def read(self, name: str) -> Any:
        value = self._held.get(name)
        assert value is not None, f"buffer {name} holds nothing: it was never written, or used up already"
        return value

    def take(self, name: str) -> Any:
        """Read it for the last time."""
        with self._lock:
            assert name in self._held, f"buffer {name} holds nothing: it was never written, or used up already"
            return self._held.pop(name)

    def left(self) -> list[str]:
        """Buffers that hold something."""
        with self._lock:
            return sorted(self._held)
