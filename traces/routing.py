"""A fast index over a routing trace: what the cost model and a replaying executor ask it.

The file itself (schema, reader, writer) is in `traces.routing_file`; its names are here too.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from traces.errors import TraceError
from traces.routing_file import Routing, RoutingWriter, Shape, read_routing, write_routing, writing_routing

__all__ = ["Routing", "RoutingIndex", "RoutingWriter", "Shape", "read_routing", "write_routing", "writing_routing"]


class RoutingIndex:
    """Answers "which experts did these sequences use in that step and layer" in microseconds.

    Rows are sorted once by (step, layer, request, position); a lookup is a binary search in the
    block of its (step, layer) and a bincount. The prefill's counts per request are kept, because a
    prompt has many rows. Memory: the trace and one int64 a row.
    """

    def __init__(self, source: str | Path | Routing) -> None:
        routing = source if isinstance(source, Routing) else read_routing(source)
        name = "routing" if isinstance(source, Routing) else str(source)
        order = np.lexsort((routing.position, routing.request_id, routing.layer, routing.step))
        self.routing = routing.take(order)
        self._requests = self.routing.request_id
        self._blocks, self._unique = self._find_blocks(name)
        self._histograms: dict[tuple[int, int], tuple[NDArray[np.int32], NDArray[np.int64]]] = {}

    def _find_blocks(self, name: str) -> tuple[dict[tuple[int, int], tuple[int, int]], set[tuple[int, int]]]:
        """(step, layer) -> its rows, and those in which every request has exactly one row."""
        r = self.routing
        if not len(r):
            return {}, set()
        same_block = (np.diff(r.step) == 0) & (np.diff(r.layer) == 0)
        same_request = same_block & (np.diff(r.request_id) == 0)
        twice = same_request & (np.diff(r.position) == 0)
        if twice.any():
            i = int(np.argmax(twice))
            place = f"request {r.request_id[i]}, step {r.step[i]}, layer {r.layer[i]}, position {r.position[i]}"
            raise TraceError(f"{name}: column position: {place} stands there twice; one row a token and layer")
        starts = np.concatenate([[0], np.flatnonzero(~same_block) + 1, [len(r)]])
        repeats = np.concatenate([[0], np.cumsum(same_request)])
        blocks, unique = {}, set()
        for a, b in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True):
            key = (int(r.step[a]), int(r.layer[a]))
            blocks[key] = (a, b)
            if repeats[b - 1] == repeats[a]:
                unique.add(key)
        return blocks, unique

    @property
    def shape(self) -> Shape:
        return self.routing.shape

    def expert_tokens(self, requests: tuple[int, ...], phase: str, step: int, layer: int) -> tuple[int, ...] | None:
        """Rows that each expert gets [experts] when these sequences pass the router of `layer` in `step`.

        Sums to k times the tokens. None where the trace lacks one of the sequences there.
        """
        key = (0 if phase == "prefill" else step, layer)
        block = self._blocks.get(key)
        if block is None or not requests:
            return None
        if key in self._unique:
            at = self._find(self._requests[block[0] : block[1]], requests)
            if at is None:
                return None
            chosen = self.routing.experts[block[0] + at].ravel()
            return tuple(np.bincount(chosen, minlength=self.shape.experts).tolist())
        known, counts = self._histogram(key, block)
        at = self._find(known, requests)
        return None if at is None else tuple(counts[at].sum(axis=0).tolist())

    def rows(self, requests: tuple[int, ...], phase: str, step: int, layer: int) -> tuple[NDArray[np.int16], NDArray[np.float32]] | None:
        """Experts and weights [tokens, k] of these sequences in their order, positions ascending: what a replay forces.

        None where the trace lacks one of them. Weights are NaN where none were recorded.
        """
        block = self._blocks.get((0 if phase == "prefill" else step, layer))
        if block is None or not requests:
            return None
        ids = self._requests[block[0] : block[1]]
        wanted = np.asarray(requests, np.int32)
        first, last = np.searchsorted(ids, wanted, "left"), np.searchsorted(ids, wanted, "right")
        if (first == last).any():
            return None
        at = block[0] + np.concatenate([np.arange(a, b) for a, b in zip(first.tolist(), last.tolist(), strict=True)])
        return self.routing.experts[at], self.routing.weights[at]

    @staticmethod
    def _find(ids: NDArray[np.int32], requests: tuple[int, ...]) -> NDArray[np.intp] | None:
        wanted = np.array(requests, np.int32)
        at = ids.searchsorted(wanted)
        if int(at.max()) >= len(ids) or not np.array_equal(ids[at], wanted):
            return None
        return at

    def _histogram(self, key: tuple[int, int], block: tuple[int, int]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """Requests of a block, ascending, and their counts [requests, experts]; made at the first look."""
        if key not in self._histograms:
            ids, row = np.unique(self._requests[block[0] : block[1]], return_inverse=True)
            e, k = self.shape.experts, self.shape.k
            flat = np.repeat(row, k) * e + self.routing.experts[block[0] : block[1]].ravel()
            self._histograms[key] = ids, np.bincount(flat, minlength=len(ids) * e).reshape(-1, e)
        return self._histograms[key]
