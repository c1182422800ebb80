"""Eviction policies: which experts give way. Online policies see what was asked for; the table sees to the rest.

A key is one expert of one layer, `layer * experts + expert`. Time is counted in events of a layer: all the
experts that one step asks of one layer are one event. A policy never sees a pin or a slot: it is asked for
the least worthy of some candidates.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from heapq import nsmallest

import numpy as np
from numpy.typing import NDArray

FREQUENCY_DECAY, AGE = 0.98, 16.0
"""Of LFRU: memory of a use after one event, and the age in events at which recency begins to tell. Chosen on
gpt-oss-20b's `mmlu_test` sequences, see docs/expert-cache.md."""

AFFINITY_DECAY = 0.96
"""Of the moving average; chosen on the same sequences."""


class Evictor:
    """Base of all policies: keys are ranked by `worth`, the lowest goes first, of equal ones the lower key.

    `experts`: of a layer; `whole`: one cache for all layers (capacity is global).
    """

    def __init__(self, experts: int, whole: bool = False) -> None:
        self.experts = experts
        self.whole = whole

    def used(self, layer: int, keys: Sequence[int]) -> None:
        """An event asked for these keys of `layer`, hits and misses alike."""

    def ended(self, share: float) -> None:
        """This share of the sequences that are served has ended."""

    def entered(self, key: int) -> None:
        """The key was taken into the cache (after `used`)."""

    def left(self, key: int) -> None:
        """The key is no longer in the cache."""

    def worth(self, key: int) -> float:
        raise NotImplementedError(f"{type(self).__name__}.worth")

    def victims(self, candidates: Iterable[int], count: int) -> list[int]:
        """The `count` least worthy, the least first. O(candidates log count)."""
        return nsmallest(count, candidates, key=lambda k: (self.worth(k), k))


class LRU(Evictor):
    """Least recently used. Experts of one event are equally recent."""

    def __init__(self, experts: int, whole: bool = False) -> None:
        super().__init__(experts, whole)
        self._last: dict[int, int] = {}
        self._now = 0

    def used(self, layer: int, keys: Sequence[int]) -> None:
        self._now += 1
        self._last.update(dict.fromkeys(keys, self._now))

    def worth(self, key: int) -> float:
        return self._last.get(key, 0)


class LFU(Evictor):
    """Least frequently used by the sequences that are served: when a share of them ends, so do their counts. Of equal
    counts the less recent goes (that share is exact for one sequence, and an average for several)."""

    def __init__(self, experts: int, whole: bool = False) -> None:
        super().__init__(experts, whole)
        self._count: dict[int, float] = {}
        self._recency = LRU(experts, whole)

    def used(self, layer: int, keys: Sequence[int]) -> None:
        self._recency.used(layer, keys)
        for k in keys:
            self._count[k] = self._count.get(k, 0.0) + 1.0

    def ended(self, share: float) -> None:
        kept = 1.0 - share
        self._count = {k: v * kept for k, v in self._count.items()} if kept > 0 else {}

    def worth(self, key: int) -> float:
        return self._count.get(key, 0.0)

    def victims(self, candidates: Iterable[int], count: int) -> list[int]:
        return nsmallest(count, candidates, key=lambda k: (self.worth(k), self._recency.worth(k), k))


