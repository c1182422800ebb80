"""What Numba's CUDA simulator lacks: warps, whose threads meet and leave each other values.

A simulated CUDA thread is a Python thread. A `Meeting` is a barrier of raw locks, one a thread:
`threading.Barrier` costs several times as much, and these tests do little else.
"""

from __future__ import annotations

import _thread
import threading
from typing import Any

PATIENCE_S = 120.0
"""How long a thread waits for the others; past it, some of them never came."""


class Meeting:
    """A barrier that threads may leave for good; it opens when all that are left have come."""

    def __init__(self, threads: int) -> None:
        self._left = threads
        self._waiting: list[Any] = []
        self._mutex = _thread.allocate_lock()
        self.broken = False

    def wait(self) -> None:
        """RuntimeError when the meeting is broken up or the others do not come."""
        lock = _thread.allocate_lock()
        lock.acquire()
        with self._mutex:
            self._waiting.append(lock)
            self._open_if_all_came()
        if not lock.acquire(timeout=PATIENCE_S) or self.broken:
            raise RuntimeError("the other threads did not come to the barrier")

    def leave(self) -> None:
        """The calling thread ends and is not waited for any more."""
        with self._mutex:
            self._left -= 1
            self._open_if_all_came()

    def break_up(self) -> None:
        """Let everybody go with an error."""
        with self._mutex:
            self.broken = True
            self._open()

    def _open_if_all_came(self) -> None:
        if self.broken or len(self._waiting) == self._left:
            self._open()

    def _open(self) -> None:
        waiting, self._waiting = self._waiting, []
        for lock in waiting:
            lock.release()


class _Warp:
    """Two sets of slots, used in turn: a fast thread's next value overwrites none that is still read."""

    def __init__(self, threads: int) -> None:
        self.meeting = Meeting(threads)
        self.values: list[list[Any]] = [[None] * threads, [None] * threads]


_making = threading.Lock()


def everyone(value: Any) -> list[Any]:
    """The values that all threads of the calling simulated thread's warp gave, by lane."""
    thread: Any = threading.current_thread()
    number, lane = divmod(thread.thread_id, 32)
    block = thread._manager
    with _making:
        warps = block.__dict__.setdefault("warps", {})
        if number not in warps:
            x, y, z = block._block_dim
            warps[number] = _Warp(min(32, x * y * z - 32 * number))
    warp, turn = warps[number], getattr(thread, "warp_turn", 0)
    thread.warp_turn = 1 - turn
    warp.values[turn][lane] = value
    warp.meeting.wait()
    return list(warp.values[turn])


def lane_of() -> int:
    """Lane of the calling simulated thread."""
    return int(threading.current_thread().thread_id % 32)  # type: ignore[attr-defined]
