"""What the threads of a lane share with the rest, and what a backend must offer them."""

from __future__ import annotations

import gc
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Protocol

from exec.runtime.errors import RuntimeStuck, describe
from exec.runtime.records import Interrupt, Record
from sim.events import Result
from sim.machines.schema import Lane

SWITCH_INTERVAL_S = 1e-4
"""How long a thread keeps the GIL while another wants it. Lanes hold it for microseconds between
kernels that release it; Python's own 5 ms would let one lane's bookkeeping delay another's start."""

JOIN_TIMEOUT_S = 30.0
"""How long a stopped run waits for a lane whose op cannot be interrupted."""


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

    def start(self, serve: Callable[[LaneThreads, Server], None]) -> None:
        """A thread for each server, which runs `serve`."""
        for i, server in enumerate(self.servers):
            server.thread = threading.Thread(target=serve, args=(self, server), name=f"lane-{self.lane.name}-{i}", daemon=True)
            server.thread.start()

    def halt(self) -> None:
        """Interrupt what runs and wake who waits. The lock is held."""
        for server in self.servers:
            server.interrupt.set()
        self.wake.notify_all()


def join(lanes: Iterable[LaneThreads]) -> None:
    """Wait for the threads of halted lanes. Raises RuntimeStuck that names the tasks which do not come back."""
    started = [(server, server.thread) for lane in lanes for server in lane.servers if server.thread is not None]
    deadline = time.monotonic() + JOIN_TIMEOUT_S
    for _, thread in started:
        thread.join(max(0.0, deadline - time.monotonic()))
    stuck = [f"{thread.name}: {describe(server.task)}" for server, thread in started if thread.is_alive() and server.task]
    if stuck:
        raise RuntimeStuck(f"lane threads did not come back within {JOIN_TIMEOUT_S:g} s: {'; '.join(stuck)}")


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
