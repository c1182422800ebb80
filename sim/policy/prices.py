"""Prices: what the tasks of one kind demand at least, by lane and resource, for batches of every size.

Each price comes from the cost model that the simulator uses. Where the sequences of a workload differ, a task's
demand on each resource is replaced by its lower convex hull at the mean, so that sums over tasks stay lower bounds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sim.costs import CostModel
from sim.ops import EXACT_TOKENS
from sim.policy.hull import hull
from sim.policy.launched import Kind
from sim.policy.traffic import Array, Traffic, pairs, seen
from sim.tasks import PS_PER_S, Work

Batch = NDArray[np.int64]

ROOFLINE_POINTS, CURVE_POINTS = 3, 33
"""Points of a hull: demands of a roofline are linear, or concave as the number of experts that are touched, so that the
ends alone would do; measured curves have corners of their own, which are points too."""


class Table(NamedTuple):
    """What tasks of one kind and size demand. lane: its place. hulls: for each of `resources` the seconds alone, then for
    each the seconds of its whole capacity, as corners (x, y) over what differs between the tasks."""

    lane: int
    latency_s: float
    resources: NDArray[np.int64]
    hulls: list[tuple[Array, Array]]


class Prices:
    """Vectors over `names`: seconds on each lane, and seconds of each resource's whole capacity."""

    def __init__(self, costs: CostModel, traffic: Traffic) -> None:
        self.costs, self.traffic, self.model = costs, traffic, costs.model
        self.lanes = tuple(lane.name for lane in costs.lanes)
        self.names = (*(f"lane {name}" for name in self.lanes), *costs.resources)
        ops = costs.machine.ops
        self._corners = np.array(sorted({x for op in ops for x, _ in op.curve}))
        self._tables: dict[tuple[str, Kind, int], Table] = {}
        self._ratio_corners = np.array(sorted({x for op in ops for x, _ in op.ratio}))

    def of(self, lane: str, work: Work) -> Array:
        """[names] of one task."""
        one: Array = self._at(self._known(lane, [work], [0.0]), np.zeros(1))[0]
        return one

    def prefill(self, kind: Kind, size: int, batch: Batch) -> Array:
        """[batch, names] of one task on the prompts of `size` sequences."""
        window = self._window(kind)
        if ("prefill", kind, size) not in self._tables:
            self._tables["prefill", kind, size] = self._prompts(kind, size, window)
        mean = {"attn_prefill": self.traffic.pairs, "kv_to_cpu": self.traffic.kept}.get(kind.op)
        return self._at(self._tables["prefill", kind, size], self.traffic.rows(batch) if mean is None else mean(batch, window))

    def decode(self, kind: Kind, size: int, batch: Batch) -> Array:
        """[batch, names] of one task on the next tokens of `size` sequences."""
        window = self._window(kind)
        if ("decode", kind, size) not in self._tables:
            self._tables["decode", kind, size] = self._caches(kind, size, window)
        return self._at(self._tables["decode", kind, size], self.traffic.context(batch, window))

    def _prompts(self, kind: Kind, size: int, window: int | None) -> Table:
        lengths = self._points(self.traffic.shortest, self.traffic.longest, size)
        if kind.op == "attn_prefill":
            works = [Work(kind.op, size * s, size, int(size * pairs(s, window))) for s in lengths]
            return self._known(kind.lane, works, [float(pairs(s, window)) for s in lengths])
        if kind.op == "kv_to_cpu":
            works = [Work(kind.op, size * s, size, bytes=int(size * seen(s, window)) * self._kv) for s in lengths]
            return self._known(kind.lane, works, [float(seen(s, window)) for s in lengths])
        works = [self._plain(kind, size if kind.op == "sample" else size * s, size) for s in lengths]
        return self._known(kind.lane, works, lengths, [self._rounding(kind, w.tokens) if len(lengths) > 1 else 1.0 for w in works])

    def _rounding(self, kind: Kind, tokens: int) -> float:
        """The cost model rounds the rows of an expert, above 64 tokens: between the points of a hull a task may have half a
        row less than a line says, and the points half a row more."""
        rows = tokens * self.model.top_k / self.model.experts
        return 1.0 - 1.0 / rows if kind.routed and tokens > EXACT_TOKENS and rows > 1 else 1.0

    def _caches(self, kind: Kind, size: int, window: int | None) -> Table:
        if kind.op not in ("attn_decode", "kv_to_gpu"):
            return self._known(kind.lane, [self._plain(kind, size, size)], [0.0])
        points = self._points(*self.traffic.context_range(window), size)
        works = [
            Work(kind.op, size, size, size * x, variant=kind.variant) if kind.op == "attn_decode"
            else Work(kind.op, size, size, size * (x - 1), bytes=size * (x - 1) * self._kv, variant=kind.variant)
            for x in points
        ]  # fmt: skip
        return self._known(kind.lane, works, points)

    def copies(self, kind: Kind, sizes: Sequence[int]) -> Array:
        """[names] of the copies of one layer's weights, one for each of `sizes` bytes."""
        total = np.zeros(len(self.names))
        for size in set(sizes):
            total += sizes.count(size) * self.of(kind.lane, Work(kind.op, bytes=size, variant=kind.variant))
        return total

    @property
    def _kv(self) -> int:
        return self.model.kv_bytes_per_token_layer

    def _window(self, kind: Kind) -> int | None:
        return self.model.sliding_window if kind.sliding else None

    def _plain(self, kind: Kind, tokens: int, sequences: int) -> Work:
        experts = self.model.experts if kind.routed else 0
        return Work(kind.op, tokens, sequences, experts=experts, bytes=tokens * kind.row_bytes, variant=kind.variant)

    def _points(self, low: float, high: float, size: int) -> list[int]:
        if low == high:
            return [int(low)]
        curved = len(self._corners) > 0
        spread = np.geomspace(low, high, CURVE_POINTS if curved else ROOFLINE_POINTS)
        corners = np.concatenate([self._corners, self._ratio_corners / size]) if curved else self._corners
        inside = corners[(corners > low) & (corners < high)]
        return sorted({int(x) for x in (*spread, *inside)} | {int(high)})

    def _known(self, lane: str, works: Sequence[Work], x: Sequence[float], factor: Sequence[float] = (1.0,)) -> Table:
        latency_s, solo, share = self._demands(lane, works)
        solo, share = solo * np.array(factor)[:, None], share * np.array(factor)[:, None]
        used = np.flatnonzero(solo.any(axis=0))
        return Table(self.lanes.index(lane), latency_s, used, [hull(x, column) for column in (*solo[:, used].T, *share[:, used].T)])

    def _at(self, table: Table, mean: Array) -> Array:
        """Demand on each resource by its hull, and the lane's seconds: latency and the largest solo time."""
        found = np.zeros((len(mean), len(self.names)))
        values = [np.interp(mean, x, y) for x, y in table.hulls]
        k = len(table.resources)
        found[:, table.lane] = table.latency_s + (np.max(values[:k], axis=0) if k else 0.0)
        for resource, shares in zip(table.resources, values[k:], strict=True):
            found[:, len(self.lanes) + resource] = shares
        return found

    def _demands(self, lane: str, works: Sequence[Work]) -> tuple[float, Array, Array]:
        """The least latency in seconds; [works, resources] seconds alone, and of the whole capacity."""
        solo = np.zeros((len(works), len(self.costs.resources)))
        share, latencies = np.zeros_like(solo), []
        for i, work in enumerate(works):
            latency_ps, demands = self.costs.row(lane, work)
            latencies.append(latency_ps)
            for k, amount, cap, _ in demands:
                solo[i, k] = amount / min(self.costs.capacity[k], cap)
                share[i, k] = amount / self.costs.capacity[k]
        return min(latencies) / PS_PER_S, solo, share
