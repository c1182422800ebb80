"""Memory that streams share: a piece is handed on with what its next owner must wait for."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping

import numpy as np
import torch

from exec.arena import Budget, rounded
from exec.backends.cuda.device import Token
from exec.state import MicroBatch
from sim import buffers


class StreamArena(Budget):
    """One allocation `memory` (uint8, on the device or page-locked) under a budget.

    A piece may be given back while work on it is enqueued: whoever takes any of its bytes next waits for
    the tokens that it was given back with.
    """

    def __init__(self, name: str, budget_bytes: int, memory: torch.Tensor, *, poison: bool = False) -> None:
        super().__init__(name, budget_bytes, len(memory))
        self._memory = memory
        self._poison = poison
        self._recent: list[tuple[int, int, tuple[Token, ...]]] = []
        """(start, end, tokens) of ranges given back whose last use may not be over."""

    def take(
        self, name: str, shape: int | tuple[int, ...], dtype: torch.dtype = torch.float32, *, touch: bool = False,
        after: list[Token] | None = None,
    ) -> torch.Tensor:  # fmt: skip
        """A piece of `shape`, its contents undefined; `after` is given the tokens to wait for before it is
        touched (None: this waits for them). Raises UserError where the budget has no room for it."""
        count = int(np.prod(shape))
        nbytes = count * dtype.itemsize
        with self._lock:
            offset, size = self._reserve(name, nbytes)
            tokens = self._claim(offset, offset + size)
        if after is None:
            for token in tokens:
                token.event.synchronize()
        else:
            after += tokens
        piece = self._memory[offset : offset + nbytes].view(dtype).view(shape)
        if after is None and (self._poison or touch):
            piece.fill_(float("nan") if self._poison and dtype.is_floating_point else 0)
        return piece

    def give(self, name: str, tokens: Iterable[Token] = ()) -> None:
        """Give a piece back; `tokens`: the ends of all work that touches it."""
        with self._lock:
            offset, size = self._return(name)
            left = tuple(t for t in tokens if not t.event.query())
            if left:
                self._recent.append((offset, offset + size, left))
            self._gaps.give(offset, size)

    def _claim(self, start: int, end: int) -> list[Token]:
        """Tokens of recent uses of a range, which is no longer free. The lock is held."""
        found: list[Token] = []
        kept: list[tuple[int, int, tuple[Token, ...]]] = []
        for a, b, tokens in self._recent:
            if a < end and start < b:
                found += tokens
                kept += [(x, y, tokens) for x, y in ((a, min(b, start)), (max(a, end), b)) if x < y]
            elif not all(t.event.query() for t in tokens):
                kept.append((a, b, tokens))
        self._recent = kept
        return found


class Held:
    """A buffer that holds something. tokens: the latest use of it by each stream."""

    __slots__ = ("array", "batch", "tokens", "uses")

    def __init__(self, array: torch.Tensor, batch: MicroBatch) -> None:
        self.array = array
        self.batch = batch
        self.tokens: list[Token] = []
        self.uses: set[str] = set()

    def used_by(self, token: Token) -> None:
        self.tokens = [t for t in self.tokens if t.stream is not token.stream] + [token]


class StreamBuffers:
    """Contents of named buffers (see `sim.buffers`), in the arena of the memory that each lives in.

    As `exec.backends.buffers.Buffers`, for work that is enqueued: a buffer is dropped with the tokens of
    everything that touches it.
    """

    def __init__(self, arenas: Mapping[str, StreamArena]) -> None:
        self._arenas = arenas
        self._lock = threading.Lock()
        self._held: dict[str, Held] = {}

    def write(self, name: str, shape: tuple[int, ...], batch: MicroBatch, after: list[Token]) -> torch.Tensor:
        """Room for new contents; `after` is given what to wait for before they are written."""
        with self._lock:
            stale = self._held.pop(name, None)
        arena = self._arenas[buffers.memory(name)]
        if stale is not None:
            arena.give(name, stale.tokens)
        held = Held(arena.take(name, shape, after=after), batch)
        with self._lock:
            self._held[name] = held
        return held.array

    def read(self, name: str) -> Held:
        held = self._held.get(name)
        assert held is not None, f"buffer {name} holds nothing: it was never written, or used up already"
        return held

    def used(self, names: Iterable[str], token: Token) -> None:
        """A task that touches these buffers is enqueued and ends with `token`."""
        with self._lock:
            for name in names:
                if name in self._held:
                    self._held[name].used_by(token)

    def drop(self, name: str) -> None:
        """Its contents are used up by what is enqueued."""
        with self._lock:
            held = self._held.pop(name)
        self._arenas[buffers.memory(name)].give(name, held.tokens)

    def used_for(self, name: str, use: str, of: frozenset[str]) -> None:
        """One of the uses `of` these contents is enqueued; after the last one they are dropped."""
        with self._lock:
            uses = self._held[name].uses
            uses.add(use)
            last = uses >= of
        if last:
            self.drop(name)


def sized(name: str, budget_bytes: int, wanted_bytes: int) -> int:
    """Bytes to allocate for a memory of which a plan wants so many: they, and room to place them, within the budget."""
    return min(rounded(budget_bytes), rounded(wanted_bytes + wanted_bytes // 8 + (1 << 20)))
