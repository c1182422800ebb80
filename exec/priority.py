"""Who gets a core when: short time slices for threads that only answer, cores of their own for those that compute."""

from __future__ import annotations

import ctypes
import os
import platform
import struct
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager

SHORT_SLICE_NS = 100_000
"""The shortest slice that EEVDF grants (Linux 6.12 and up; earlier kernels ignore it)."""

THREADS = "/proc/self/task"

_SCHED_SETATTR = {"x86_64": 314, "aarch64": 274}


def ask_for_slice(nanoseconds: int, thread: int = 0) -> bool:
    """Ask for time slices of that length for a thread of this process (0: the calling one). Returns whether
    the system took it; it is a wish, and all works without.

    A thread that wakes waits for the running one's slice, 3 ms by default, unless its own is shorter.
    """
    if sys.platform != "linux":
        return False
    number = _SCHED_SETATTR.get(platform.machine())
    if number is None:
        return False
    try:
        nice = os.getpriority(os.PRIO_PROCESS, thread)  # the call sets it too
    except ProcessLookupError:
        return False  # the thread has ended
    attributes = struct.pack("IIQiIQQQ", 48, 0, 0, nice, 0, nanoseconds, 0, 0)
    return ctypes.CDLL(None, use_errno=True).syscall(number, thread, attributes, 0) == 0


@contextmanager
def short_slices() -> Iterator[None]:
    """For the threads that the libraries called meanwhile start: those of gloo, which move the bytes."""
    before = set(os.listdir(THREADS)) if os.path.isdir(THREADS) else set()
    yield
    for thread in set(os.listdir(THREADS)) - before if before else ():
        ask_for_slice(SHORT_SLICE_NS, int(thread))


def let_in() -> None:
    """Let threads in that wait for the calling one's core. Call it where a long stretch of computing begins.

    Often a thread that computes and one that passes on wake at the same moment, because both waited for the same. Whoever has run a
    little more than the other is then put off, and EEVDF looks again only at the next tick of the clock, up to 4 ms later.
    """
    if hasattr(os, "sched_yield"):
        os.sched_yield()


def own_cores(rank: int, ranks: int, threads: int) -> None:
    """Bind the calling thread to `threads` cores that no other rank's compute lane is bound to, where there are as many.

    Otherwise two of them may sit on one core, while the other is idle, until the system notices.
    """
    if not hasattr(os, "sched_getaffinity"):
        return
    place, here = int(os.environ.get("LOCAL_RANK", rank)), int(os.environ.get("LOCAL_WORLD_SIZE", ranks))
    cores = sorted(os.sched_getaffinity(0))
    if here * threads <= len(cores):
        bind(cores[place * threads : (place + 1) * threads])


def bind(cores: Collection[int]) -> bool:
    """Bind the calling thread to these cores. Returns whether the system took it: some may have been taken from this process since it
    looked, and all works without."""
    if not hasattr(os, "sched_setaffinity"):
        return False
    try:
        os.sched_setaffinity(0, cores)
    except OSError:
        return False
    return True
