"""Tier: experts by slot in one memory of a fixed size.

Slots are names that somebody else gives out. A slot holds nothing, an expert, or the part of one that had come when
its load had to make way; that load may go on later. What a slot holds is given to a reader for as long as a context
lasts, and to all that the reader asked for or none. Experts of different sizes leave gaps that no newcomer fits; then
what is there moves together, once nobody uses it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

from exec.arena import ALIGN, Gaps, rounded
from exec.runtime import Interrupted
from kernels import compaction
from sim.errors import UserError

Floats = NDArray[np.float32]
Expert = tuple[int, int]
"""(layer, expert)."""

_CHUNK_WORDS = 1 << 20


class Segment:
    """What a slot has: `floats` elements from `first` on, of which the first `done` are in place. filling: whether
    somebody writes to it now; users: readers."""

    __slots__ = ("done", "expert", "filling", "first", "floats", "users")

    def __init__(self, first: int, floats: int, expert: Expert) -> None:
        self.first, self.floats, self.expert = first, floats, expert
        self.filling = False
        self.done = self.users = 0

    @property
    def full(self) -> bool:
        return self.done == self.floats and not self.filling

    @property
    def busy(self) -> bool:
        return self.users > 0 or self.filling


class Filling:
    """A slot that is being filled: `room` [floats], of which the first `done` are in place; its writer counts on."""

    __slots__ = ("done", "room")

    def __init__(self, room: Floats, done: int) -> None:
        self.room, self.done = room, done


class InUse(RuntimeError):
    """What a slot holds cannot go: somebody reads it, or it is being filled. It stays."""


class Tier:
    """name: of the budget, for people; memory: flat, 64-byte aligned.

    fills, evictions, compactions: counted since it was made; peak_bytes: most that was taken at a time.
    """

    def __init__(self, name: str, memory: Floats) -> None:
        assert memory.ctypes.data % ALIGN == 0, "the memory of a tier begins with a cache line"
        self.name = name
        self._memory = memory
        self._gaps = Gaps(memory.size)
        self._segments: dict[int, Segment] = {}
        self._changed = threading.Condition()
        self._used = 0
        self.peak_bytes = self.fills = self.evictions = self.compactions = 0
        compaction.forward(memory[:0].view(np.int32), np.zeros((0, 5), np.int64))  # compiled before the clock starts

    @property
    def budget_bytes(self) -> int:
        return self._memory.nbytes

    def held(self) -> dict[int, Expert]:
        """What each slot holds whole."""
        with self._changed:
            return {slot: s.expert for slot, s in self._segments.items() if s.full}

    @contextmanager
    def filling(self, slot: int, expert: Expert, floats: int, start: int = 0) -> Iterator[Filling]:
        """Room for an expert in a slot, in place of what it held; with a `start`, what is before it is there already
        (or all but its last element: shares are rounded).

        It holds the expert once the context has ended well. Where that is ended by `Interrupted`, what is in place
        stays for a filling that goes on; by any other error, the slot holds nothing. Raises InUse where what the slot
        holds is in use, UserError where there is no room; the slot then keeps what it has.
        """
        with self._changed:
            segment = self._opened(slot, expert, floats, start)
            segment.filling = True
            filling = Filling(self._view(segment), min(start, segment.done))
        try:
            yield filling
        except BaseException as error:
            with self._changed:
                segment.filling, segment.done = False, filling.done
                if isinstance(error, Interrupted) and filling.done:
                    self._changed.notify_all()
                else:
                    self._drop(slot)
            raise
        with self._changed:
            segment.filling, segment.done = False, floats
            self.fills += 1
            self._changed.notify_all()

    def _opened(self, slot: int, expert: Expert, floats: int, start: int) -> Segment:
        """The segment to fill: a new one, or that of a filling that goes on. The lock is held."""
        old = self._segments.get(slot)
        if start:
            found = "nothing" if old is None else f"{old.done} of {old.expert}"
            assert old is not None and old.expert == expert and not old.busy and start <= old.done + 1, (
                f"{self.name} slot {slot}: {expert} is to go on from {start}, the slot has {found}"
            )
            return old
        self._check_room(slot, expert, floats, old)
        if old is not None:
            self._evict(slot)
        segment = self._segments[slot] = Segment(self._room(_words(floats)), floats, expert)
        self.peak_bytes = max(self.peak_bytes, 4 * self._used)
        return segment

    @contextmanager
    def using(self, wanted: Sequence[tuple[int, Expert]]) -> Iterator[list[Floats]]:
        """The experts in these slots, all of them or none, where they stay until the context ends.

        Raises AssertionError, with none in use, for a slot that does not hold what is wanted.
        """
        with self._changed:
            for slot, expert in wanted:
                s = self._segments.get(slot)
                found = "nothing" if s is None else f"{s.expert}{'' if s.full else ', not whole yet'}"
                assert s is not None and s.full and s.expert == expert, f"{self.name} slot {slot}: {expert} wanted, holds {found}"
            segments = [self._segments[slot] for slot, _ in wanted]
            for segment in segments:
                segment.users += 1
        try:
            yield [self._view(segment) for segment in segments]
        finally:
            with self._changed:
                for segment in segments:
                    segment.users -= 1
                self._changed.notify_all()

    def evict(self, slot: int) -> None:
        """Forget what a slot holds. Raises InUse, with nothing lost, where somebody uses it."""
        with self._changed:
            self._evict(slot)

    def _evict(self, slot: int) -> None:
        segment = self._segments[slot]
        if segment.busy:
            doing = "being filled" if segment.filling else f"{segment.users} readers"
            raise InUse(f"{self.name} slot {slot}: expert {segment.expert} cannot go, it is in use ({doing})")
        self.evictions += segment.full
        self._drop(slot)

    def _drop(self, slot: int) -> None:
        segment = self._segments.pop(slot)
        size = _words(segment.floats)
        self._gaps.give(segment.first, size)
        self._used -= size
        self._changed.notify_all()

    def _view(self, segment: Segment) -> Floats:
        return self._memory[segment.first : segment.first + segment.floats]

    def _check_room(self, slot: int, expert: Expert, floats: int, old: Segment | None) -> None:
        free = self._memory.size - self._used + (_words(old.floats) if old is not None else 0)
        if _words(floats) > free:
            raise UserError(
                f"{self.name}: no room for expert {expert[1]} of layer {expert[0]} in slot {slot}: it has {4 * _words(floats):,} bytes, "
                f"{4 * free:,} of {self.budget_bytes:,} are free; raise {self.name}"
            )

    def _room(self, words: int) -> int:
        """First word of a new segment. The lock is held, and let go while others finish with what has to move."""
        self._used += words
        while (first := self._gaps.take(words)) is None:
            self._changed.wait_for(lambda: not any(s.busy for s in self._segments.values()))
            self._move_together()
        return first

    def _move_together(self) -> None:
        segments = list(self._segments.values())
        starts = np.array([s.first for s in segments], np.int64)
        moves, new = compaction.plan(starts, np.array([_words(s.floats) for s in segments], np.int64), _CHUNK_WORDS)
        compaction.forward(self._memory.view(np.int32), moves)
        for segment, first in zip(segments, new.tolist(), strict=True):
            segment.first = first
        self._gaps = Gaps(self._memory.size)
        self._gaps.take(sum(_words(s.floats) for s in segments))
        self.compactions += 1


def _words(floats: int) -> int:
    """float32 elements that a segment takes: whole cache lines."""
    return rounded(max(1, floats) * 4) // 4
