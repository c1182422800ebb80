"""Eviction policies by name, and a table with one of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from sim.residency.eviction import LFRU, LFU, LRU, Affinity, Belady, Evictor, Sieve, Static

ONLINE: dict[str, Callable[[int, bool], Evictor]] = {"lru": LRU, "lfu": LFU, "lfru": LFRU, "sieve": Sieve, "affinity": Affinity}
"""Policies that know only what has happened."""

NAMES = (*ONLINE, "static", "belady")

Foretold = Iterable[tuple[int, Sequence[int]]]


def evictor(name: str, experts: int, whole: bool = False, popularity: Mapping[int, float] | None = None, asked: Foretold = ()) -> Evictor:
    """An eviction policy. popularity: for `static`. asked: the events to come, for `belady`."""
    if name == "static":
        assert popularity is not None, "static needs a popularity"
        return Static(experts, whole, popularity)
    if name == "belady":
        return Belady(experts, whole, asked)
    return ONLINE[name](experts, whole)
