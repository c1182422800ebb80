"""Buffers of activations: taken from the arena of their memory when written, given back when used up."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from exec.arena import Arena
from exec.state import MicroBatch
from sim import buffers


class Held:
    """A buffer that holds something: `array` [rows, width], the rows of `batch`."""

    __slots__ = ("array", "batch", "uses")

    def __init__(self, array: NDArray[np.float32], batch: MicroBatch) -> None:
        self.array = array
        self.batch = batch
        self.uses: set[str] = set()


class Buffers:
    """Contents of named buffers (see `sim.buffers`), each in the arena of the memory that it lives in.

    Writing a buffer again drops what it held: a pass that was given up leaves buffers behind.
    """

    def __init__(self, arenas: Mapping[str, Arena]) -> None:
        self._arenas = arenas
        self._lock = threading.Lock()
        self._held: dict[str, Held] = {}

    def write(self, name: str, shape: tuple[int, ...], batch: MicroBatch) -> NDArray[np.float32]:
        """Room for new contents of `name`. Raises UserError where the arena has none."""
        with self._lock:
            stale = self._held.pop(name, None)
        arena = self._arena(name)
        if stale is not None:
            arena.give(name)
        held = Held(arena.take(name, shape), batch)
        with self._lock:
            self._held[name] = held
        return held.array

    def read(self, name: str) -> Held:
        held = self._held.get(name)
        assert held is not None, f"buffer {name} holds nothing: it was never written, or used up already"
        return held

    def drop(self, name: str) -> None:
        """Its contents are used up."""
        with self._lock:
            del self._held[name]
        self._arena(name).give(name)

    def used(self, name: str, use: str, of: frozenset[str]) -> None:
        """One of the uses `of` this buffer's contents is over; after the last one they are dropped."""
        with self._lock:
            uses = self._held[name].uses
            uses.add(use)
            last = uses >= of
        if last:
            self.drop(name)

    def _arena(self, name: str) -> Arena:
        return self._arenas[buffers.memory(name)]


def one(names: Sequence[str]) -> str:
    """The first of the buffers that a task reads or writes."""
    assert len(names) >= 1, "the task names no buffer"
    return names[0]


def of_kind(names: Sequence[str], kind: str) -> str:
    """The buffer of that kind among them."""
    found = next((name for name in names if name.startswith(kind + ".")), None)
    assert found is not None, f"the task names no {kind} among {', '.join(names) or 'no buffers'}"
    return found
