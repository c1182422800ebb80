"""Background: loads that nobody waits for, on one lane; whatever is waited for goes first.

A few of them are handed out at a time. When a demand load comes they are cancelled, and what was not yet copied is
handed out again behind it: lanes run in the order of submission, and nothing on them needs a priority.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection
from dataclasses import dataclass

from sim.tasks import Cancel, Command

DEPTH = 2
"""Handed out at a time: one runs and the next is there when it ends."""


@dataclass(slots=True)
class Flight:
    """The expert `key` on its way to `slot`. left: share of it that is still to be copied. wanted: else it was given up.
    claimed: an event waits for it."""

    key: int
    slot: int
    left: float = 1.0
    number: int = -1
    wanted: bool = True
    stopped: bool = False
    claimed: bool = False


class Background:
    """`launch(flight)` makes the task of a flight and writes its number into `flight.number`; None: it is given up."""

    def __init__(self, launch: Callable[[Flight], Command | None]) -> None:
        self._launch = launch
        self._waiting: deque[Flight] = deque()
        self._out: dict[int, Flight] = {}

    def __len__(self) -> int:
        return len(self._waiting) + len(self._out)

    def add(self, key: int, slot: int, first: bool = False) -> None:
        """first: before those that wait already."""
        (self._waiting.appendleft if first else self._waiting.append)(Flight(key, slot))

    def fill(self) -> list[Command]:
        """Hand out what may go now."""
        made: list[Command] = []
        while self._waiting and len(self._out) < DEPTH:
            flight = self._waiting.popleft()
            task = self._launch(flight)
            if task is not None:
                made.append(task)
                self._out[flight.number] = flight
        return made

    def stop(self, but: Collection[int] = ()) -> list[Command]:
        """Make way for a demand load: cancel what is handed out, but for these keys. It goes on later."""
        stopped = [f for f in self._out.values() if f.key not in but and not f.stopped and not f.claimed]
        for f in stopped:
            f.stopped = True
        return [Cancel(f.number, "makes way") for f in stopped]

    def drop(self, key: int) -> list[Command]:
        """Give a flight up."""
        for f in self._waiting:
            if f.key == key:
                self._waiting.remove(f)
                return []
        for f in self._out.values():
            if f.key == key and f.wanted:
                f.wanted = False
                was, f.stopped = f.stopped, True
                return [] if was else [Cancel(f.number, "not asked for")]
        return []

    def claim(self, key: int) -> Flight | None:
        """An event waits for this flight now. One that was not handed out, or was stopped, leaves the background: the caller
        loads what is left of it (all of it, where that is not known yet)."""
        for f in self._waiting:
            if f.key == key:
                self._waiting.remove(f)
                return f
        for f in self._out.values():
            if f.key == key and f.wanted:
                if f.stopped:
                    f.wanted = False
                    return Flight(key, f.slot)
                f.claimed = True
                return f
        return None

    def ended(self, number: int) -> Flight | None:
        """Task `number` is done; its flight, if it was one of these."""
        return self._out.pop(number, None)

    def failed(self, number: int, fraction: float) -> tuple[Flight, float, bool] | None:
        """Task `number` ended without being done: its flight, the share of the expert that it copied, and whether it was cancelled from
        here. What made way waits for its turn again."""
        flight = self._out.pop(number, None)
        if flight is None:
            return None
        copied, cancelled = flight.left * fraction, flight.stopped
        flight.left -= copied
        if flight.wanted and cancelled:
            flight.stopped = False
            self._waiting.appendleft(flight)
        return flight, copied, cancelled
