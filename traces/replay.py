"""Replay of a routing trace against expert caches: one event for each (step, layer) of a batch.

A batched layer asks for the union of its tokens' experts at once. All of them are served before
anything is evicted: an expert that is resident when the event begins is a hit, whatever else the
event fetches, and what stays is decided at the event's end. Replaying the tokens of a batch one
after another instead lets a token evict what its neighbour still needs, which inflates LRU misses by
a quarter and changes the ranking of policies (arXiv 2608.07911).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from traces.routing_check import matrix
from traces.routing_file import Routing
from traces.scan import routing_header, scan

NEVER = np.iinfo(np.int64).max


@dataclass(frozen=True, eq=False, slots=True)
class Event:
    """One layer of one step: the distinct experts that its tokens want, ascending, and how many tokens there are."""

    step: int
    layer: int
    experts: NDArray[np.int64]
    tokens: int = 1


def events(routing: Routing, batch: int | None = None) -> Iterator[Event]:
    """The trace as if `batch` of its requests at a time ran together; None: all of them.

    Requests are grouped in the order of their numbers. Step s of a group is step s of each of its
    requests that has one; the groups run one after another. Steps count on from group to group, so
    that no two events share (step, layer).
    """
    assert batch is None or batch >= 1, f"batch={batch} must be at least 1"
    requests = np.unique(routing.request_id)
    group = np.searchsorted(requests, routing.request_id) // (batch or max(1, len(requests)))
    order = np.lexsort((routing.layer, routing.step, group))
    keys = np.stack([group[order], routing.step[order], routing.layer[order]])
    first, before, longest = 0, 0, 0
    for a, b in _runs(keys):
        if keys[0, a] != before:
            first, before, longest = first + longest, int(keys[0, a]), 0
        longest = max(longest, int(keys[1, a]) + 1)
        yield _event(first + int(keys[1, a]), int(keys[2, a]), routing.experts[order[a:b]])


def recorded(path: str | Path) -> Iterator[Event]:
    """The batches of a file as they were recorded, in bounded memory.

    A batch is a run of rows that stand together in the file and share step and layer, as one call
    of a router writes them. Raises `TraceError` as the scan does.
    """
    shape, _, _ = routing_header(path)
    key = (-1, -1)
    waiting: list[NDArray[np.integer]] = []
    for table in scan(path, ("step", "layer", "experts")):
        keys = np.stack([table.column(n).to_numpy().astype(np.int64) for n in ("step", "layer")])
        experts = matrix(table, "experts", shape.k)
        for a, b in _runs(keys):
            found = (int(keys[0, a]), int(keys[1, a]))
            if waiting and found != key:
                yield _event(*key, np.concatenate(waiting))
                waiting = []
            key = found
            waiting.append(experts[a:b])
    if waiting:
        yield _event(*key, np.concatenate(waiting))


def _runs(keys: NDArray[np.integer]) -> Iterator[tuple[int, int]]:
    """Ranges of equal neighbouring columns of keys [fields, n]."""
    n = keys.shape[1]
    if n:
        cuts = np.flatnonzero((np.diff(keys, axis=1) != 0).any(axis=0)) + 1
        yield from pairwise([0, *cuts.tolist(), n])


def _event(step: int, layer: int, experts: NDArray[np.integer]) -> Event:
    return Event(step, layer, np.unique(experts).astype(np.int64), len(experts))


@dataclass(frozen=True, slots=True)
class Replay:
    """What a cache did over a replay. An access is one expert of one event.

    compulsory_misses: first accesses. event_misses: of each event. step_misses: of each step, ascending.
    """

    policy: str
    capacity: int
    accesses: int
    hits: int
    compulsory_misses: int
    evictions: int
    insertions: int
    tokens: int
    event_misses: tuple[int, ...]
    step_misses: tuple[int, ...]

    @property
    def misses(self) -> int:
        return self.accesses - self.hits

    @property
    def hit_ratio(self) -> float:
        return self.hits / self.accesses if self.accesses else 0.0


def quantile(values: Sequence[int], q: float) -> float:
    """The smallest value that at least a share q of the values does not exceed, as moe-cache-eval takes it."""
    return float(np.quantile(values, q, method="higher")) if len(values) else 0.0


@dataclass(slots=True)
class _Past:
    """What a policy may look at, each [experts] of one layer: times are event numbers."""

    last: NDArray[np.int64]
    uses: NDArray[np.int64]
    next: NDArray[np.int64]
    tie: NDArray[np.float64]


def _keep_recent(past: _Past, c: NDArray[np.int64], now: int) -> NDArray[np.int64]:
    return np.lexsort((-past.tie[c], -past.last[c]))


def _keep_frequent(past: _Past, c: NDArray[np.int64], now: int) -> NDArray[np.int64]:
    return np.lexsort((-past.tie[c], -past.last[c], -past.uses[c]))


def _keep_frequent_recent(past: _Past, c: NDArray[np.int64], now: int) -> NDArray[np.int64]:
    return np.lexsort((-past.tie[c], -past.uses[c] / (now - past.last[c] + 1)))


def _keep_soonest(past: _Past, c: NDArray[np.int64], now: int) -> NDArray[np.int64]:
    return np.lexsort((-past.tie[c], past.next[c]))


POLICIES: dict[str, Callable[[_Past, NDArray[np.int64], int], NDArray[np.int64]]] = {
    "lru": _keep_recent, "lfu": _keep_frequent, "lfru": _keep_frequent_recent, "belady": _keep_soonest,
}  # fmt: skip
"""Policy -> order of the candidates, the ones to keep first. belady knows the future (Belady 1966): a bound, no policy."""


class _Layer:
    """One layer's cache of `capacity` experts."""

    def __init__(self, experts: int, capacity: int, tie: NDArray[np.float64]) -> None:
        self.capacity = capacity
        self.resident = np.zeros(experts, np.bool_)
        self.past = _Past(np.full(experts, -1, np.int64), np.zeros(experts, np.int64), np.full(experts, NEVER), tie)
        self.first = self.evictions = self.insertions = 0

    def serve(self, now: int, wanted: NDArray[np.int64], next_use: NDArray[np.int64], policy: str) -> int:
        """Serve the event numbered `now`; returns its hits."""
        hits = int(self.resident[wanted].sum())
        self.first += int((self.past.uses[wanted] == 0).sum())
        self.past.last[wanted] = now
        self.past.uses[wanted] += 1
        self.past.next[wanted] = next_use
        candidates = np.union1d(np.flatnonzero(self.resident), wanted)
        if len(candidates) > self.capacity:
            candidates = candidates[POLICIES[policy](self.past, candidates, now)[: self.capacity]]
        kept = np.zeros_like(self.resident)
        kept[candidates] = True
        self.evictions += int((self.resident & ~kept).sum())
        self.insertions += int((kept & ~self.resident).sum())
        self.resident = kept
        return hits


