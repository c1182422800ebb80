"""KV caches: the K and V rows of sequences in one memory, layer by layer, by position."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from exec.arena import Arena, Gaps
from sim.errors import UserError


class Segment(NamedTuple):
    """Rows first .. first + layers * entries - 1 of the cache: `entries` of layer 0, then of layer 1, ..."""

    first: int
    entries: int


class KVCache:
    """K and V [rows, kv_heads D] of all sequences whose cache lives in `arena`.

    A sequence has `entries` rows in each layer from its first write until it has ended and
    another one needs room: tasks that were submitted before its end may still write to it, those of
    a newcomer come behind them in the lane that writes the cache. Where no gap is large enough for a
    newcomer, the others are moved together, once nobody is `using` the rows.
    """

    def __init__(self, arena: Arena, layers: int, width: int, rows: int) -> None:
        self._name = arena.name
        self.layers = layers
        self.k = arena.take("kv.k", (rows, width), touch=True)
        self.v = arena.take("kv.v", (rows, width), touch=True)
        self._gaps = Gaps(rows)
        self._free = threading.Condition()
        self._users = 0
        self._segments: dict[int, Segment] = {}
        self._lengths: dict[tuple[int, int], int] = {}
        self._ended: list[int] = []

    def open(self, request: int, entries: int) -> None:
        """Give `request` room for `entries` entries a layer, if it has none yet. Raises UserError where there is none left."""
        with self._free:
            if request in self._segments:
                return
            for gone in self._ended:
                segment = self._segments.pop(gone)
                for layer in range(self.layers):
                    self._lengths.pop((gone, layer), None)
                self._gaps.give(segment.first, segment.entries * self.layers)
            self._ended.clear()
            size = entries * self.layers
            first = self._gaps.take(size)
            if first is None:
                self._free.wait_for(lambda: not self._users)
                self._move_together()
                first = self._gaps.take(size)
            if first is None:
                raise UserError(
                    f"memory {self._name!r}: no room for the KV cache of request {request} ({entries} entries in {self.layers} layers; "
                    f"{self._gaps.largest // self.layers} are free); lower --batch or state cache_tokens in the policy"
                )
            self._segments[request] = Segment(first, entries)

    def _move_together(self) -> None:
        """Close the gaps between segments; O(rows)."""
        end = 0
        for request, (first, entries) in sorted(self._segments.items(), key=lambda item: item[1].first):
            size = entries * self.layers
            if first > end:
                for rows in (self.k, self.v):
                    rows[end : end + size] = rows[first : first + size]
                self._segments[request] = Segment(end, entries)
            end += size
        self._gaps = Gaps(len(self.k))
        self._gaps.take(end)

    @contextmanager
    def using(self) -> Iterator[None]:
        """While the caller reads or writes rows: they stay where `starts` says."""
        with self._free:
            self._users += 1
        try:
            yield
        finally:
            with self._free:
                self._users -= 1
                self._free.notify_all()

    def ended(self, requests: Sequence[int]) -> None:
        """These sequences will not be read again."""
        with self._free:
            self._ended += [r for r in requests if r in self._segments]

    def wrote(self, requests: Sequence[int], layer: int, lengths: NDArray[np.int64]) -> None:
        """These sequences have `lengths` [S] entries of `layer` now."""
        for request, length in zip(requests, lengths.tolist(), strict=True):
            self._lengths[request, layer] = length

    def lengths(self, requests: Sequence[int], layer: int) -> NDArray[np.int64]:
        """Entries of `layer` that were written, [S]."""
        return np.array([self._lengths[r, layer] for r in requests], np.int64)

    def starts(self, requests: Sequence[int], layer: int) -> NDArray[np.int64]:
        """First row of each sequence's entries of `layer`, [S]."""
        segments = self._segments
        return np.array([(s := segments[r]).first + layer * s.entries for r in requests], np.int64)


def by_entry(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """A cache [rows, width] as the kernels want it, [slots, max_len, width], every row being a slot.

    Kernels address entry t of slot s as row s * max_len + t, unchecked; with max_len 1 a sequence
    that starts at row s has entry t in row s + t, and sequences need no common maximal length.
    """
    return rows.reshape(len(rows), 1, -1)
