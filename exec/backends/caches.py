"""KV caches: the K and V rows of sequences in one memory, layer by layer, by position."""

from __future__ import annotations

import threading
from collections.abc import Sequence
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
    a newcomer come behind them in the lane that writes the cache.
    """

    def __init__(self, arena: Arena, layers: int, width: int, rows: int) -> None:
        self._name = arena.name
        self.layers = layers
        self.k = arena.take("kv.k", (rows, width), touch=True)
        self.v = arena.take("kv.v", (rows, width), touch=True)
        self._gaps = Gaps(rows)
        self._lock = threading.Lock()
        self._segments: dict[int, Segment] = {}
        self._ended: list[int] = []

    def open(self, request: int, entries: int) -> None:
        """Give `request` room for `entries` entries a layer, if it has none yet. Raises UserError where there is none left."""
        with self._lock:
            if request in self._segments:
                return
            for gone in self._ended:
                segment = self._segments.pop(gone)
                self._gaps.give(segment.first, segment.entries * self.layers)
            self._ended.clear()
            first = self._gaps.take(entries * self.layers)
            if first is None:
                raise UserError(
                    f"memory {self._name!r}: no room for the KV cache of request {request} ({entries} entries in {self.layers} layers; "
                    f"the largest gap has {self._gaps.largest // self.layers}); lower --batch or state cache_tokens in the policy"
                )
            self._segments[request] = Segment(first, entries)

    def ended(self, requests: Sequence[int]) -> None:
        """These sequences will not be read again."""
        with self._lock:
            self._ended += [r for r in requests if r in self._segments]

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