def replay(source: Iterable[Event], *, policy: str, capacity: int, layers: int, experts: int, seed: int = 0) -> Replay:
    """Serve the events from a cache of `capacity` experts in each layer.

    `seed` orders experts that a policy holds equal. Memory: bounded by the number of events' miss
    counts; "belady" keeps all events, for it needs their future.
    """
    assert policy in POLICIES, f"policy={policy!r} must be one of {', '.join(POLICIES)}"
    assert capacity >= 0, f"capacity={capacity} must be 0 or more"
    ties = np.random.default_rng(seed).random(layers * experts).reshape(layers, experts)
    caches = [_Layer(experts, capacity, tie) for tie in ties]
    missed: list[int] = []
    steps: dict[int, int] = {}
    accesses = hits = tokens = 0
    for now, (e, next_use) in enumerate(_with_future(source, experts) if policy == "belady" else _without_future(source)):
        found = caches[e.layer].serve(now, e.experts, next_use, policy)
        hits, accesses = hits + found, accesses + len(e.experts)
        missed.append(len(e.experts) - found)
        steps[e.step] = steps.get(e.step, 0) + missed[-1]
        tokens += e.tokens if e.layer == 0 else 0
    first, evictions, insertions = (sum(getattr(c, n) for c in caches) for n in ("first", "evictions", "insertions"))
    return Replay(
        policy, capacity, accesses, hits, first, evictions, insertions, tokens, tuple(missed), tuple(steps[s] for s in sorted(steps))
    )


def _without_future(source: Iterable[Event]) -> Iterator[tuple[Event, NDArray[np.int64]]]:
    for e in source:
        yield e, np.full(len(e.experts), NEVER)


def _with_future(source: Iterable[Event], experts: int) -> Iterator[tuple[Event, NDArray[np.int64]]]:
    """Each event with the number of the event that next asks for each of its experts."""
    held = list(source)
    following: dict[int, int] = {}
    next_uses: list[NDArray[np.int64]] = []
    for now in range(len(held) - 1, -1, -1):
        blocks = (held[now].layer * experts + held[now].experts).tolist()
        next_uses.append(np.array([following.get(b, NEVER) for b in blocks], np.int64))
        following.update(dict.fromkeys(blocks, now))
    yield from zip(held, reversed(next_uses), strict=True)
