"""Arena: one memory of the machine, a single allocation under a hard byte budget.

What lives there is taken by name and given back by name. Pieces are 64-byte aligned and placed
first-fit; `peak_bytes` is the most that was taken at a time, as it happened.
"""

from __future__ import annotations

import mmap
import sys
import threading
from bisect import bisect_left
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from sim.errors import UserError

ALIGN = 64
"""Bytes; a cache line, and the widest vector."""

_NORESERVE = 0x4000 if sys.platform == "linux" else 0
"""MAP_NORESERVE (Python 3.13 names it): a budget may be larger than this computer's memory, what is
touched may not."""

KNOBS = {
    "gpu": "lower --microbatch or --batch, or raise memories.gpu of the machine",
    "cpu": "lower --batch, or raise memories.cpu of the machine",
    "pinned": "lower --batch, raise static_experts in the policy, or raise memories.pinned of the machine",
}


class Budget:
    """The books of memory `name`, with room for `budget_bytes`: which of its `size` bytes are taken, and by whom."""

    def __init__(self, name: str, budget_bytes: int, size: int) -> None:
        assert budget_bytes > 0, f"memory {name}: {budget_bytes} bytes"
        self.name = name
        self.budget_bytes = budget_bytes
        self.used_bytes = 0
        self.peak_bytes = 0
        self._lock = threading.Lock()
        self._gaps = Gaps(size)
        self._taken: dict[str, tuple[int, int]] = {}

    def adopt(self, name: str, nbytes: int) -> None:
        """Charge memory that somebody else has allocated (weights as they were loaded) to the budget."""
        with self._lock:
            self._charge(name, nbytes)

    def _reserve(self, name: str, nbytes: int) -> tuple[int, int]:
        """(offset, size) of a new piece. Raises UserError where the budget has no room for it. The lock is held."""
        size = rounded(max(1, nbytes))
        assert name not in self._taken, f"memory {self.name}: {name} was taken already"
        self._charge(name, size)
        self._taken[name] = self._place(name, size), size
        return self._taken[name]

    def _return(self, name: str) -> tuple[int, int]:
        """(offset, size) of a piece that nobody uses any more; its gap is the caller's to fill. The lock is held."""
        offset, size = self._taken.pop(name)
        self.used_bytes -= size
        return offset, size

    def _charge(self, name: str, size: int) -> None:
        missing = self.used_bytes + size - self.budget_bytes
        if missing > 0:
            raise UserError(
                f"memory {self.name!r}: {missing:,} bytes are missing for {name} ({size:,} bytes; {self.used_bytes:,} of "
                f"{self.budget_bytes:,} are in use); {KNOBS.get(self.name, f'raise memories.{self.name} of the machine')}"
            )
        self.used_bytes += size
        self.peak_bytes = max(self.peak_bytes, self.used_bytes)

    def _place(self, name: str, size: int) -> int:
        offset = self._gaps.take(size)
        if offset is None:
            self.used_bytes -= size
            largest = self._gaps.largest
            raise UserError(
                f"memory {self.name!r}: {size - largest:,} bytes are missing in one piece for {name} ({size:,} bytes; the largest gap "
                f"has {largest:,}); {KNOBS.get(self.name, f'raise memories.{self.name} of the machine')}"
            )
        return offset


class Arena(Budget):
    """Memory `name` of this computer, float32 NumPy pieces.

    poison: fill what is taken with NaN, so that a read before the write shows (tests).
    """

    def __init__(self, name: str, budget_bytes: int, *, poison: bool = False) -> None:
        size = rounded(budget_bytes)
        super().__init__(name, budget_bytes, size)
        self._poison = poison
        self._map = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NORESERVE)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            self._map.madvise(mmap.MADV_HUGEPAGE)
        self._memory: NDArray[np.uint8] = np.frombuffer(self._map, np.uint8)

    def take(self, name: str, shape: int | tuple[int, ...], *, touch: bool = False) -> NDArray[np.float32]:
        """A piece of `shape` float32, its contents undefined. touch: write it once, so that the first run
        finds its pages mapped. Raises UserError where the budget has no room for it."""
        count = int(np.prod(shape))
        with self._lock:
            offset, _ = self._reserve(name, count * 4)
        piece = self._memory[offset : offset + count * 4].view(np.float32).reshape(shape)
        if self._poison:
            piece.fill(np.nan)
        elif touch:
            piece.fill(0)
        return piece

    def give(self, name: str) -> None:
        """Give a piece back; nobody may use it any more."""
        with self._lock:
            offset, size = self._return(name)
            if self._poison:
                self._memory[offset : offset + size].view(np.float32).fill(np.nan)
            self._gaps.give(offset, size)

    def prefault(self, nbytes: int) -> None:
        """Touch as many bytes of the first gaps, so that the first run finds its pages mapped."""
        with self._lock:
            for offset, size in self._gaps:
                touched = min(size, nbytes)
                self._memory[offset : offset + touched].fill(0)
                nbytes -= touched


class Gaps:
    """Free ranges of 0 .. size - 1, first-fit; neighbours merge when one is given back. O(gaps) each."""

    def __init__(self, size: int) -> None:
        self._free = [(0, size)] if size else []
        """(offset, size) of each, by offset; no two touch."""

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return iter(self._free)

    @property
    def largest(self) -> int:
        return max((size for _, size in self._free), default=0)

    def take(self, size: int) -> int | None:
        """Offset of `size` in the first gap that is large enough; None: there is none."""
        if not size:
            return 0
        for i, (offset, gap) in enumerate(self._free):
            if gap >= size:
                self._free[i : i + 1] = [(offset + size, gap - size)] if gap > size else []
                return offset
        return None

    def give(self, offset: int, size: int) -> None:
        i = bisect_left(self._free, (offset, 0))
        before = self._free[i - 1] if i else (0, -1)
        after = self._free[i] if i < len(self._free) else (-1, 0)
        first, last = i, i
        if sum(before) == offset:
            offset, size, first = before[0], before[1] + size, i - 1
        if offset + size == after[0]:
            size, last = size + after[1], i + 1
        self._free[first:last] = [(offset, size)]


def rounded(size: int) -> int:
    return -(-size // ALIGN) * ALIGN
