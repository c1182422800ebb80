"""Staging: a fixed count of page-aligned buffers, held in memory where the system allows it, that reads land in.

They lie on huge pages where there are some: a direct read then has one segment where it has 256 of 4 KiB
otherwise, and reaches two to three times the rate (docs/expert-pool.md).
"""

from __future__ import annotations

import ctypes
import mmap
import queue
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

PAGE = mmap.PAGESIZE
HUGE = 2 << 20


class Staging:
    """`count` buffers of `nbytes` each; who finds none free waits for one.

    pinned: whether all of them are locked into memory (RLIMIT_MEMLOCK has room for them). taken: most that
    were out at a time.
    """

    def __init__(self, count: int, nbytes: int) -> None:
        assert count > 0 and nbytes > 0 and nbytes % PAGE == 0, (count, nbytes)
        self.count, self.nbytes = count, nbytes
        self.taken = 0
        self._map = mmap.mmap(-1, count * nbytes + HUGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            self._map.madvise(mmap.MADV_HUGEPAGE)
        whole: NDArray[np.uint8] = np.frombuffer(self._map, np.uint8)
        start = -whole.ctypes.data % HUGE
        memory = whole[start : start + count * nbytes]
        self.pinned = _lock(memory)
        self._free: queue.SimpleQueue[NDArray[np.uint8]] = queue.SimpleQueue()
        for i in range(count):
            self._free.put(memory[i * nbytes : (i + 1) * nbytes])

    @property
    def total_bytes(self) -> int:
        return self.count * self.nbytes

    @contextmanager
    def buffer(self) -> Iterator[NDArray[np.uint8]]:
        """One buffer [nbytes], for as long as the context lasts."""
        held = self._free.get()
        self.taken = max(self.taken, self.count - self._free.qsize())
        try:
            yield held
        finally:
            self._free.put(held)


def _lock(memory: NDArray[np.uint8]) -> bool:
    memory.fill(0)
    mlock = getattr(ctypes.CDLL(None, use_errno=True), "mlock", None)
    return mlock is not None and mlock(ctypes.c_void_p(memory.ctypes.data), ctypes.c_size_t(memory.nbytes)) == 0
