"""Pools: counted units that tasks hold from their start until a named task ends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sim.engines.intake import task_takes

Takes = Sequence[tuple[str, int]]


class Pools:
    """Free units of each pool, and who holds the rest."""

    def __init__(self, capacities: Mapping[str, int]) -> None:
        self.capacity = dict(capacities)
        self.free = dict(capacities)
        self.holds: dict[int, Takes] = {}

    def checked(self, number: int, takes: Takes) -> Takes:
        """`takes` with one entry a pool. Raises UserError where they could never be granted."""
        return tuple(task_takes(number, takes, self.capacity).items())

    def has_room(self, takes: Takes) -> bool:
        return all(self.free[pool] >= units for pool, units in takes)

    def acquire(self, number: int, takes: Takes) -> None:
        for pool, units in takes:
            self.free[pool] -= units
        self.holds[number] = takes

    def release(self, number: int, by: int | None = None) -> None:
        """Give back what task `number` holds, if anything; `by`: the task whose end gives it back."""
        for pool, units in self.holds.pop(number, ()):
            self.free[pool] += units

    def holders(self, pool: str) -> list[int]:
        return sorted(number for number, takes in self.holds.items() if any(p == pool for p, _ in takes))
