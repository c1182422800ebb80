"""The best point of a space by its bound, proven: best-first branch and bound.

A box is an order, a micro-batch, one or all sizes of its prefill micro-batch, a range of static experts and all numbers of
micro-batches. Its value is at least that of every point in it: more static experts never stream more, so the times are those
at the upper end of the range; fewer never need less of the host's memory nor more of the GPU's, so what fits is counted with
the GPU at the lower end and the host at the upper one. While no size of a prefill micro-batch is chosen, prefill is charged
with its weights only, the GPU's memory with the smallest. The box with the largest value is split until a point is on top.
What is left in the heap then is no better.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from sim.policy.fit import Fit
from sim.policy.hrm import Counts, Roofline, Times
from sim.policy.space import Point, Space
from sim.policy.traffic import Array

ANY = 0
"""As the size of a prefill micro-batch: none is chosen yet."""

Objective = Literal["throughput", "latency", "cost"]

Fits = Callable[[Point], bool]
"""Whether a point really fits: the closed form of a box may be too kind where prompts differ in length."""


@dataclass(order=True, slots=True)
class Box:
    """Ordered for the heap: the largest value first, ties by the place in the space.

    values: of its points, once a single number of static experts is left [fits].
    """

    key: tuple[float, int, int, int, int]
    point: Point = field(compare=False)
    low: int = field(compare=False)
    high: int = field(compare=False)
    values: Array | None = field(compare=False, default=None)


@dataclass(frozen=True, slots=True)
class Ranked:
    """A point that fits, with its bound. value: what is largest for the best."""

    point: Point
    value: float
    tokens_per_s: float
    total_s: float


class Search:
    """Points of `space` in order of their bounds, each proven to be no worse than all that follow.

    evaluated: points whose bound was computed. refused: points that only the exact memory rule excludes.
    """

    def __init__(self, space: Space, roofline: Roofline, fit: Fit, objective: Objective, fits: Fits) -> None:
        self.space, self.roofline, self.fit, self.objective, self._fits_really = space, roofline, fit, objective, fits
        self.boxes = self.evaluated = self.refused = 0
        self._counts: Counts = roofline.counts

    def ranked(self) -> Iterator[Ranked]:
        heap = list(self._roots())
        heapq.heapify(heap)
        while heap:
            box = heapq.heappop(heap)
            if box.values is None:
                for child in self._split(box):
                    heapq.heappush(heap, child)
                continue
            point = self._point(box)
            again = self._without_best(box)
            if again is not None:
                heapq.heappush(heap, again)
            if self._fits_really(point):
                yield self.rank(point)
            else:
                self.refused += 1

    def _roots(self) -> Iterator[Box]:
        for order in self.space.orders:
            last = len(self.space.statics(order)) - 1
            for mu in self.space.microbatch:
                yield from self._boxes(Point(order, mu, 1, 0, ANY, self.space.pages), 0, last)

    def _split(self, box: Box) -> Iterator[Box]:
        if box.point.prefill_microbatch == ANY:
            for c in self.space.prefills(box.point.microbatch):
                yield from self._boxes(replace(box.point, prefill_microbatch=c), box.low, box.high)
            return
        middle = (box.low + box.high) // 2
        yield from self._boxes(box.point, box.low, middle)
        yield from self._boxes(box.point, middle + 1, box.high)

    def _boxes(self, point: Point, low: int, high: int) -> Iterator[Box]:
        """One box, or none where nothing in it fits."""
        statics = self.space.statics(point.order)
        counts = self.space.counts(point.microbatch)
        some = point.prefill_microbatch == ANY
        prefills = self.space.prefills(point.microbatch) if some else (point.prefill_microbatch,)
        fits = self.fit.most(point, counts, gpu_at=statics[low], cpu_at=statics[high], prefills=prefills)
        if fits == 0:
            return
        self.boxes += 1
        values = self.values(point, statics[high], counts[:fits])
        key = (-float(values.max()), self.space.orders.index(point.order), point.microbatch, -point.prefill_microbatch, low)
        whole = some or low < high
        self.evaluated += 0 if whole else fits
        yield Box(key, point, low, high, None if whole else values)

    def values(self, point: Point, static_experts: int, counts: tuple[int, ...]) -> Array:
        """Bounds of the objective, largest for the best [counts]."""
        times = self.times(point, static_experts, counts)
        tokens: Array = self.roofline.traffic.tokens(np.array(counts) * point.microbatch)
        with np.errstate(divide="ignore"):  # a box of which no time is known yet may be worth anything
            return (1.0 if self.objective == "latency" else tokens) / times.total_s

    def times(self, point: Point, static_experts: int, counts: tuple[int, ...]) -> Times:
        at = np.searchsorted(self._counts, counts)
        return self.roofline.times(point.order, point.microbatch, point.prefill_microbatch, static_experts, point.pages, at)

    def _point(self, box: Box) -> Point:
        assert box.values is not None
        statics, counts = self.space.statics(box.point.order), self.space.counts(box.point.microbatch)
        best = int(box.values.argmax())
        return Point(box.point.order, box.point.microbatch, counts[best], statics[box.low], box.point.prefill_microbatch, box.point.pages)

    def _without_best(self, box: Box) -> Box | None:
        assert box.values is not None
        left = box.values.copy()
        left[left.argmax()] = -np.inf
        return Box((-float(left.max()), *box.key[1:]), box.point, box.low, box.high, left) if np.isfinite(left.max()) else None

    def rank(self, point: Point) -> Ranked:
        """The bound of any one point."""
        total_s = float(self.times(point, point.static_experts, (point.microbatches,)).total_s[0])
        tokens_per_s = float(self.roofline.traffic.tokens(point.batch)) / total_s
        return Ranked(point, 1.0 / total_s if self.objective == "latency" else tokens_per_s, tokens_per_s, total_s)
