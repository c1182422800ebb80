"""Pools: counted units that tasks hold from their start until a named task ends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sim.errors import UserError, unknown

Takes = Sequence[tuple[str, int]]


class Pools:
    """Free units of each pool, and who holds the rest."""

    def __init__(self, capacities: Mapping[str, int]) -> None:
        self.capacity = dict(capacities)
        self.free = dict(capacities)
        self.holds: dict[int, Takes] = {}

    def checked(self, number: int, takes: Takes) -> Takes:
        """`takes` with one entry a pool. Raises UserError where they could never be granted."""
        sums: dict[str, int] = {}
        for pool, units in takes:
            if pool not in self.capacity:
                raise unknown(f"task {number}: pool", pool, self.capacity)
            if units < 0:
                raise UserError(f"task {number}: takes {units} units of pool {pool!r}; 0 or more would be right")
            sums[pool] = sums.get(pool, 0) + units
        for pool, units in sums.items():
            if units > self.capacity[pool]:
                found = f"takes {units} of pool {pool!r}, which holds {self.capacity[pool]}"
                raise UserError(f"task {number}: {found}; a larger pool or a smaller take would be right")
        return takes if len(sums) == len(takes) else tuple(sums.items())

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
