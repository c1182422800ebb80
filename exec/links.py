"""Links: real copies between arenas, as fast as they go or paced to a rate.

A paced transfer has absolute deadlines: byte b must not have arrived before t0 + b / rate. It moves
a chunk, sleeps until the chunk's deadline, and goes on; a sleep that lasts too long makes the next
one shorter, so only the last one's overshoot remains. The loop is compiled and runs without the
GIL: it costs the other lanes no Python, and little of a core (a memcpy and a sleep each millisecond).
POSIX only (nanosleep, CLOCK_MONOTONIC).
"""

from __future__ import annotations

import ctypes
import sys
import time

import numba
import numpy as np
from numba.core import types
from numpy.typing import NDArray

from exec.runtime import Interrupt, Interrupted

CHUNK_S = 1e-3
"""Time that one chunk of a paced transfer stands for: short beside the tasks that wait for it."""

CHUNK_BYTES = (1 << 16, 1 << 22)
"""Least and most bytes of a chunk. A native copy polls for interrupts once in the larger."""

SPIN_NS = 60_000
"""The last sleep of a transfer ends this much before its deadline; the rest is waited for awake,
which is exact. A sleeping thread of a virtual machine comes back about that much too late."""

_CLOCK = int(time.CLOCK_MONOTONIC)
_memcpy = types.ExternalFunction("memcpy", types.intp(types.intp, types.intp, types.uintp))
_clock_gettime = types.ExternalFunction("clock_gettime", types.int32(types.int32, types.intp))
_nanosleep = types.ExternalFunction("nanosleep", types.int32(types.intp, types.intp))


@numba.njit(nogil=True, cache=True)
def _now_ns(scratch):
    _clock_gettime(_CLOCK, scratch.ctypes.data)
    return scratch[0] * 1_000_000_000 + scratch[1]


@numba.njit(nogil=True, cache=True)
def _sleep_until(deadline_ns, awake_ns, scratch, flag):
    """Be awake for the last `awake_ns` of it. Returns early only where `flag` is set."""
    left = deadline_ns - _now_ns(scratch)
    while left > awake_ns and not flag[0]:
        # A long sleep in pieces, so that an interrupt is seen.
        nap = min(left - awake_ns, 50_000_000)
        scratch[0] = nap // 1_000_000_000
        scratch[1] = nap % 1_000_000_000
        _nanosleep(scratch.ctypes.data, 0)
        left = deadline_ns - _now_ns(scratch)
    while left > 0 and not flag[0]:
        left = deadline_ns - _now_ns(scratch)


@numba.njit(nogil=True, cache=True)
def _copy(target, source, bytes_per_s, chunk, origin_ns, before, total, flag):
    """Move `source` to `target` [n] uint8; `before` of `total` bytes of the transfer have moved already.
    bytes_per_s 0: native. Returns the bytes moved: fewer than n where `flag` was set."""
    scratch = np.empty(2, np.int64)
    n = source.size
    at = 0
    while at < n and not flag[0]:
        size = min(chunk, n - at)
        _memcpy(target.ctypes.data + at, source.ctypes.data + at, size)
        at += size
        if bytes_per_s > 0:
            awake_ns = SPIN_NS if before + at == total else 0
            _sleep_until(origin_ns + np.int64((before + at) / bytes_per_s * 1e9), awake_ns, scratch, flag)
    return at


@numba.njit(nogil=True, cache=True)
def _pace(bytes_per_s, origin_ns, moved, total, flag):
    _sleep_until(origin_ns + np.int64(moved / bytes_per_s * 1e9), SPIN_NS if moved == total else 0, np.empty(2, np.int64), flag)


class Link:
    """One direction between two memories. bytes_per_s: the rate to keep to; None: native.

    moved_bytes counts what has crossed since it was made. One transfer at a time.
    """

    def __init__(self, name: str, bytes_per_s: float | None = None) -> None:
        assert bytes_per_s is None or bytes_per_s > 0, f"link {name}: {bytes_per_s} bytes/s"
        self.name = name
        self.bytes_per_s = bytes_per_s
        self.moved_bytes = 0
        least, most = CHUNK_BYTES
        self._chunk = most if bytes_per_s is None else int(min(most, max(least, bytes_per_s * CHUNK_S)))

    @property
    def paced(self) -> bool:
        return self.bytes_per_s is not None

    def begin(self, total_bytes: int, interrupt: Interrupt) -> Transfer:
        """Start a transfer of `total_bytes`; its clock runs from here."""
        return Transfer(self, total_bytes, interrupt)

    def copy(self, target: NDArray[np.generic], source: NDArray[np.generic], interrupt: Interrupt) -> int:
        """Move one contiguous array; returns its bytes. Raises Interrupted where `interrupt` was set before the end."""
        transfer = self.begin(source.nbytes, interrupt)
        transfer.copy(target, source)
        return transfer.moved


class Transfer:
    """One paced transfer, of one piece or of several."""

    __slots__ = ("_flag", "_link", "_origin_ns", "moved", "total")

    def __init__(self, link: Link, total_bytes: int, interrupt: Interrupt) -> None:
        self._link = link
        self._flag = interrupt.flag
        self._origin_ns = time.clock_gettime_ns(_CLOCK)
        self.total = total_bytes
        self.moved = 0

    def copy(self, target: NDArray[np.generic], source: NDArray[np.generic]) -> None:
        """Move one contiguous piece. Raises Interrupted with the share of the transfer that has moved."""
        assert target.nbytes == source.nbytes, f"link {self._link.name}: {source.nbytes} bytes into {target.nbytes}"
        link = self._link
        self._count(_copy(
            as_bytes(target), as_bytes(source), link.bytes_per_s or 0.0, link._chunk, self._origin_ns, self.moved, self.total, self._flag
        ))  # fmt: skip

    def count(self, nbytes: int) -> None:
        """Account for bytes that the caller has moved itself (a strided piece), and keep to the rate."""
        self._count(nbytes)
        if self._link.bytes_per_s is not None:
            _pace(self._link.bytes_per_s, self._origin_ns, self.moved, self.total, self._flag)

    def _count(self, nbytes: int) -> None:
        self.moved += nbytes
        self._link.moved_bytes += nbytes
        if self._flag[0] and self.moved < self.total:
            raise Interrupted(self.moved / self.total)


def as_bytes(array: NDArray[np.generic]) -> NDArray[np.uint8]:
    """The memory of a contiguous array as a flat view of bytes."""
    assert array.flags.c_contiguous, f"a link moves contiguous memory, not strides {array.strides} of shape {array.shape}"
    return array.reshape(-1).view(np.uint8)


def sharpen_sleep() -> None:
    """Let the sleeps of the calling thread end on time: Linux may otherwise add 50 microseconds to each."""
    if sys.platform == "linux":
        pr_set_timerslack = 29
        ctypes.CDLL(None, use_errno=True).prctl(pr_set_timerslack, 1, 0, 0, 0)
