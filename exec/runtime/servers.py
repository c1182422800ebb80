"""What the threads of a lane share with the rest, and what a backend must offer them."""

from __future__ import annotations

import gc
import sys
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from exec.runtime.records import Interrupt, Record
from sim.events import Result
from sim.machines.schema import Lane

SWITCH_INTERVAL_S = 1e-4
"""How long a thread keeps the GIL while another wants it. Lanes hold it for microseconds between
kernels that release it; Python's own 5 ms would let one lane's bookkeeping delay another's start."""


class Backend(Protocol):
    """What a lane thread runs."""

    def enter_lane(self, lane: Lane) -> None:
        """Called once in each server thread of `lane`, before the clock starts."""
        ...

    def run(self, task: Record, interrupt: Interrupt) -> Result | None:
        """Do the work of `task`. Raises `Fault` for a failure that the scheduler hears of and
        `Interrupted` where `interrupt` made it stop early; anything else ends the run."""
        ...


class Server:
    """One thread of a lane. task: what it runs."""

    __slots__ = ("interrupt", "task", "thread")

    def __init__(self) -> None:
        self.interrupt = Interrupt()
        self.task: Record | None = None
        self.thread: threading.Thread | None = None


class LaneThreads:
    """A lane's servers, and the inbox that they take started tasks from."""

    __slots__ = ("inbox", "lane", "servers", "wake")

    def __init__(self, lane: Lane, lock: threading.Lock) -> None:
        self.lane = lane
        self.wake = threading.Condition(lock)
        self.inbox: deque[Record] = deque()
        self.servers = [Server() for _ in range(lane.servers)]


@contextmanager
def undisturbed() -> Iterator[None]:
    """Short GIL turns, and no garbage collection: it would stop every lane while it walks all objects."""
    interval, collecting = sys.getswitchinterval(), gc.isenabled()
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        sys.setswitchinterval(interval)
        gc.unfreeze()
        if collecting:
            gc.enable()
