"""Admission: whether an expert that had to be fetched may stay, at the price of another."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from sim.residency.eviction import Affinity, Evictor


class Admission(Protocol):
    def used(self, layer: int, keys: Sequence[int]) -> None: ...
    def choose(self, inside: Sequence[int], new: Sequence[int], asked: frozenset[int], over: int) -> list[int]:
        """The `over` keys of `inside` and `new` that do not stay. inside: those of the cache that may leave; asked: this event's."""
        ...


class Always:
    """What was fetched stays; others give way first (forced admission)."""

    def __init__(self, evictor: Evictor) -> None:
        self._evictor = evictor

    def used(self, layer: int, keys: Sequence[int]) -> None:
        """Nothing to remember."""

    def choose(self, inside: Sequence[int], new: Sequence[int], asked: frozenset[int], over: int) -> list[int]:
        others = [k for k in inside if k not in asked]
        out = self._evictor.victims(others, min(over, len(others)))
        if len(out) < over:  # one event asks for more than fits
            out += self._evictor.victims([*new, *(k for k in inside if k in asked)], over - len(out))
        return out


class Contest:
    """The least worthy go, new or not, by the eviction policy's own order (optional admission, bypass)."""

    def __init__(self, evictor: Evictor) -> None:
        self._evictor = evictor

    def used(self, layer: int, keys: Sequence[int]) -> None:
        """Nothing to remember."""

    def choose(self, inside: Sequence[int], new: Sequence[int], asked: frozenset[int], over: int) -> list[int]:
        return self._evictor.victims([*inside, *new], over)


class Frequent(Always):
    """A new key must have been asked for at least as often, lately, as the one that would make room for it (as TinyLFU
    does, Einziger et al., ACM TOS 2017, 3.1, with a moving average in place of its sketch)."""

    def __init__(self, evictor: Evictor) -> None:
        super().__init__(evictor)
        self._uses = Affinity(evictor.experts)

    def used(self, layer: int, keys: Sequence[int]) -> None:
        self._uses.used(layer, keys)

    def choose(self, inside: Sequence[int], new: Sequence[int], asked: frozenset[int], over: int) -> list[int]:
        proposed = super().choose(inside, new, asked, over)
        arrivals = sorted((k for k in new if k not in proposed), key=lambda k: (-self._uses.worth(k), k))
        leaving = [k for k in proposed if k not in new]
        out = [k for k in proposed if k in new]
        # Without a victim of its own a key fills a free place.
        contested = arrivals[len(arrivals) - len(leaving) :] if leaving else []
        for fresh, old in zip(contested, leaving, strict=True):
            out.append(old if self._uses.worth(fresh) >= self._uses.worth(old) else fresh)
        return out


ADMISSIONS: dict[str, Callable[[Evictor], Admission]] = {"always": Always, "contest": Contest, "frequent": Frequent}