class _Decayed(Evictor):
    """Uses whose weight decays with each event of their layer."""

    decay: float

    def __init__(self, experts: int, whole: bool = False) -> None:
        super().__init__(experts, whole)
        self._now: dict[int, int] = {}
        self._seen: dict[int, tuple[float, int]] = {}
        """Weight at the last use, and when that was."""

    def used(self, layer: int, keys: Sequence[int]) -> None:
        now = self._now[layer] = self._now.get(layer, 0) + 1
        seen, decay = self._seen, self.decay
        for k in keys:
            weight, last = seen.get(k, (0.0, now))
            seen[k] = (1.0 + weight * decay ** (now - last), now)

    def frequency(self, key: int) -> tuple[float, int]:
        """Decayed number of uses, and events since the last."""
        weight, last = self._seen.get(key, (0.0, 0))
        age = self._now.get(key // self.experts, 0) - last
        return weight * self.decay**age, age


class Affinity(_Decayed):
    """Exponential moving average of being asked for, as a router's affinity counters keep it."""

    decay = AFFINITY_DECAY

    def worth(self, key: int) -> float:
        return self.frequency(key)[0]


class LFRU(_Decayed):
    """Frequency and recency: decayed uses over (age + 16)."""

    decay = FREQUENCY_DECAY

    def worth(self, key: int) -> float:
        uses, age = self.frequency(key)
        return uses / (age + AGE)


class Wanted(Evictor):
    """What the router itself wanted least, lately: worth [layers, experts] is an array that a router keeps, such as the affinity of
    `kernels.router.resident`. A router that leans chooses what is here; what it would have chosen tells what ought to be."""

    def __init__(self, experts: int, whole: bool, wanted: NDArray[np.float32]) -> None:
        super().__init__(experts, whole)
        self._wanted = wanted

    def worth(self, key: int) -> float:
        return float(self._wanted[divmod(key, self.experts)])


class Static(Evictor):
    """Popularity counted beforehand [key -> uses]; Fiddler (arXiv 2402.07033), 3.2, places experts by it."""

    def __init__(self, experts: int, whole: bool, popularity: Mapping[int, float]) -> None:
        super().__init__(experts, whole)
        self._popularity = popularity

    def worth(self, key: int) -> float:
        return self._popularity.get(key, 0.0)


class Sieve(Evictor):
    """SIEVE (Zhang et al., NSDI 2024, Algorithm 1): first in, first out, but a hand that goes from the oldest to the
    newest passes over those that were used since it last came by. One queue a layer, or one for all."""

    def __init__(self, experts: int, whole: bool = False) -> None:
        super().__init__(experts, whole)
        self._queues: dict[int, list[int]] = {}
        self._hand: dict[int, int] = {}
        self._inside: set[int] = set()
        self._visited: set[int] = set()

    def _domain(self, key: int) -> int:
        return 0 if self.whole else key // self.experts

    def used(self, layer: int, keys: Sequence[int]) -> None:
        self._visited.update(k for k in keys if k in self._inside)

    def entered(self, key: int) -> None:
        self._inside.add(key)
        self._queues.setdefault(self._domain(key), []).append(key)

    def left(self, key: int) -> None:
        d = self._domain(key)
        at = self._queues[d].index(key)
        del self._queues[d][at]
        if at < self._hand.get(d, 0):
            self._hand[d] -= 1
        self._inside.discard(key)
        self._visited.discard(key)

    def victims(self, candidates: Iterable[int], count: int) -> list[int]:
        """Keys that are not in the queue yet go last. O(queue + count)."""
        left = list(candidates)
        queued = {k for k in left if k in self._inside}
        out: list[int] = []
        while queued and len(out) < count:
            k = self._sweep(queued)
            queued.discard(k)
            out.append(k)
        fresh = sorted(k for k in left if k not in self._inside)
        return out + fresh[: count - len(out)]

    def _sweep(self, among: set[int]) -> int:
        """Move the hand to the first key of `among` that was not visited since it last passed."""
        d = self._domain(next(iter(among)))
        queue = self._queues[d]
        at = self._hand.get(d, 0)
        for _ in range(2 * len(queue)):
            k = queue[at % len(queue)]
            at += 1
            if k not in among:
                continue
            if k not in self._visited:
                break
            self._visited.discard(k)
        self._hand[d] = at % len(queue)
        assert k in among and k not in self._visited, (k, among)
        return k


class Belady(Evictor):
    """Offline: the key whose next use is farthest goes (Belady 1966). Keeping a key from one use to the next is an interval
    that fills one place, and dropping the latest end fits the most intervals, so that nothing hits more often
    under the same rule of admission; with the rule "always" it is the bound of forced admission.

    asked: the events to come, in order: (layer, keys).
    """

    def __init__(self, experts: int, whole: bool, asked: Iterable[tuple[int, Sequence[int]]]) -> None:
        super().__init__(experts, whole)
        self._next: dict[int, deque[int]] = {}
        for at, (_, keys) in enumerate(asked):
            for k in keys:
                self._next.setdefault(k, deque()).append(at)
        self._now = 0

    def used(self, layer: int, keys: Sequence[int]) -> None:
        for k in keys:
            coming = self._next.get(k)
            assert coming and coming[0] == self._now, f"event {self._now} asks for key {k}, the events foretold do not"
            coming.popleft()
        self._now += 1

    def worth(self, key: int) -> float:
        coming = self._next.get(key)
        return -float(coming[0]) if coming else -float("inf")
