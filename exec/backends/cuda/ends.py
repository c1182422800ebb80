"""Which device work stands for a task's end, and when it really began and ended.

On streams a task is handed on when it is enqueued, not when it is done: its dependents get a token
to wait for, in their own stream where they have one.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable, Sequence

from exec.backends.cuda.device import Device, Event, Token
from exec.runtime import Record
from exec.runtime.pools import Pools, Takes

SETTLE_EVERY = 256
"""Tasks between two looks at what is done."""


class Ends:
    """Tokens of tasks that may not be done, by number; stamps of those that are."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._lock = threading.Lock()
        self._tokens: dict[int, tuple[Token, ...]] = {}
        self._open: deque[tuple[int, Event, Event]] = deque()
        self._stamps: dict[int, tuple[int, int]] = {}
        self._since = 0

    def enqueued(self, number: int, started: Event, ended: Token) -> None:
        """A task's device work lies between `started` and `ended`."""
        with self._lock:
            self._tokens[number] = (ended,)
            self._open.append((number, started, ended.event))
            self._since += 1
            if self._since >= SETTLE_EVERY:
                self._since = 0
                self._settle()

    def on_host(self, number: int, start_ns: int, end_ns: int) -> None:
        """A task was done by a host thread: nobody has to wait for it any more."""
        with self._lock:
            self._stamps[number] = (start_ns, end_ns)

    def joined(self, number: int, deps: Sequence[int]) -> None:
        """A task without work ends with its dependencies."""
        tokens = self.of(deps)
        if tokens:
            with self._lock:
                self._tokens[number] = tuple(tokens)

    def of(self, numbers: Iterable[int]) -> list[Token]:
        """What to wait for, so that all of `numbers` are done."""
        with self._lock:
            return [token for n in numbers for token in self._tokens.get(n, ())]

    def stamps(self) -> dict[int, tuple[int, int]]:
        """(start, end) in ns of each task that has ended since the last call. Waits for the device."""
        self._device.synchronize()
        with self._lock:
            self._settle()
            found, self._stamps = self._stamps, {}
        return found

    def _settle(self) -> None:
        """Turn events that are done into stamps, and forget their tokens. The lock is held."""
        waiting: deque[tuple[int, Event, Event]] = deque()
        for number, started, ended in self._open:
            if ended.query():
                self._stamps[number] = (self._device.host_ns(started), self._device.host_ns(ended))
            else:
                waiting.append((number, started, ended))
        self._open = waiting
        self._tokens = {n: tokens for n, tokens in self._tokens.items() if not all(t.event.query() for t in tokens)}


class StreamPools(Pools):
    """Units come back with the token of the task that released them; the oldest are handed out first.

    A taker waits for exactly the units that it gets: not for a release that was enqueued meanwhile, behind
    which its own dependents may wait.
    """

    def __init__(self, capacities: dict[str, int], ends: Ends) -> None:
        super().__init__(capacities)
        self._ends = ends
        self._units: dict[str, deque[tuple[Token, ...]]] = {name: deque([()] * n) for name, n in capacities.items()}
        self._waits: dict[int, list[Token]] = {}

    def acquire(self, number: int, takes: Takes) -> None:
        super().acquire(number, takes)
        tokens = [token for pool, units in takes for _ in range(units) for token in self._units[pool].popleft()]
        if tokens:
            self._waits[number] = tokens

    def release(self, number: int, by: int | None = None) -> None:
        tokens = tuple(self._ends.of((by,))) if by is not None else ()
        for pool, units in self.holds.get(number, ()):
            self._units[pool].extend([tokens] * units)
        super().release(number, by)

    def waits(self, task: Record) -> list[Token]:
        """What a started task has to wait for because of the units that it took."""
        return self._waits.pop(task.number, [])
