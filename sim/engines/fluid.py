"""The fluid side of the SimPy engine: which slot each running task has, and the alarm for the next end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import simpy

from sim.engines.layout import DUE, NEVER
from sim.engines.slots import Rates, step
from sim.tasks import Time

NOBODY = np.zeros(0, np.int64)
NOTHING = np.zeros(0, np.float64)


class Fluid:
    """Tells the rate solver once an instant who left and who came.

    `ring(rows)` is called when rows are due: at once where that is now, else by an alarm in the
    environment. An alarm that no longer holds is left to ring in vain.
    """

    def __init__(self, rates: Rates, env: simpy.Environment, ring: Callable[[list[int]], None]) -> None:
        self.rates = rates
        self._env, self._ring = env, ring
        self._slot: dict[int, int] = {}
        self._owner = [-1] * len(rates.slots)
        self._free = list(range(len(self._owner)))[::-1]
        self._leaving: list[int] = []
        self._changed = False
        self._alarm: Any = None
        self._alarm_at = NEVER
        self._alarm_slots = 0

    def leave(self, i: int) -> None:
        """Row `i` ends; nothing happens where it is not in its fluid phase."""
        if i in self._slot:
            self._leaving.append(self._slot.pop(i))

    def left(self, i: int) -> float | None:
        """Fraction that row `i` has still to do; None where it is not in its fluid phase."""
        return self.rates.left(self._slot[i], int(self._env.now)) if i in self._slot else None

    def set_capacity(self, k: int, capacity: float) -> None:
        self.rates.set_capacity(k, capacity)
        self._changed = True

    def settle(self, rows: Sequence[int], classes: Sequence[int], left: Sequence[float]) -> None:
        """End of the instant: `rows` enter, of these price classes and with these fractions to do."""
        if not (rows or self._leaving or self._changed):
            return
        leaving = np.array(self._leaving) if self._leaving else NOBODY
        self._free += self._leaving
        entering = (NOBODY, NOBODY, NOTHING)
        if rows:
            slots = [self._assign(i) for i in rows]
            entering = (np.array(slots), np.array(classes), np.array(left))
        now = int(self._env.now)
        end, n = step(*self.rates.arrays, now, leaving, *entering)
        self._leaving, self._changed = [], False
        self._set_alarm(end, n, now)

    def _assign(self, i: int) -> int:
        if not self._free:
            more = len(self._owner)
            self._free = list(range(more, 2 * more))[::-1]
            self._owner += [-1] * more
            self.rates.reserve(2 * more)
        slot = self._slot[i] = self._free.pop()
        self._owner[slot] = i
        return slot

    def _set_alarm(self, end: Time, n: int, now: Time) -> None:
        self._alarm_slots = n
        if end == now:
            self._alarm_at = NEVER
            self._ring(self._due())
        elif end != self._alarm_at:
            self._alarm_at = end
            self._alarm = None
            if end < NEVER:
                self._alarm = self._env.timeout(end - now)
                self._alarm.callbacks.append(self._rang)

    def _rang(self, event: Any) -> None:
        if event is self._alarm:
            self._alarm_at = NEVER
            self._ring(self._due())

    def _due(self) -> list[int]:
        owner = self._owner
        return [owner[s] for s in self.rates.lists[DUE, : self._alarm_slots].tolist()]
