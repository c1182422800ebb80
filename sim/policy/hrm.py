"""The Hierarchical Roofline Model of a whole batch as a lower bound of its time, in closed form.

MoE-Lightning 3.2 and 4.2: a step takes at least as long as its most loaded level. Here the levels are the lanes and
resources of the machine, and each one's load is the sum over all tasks of what the simulator's cost model charges:

    T >= max over levels of prefill load + max over levels of decode load, or the chain of one micro-batch

Prefill and decode add up because every launch order decodes behind its prefill in the GPU's lane; what may run ahead
of that (weights of the next layers, the first caches) is taken off. Where the schedule reacts to the run, passes
alternate, and only the sum over both of each level bounds it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sim.costs import CostModel
from sim.policy.launched import LINEAR_FROM, WEIGHT_COPIES, Kind, Launched, launched
from sim.policy.prices import Prices
from sim.policy.space import Order
from sim.policy.traffic import Array, Traffic
from sim.schedulers.policy import Policy
from sim.schedulers.sizes import page_bytes

AHEAD_LAYERS = 3
"""Layers whose weights may be on their way before the prefill ends: two halves on the GPU and the pinned stage."""
AHEAD_COPIES = {"kv_to_gpu": 2, "kv_to_cpu": 2}
"""Copies of caches that may run beside the other phase: staging slots and cache lines."""

Counts = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Times:
    """Of batches of n micro-batches [n]. total_s: the bound. prefill, decode: load of each level [n, levels]; chain_s: of
    one micro-batch through all decode steps. added: whether the two phases' largest loads add up."""

    total_s: Array
    prefill: Array
    decode: Array
    chain_s: Array
    added: bool


class Roofline:
    """Bounds for one model, machine and workload. counts: the numbers of micro-batches that are asked for, ascending [n]."""

    def __init__(self, costs: CostModel, traffic: Traffic, counts: Counts) -> None:
        self.traffic, self.model, self.counts = traffic, costs.model, counts
        self.prices = Prices(costs, traffic)
        self._prefills: dict[tuple[Order, int, int], Array] = {}
        self._decodes: dict[tuple[Order, int], tuple[Array, Array]] = {}
        self._streams: dict[tuple[Order, int, int | None], tuple[Array, Array]] = {}

    @property
    def levels(self) -> tuple[str, ...]:
        return self.prices.names

    def times(self, order: Order, microbatch: int, prefill: int, static_experts: int, pages: int | None, at: Counts) -> Times:
        """At the places `at` of `counts`, which make batches that the traffic knows. prefill: sequences of a prefill
        micro-batch; 0: of any size, which leaves its weights only."""
        (acts_d, chain_s), acts_p = self._decoding(order, microbatch), self._prefilling(order, microbatch, prefill)
        streams_p, streams_d = self._streamed(order, static_experts, pages)
        p = acts_p[at] + self.traffic.slots * streams_p
        layers = np.maximum(self._passes(microbatch)[at] * self.model.moe_layers - AHEAD_LAYERS, 0.0)
        d = acts_d[at] + layers[:, None] * (streams_d[at] if len(streams_d) > 1 else streams_d)
        if self.traffic.reactive:
            return Times((p + d).max(axis=1), p, d, chain_s[at], False)
        return Times(p.max(axis=1) + np.maximum(d.max(axis=1), chain_s[at]), p, d, chain_s[at], True)

    def _batch(self, microbatch: int) -> Counts:
        return self._counts(microbatch) * microbatch

    def _counts(self, microbatch: int) -> Counts:
        return self.counts[self.counts * microbatch <= self.traffic.most]

    def _passes(self, microbatch: int) -> Array:
        passes: Array = self.traffic.passes(self._batch(microbatch))
        return passes

    # Activations: everything but streamed weights --------------------------------------------------

    def _prefilling(self, order: Order, microbatch: int, size: int) -> Array:
        """[n, levels] of prefill in micro-batches of `size` sequences."""
        key = (order, microbatch, size)
        if key not in self._prefills:
            batch = self._batch(microbatch)
            load = np.zeros((len(batch), len(self.levels)))
            for kind, number in self._prefill_numbers(order, microbatch, size, batch) if size else ():
                load += number[:, None] * self.prices.prefill(kind, size, batch)
            self._prefills[key] = load
        return self._prefills[key]

    def _prefill_numbers(self, order: Order, microbatch: int, size: int, batch: Counts) -> Iterator[tuple[Kind, Array]]:
        """Tasks of each kind. The last piece of a micro-batch may be smaller: as a fraction it costs no more than it does."""
        tasks = launched(order, self.model)
        pieces, full = batch // microbatch * -(-microbatch // size), batch / size
        for kind in tasks.activations("prefill"):
            if self.traffic.reactive:
                yield kind, tasks.base[1].get(kind, 0) * full * self.traffic.slots
                continue
            fixed, each = tasks.spread(kind, 0)
            few = np.minimum(pieces, len(fixed)) - 1
            number = fixed[few] * np.where(pieces < LINEAR_FROM, full / pieces, 1.0) + each[few] * full
            yield kind, np.maximum(number - AHEAD_COPIES.get(kind.op, 0), 0.0)

    def _decoding(self, order: Order, microbatch: int) -> tuple[Array, Array]:
        """[n, levels] of all decode passes; [n] seconds of the chain: the tasks of one micro-batch, one after the other,
        through all of them. Its new K and V may go to the host beside them, caches may come from there."""
        key = (order, microbatch)
        if key not in self._decodes:
            batch, tasks = self._batch(microbatch), launched(order, self.model)
            passes = self._passes(microbatch)
            load, chain_s = np.zeros((len(batch), len(self.levels))), np.zeros(len(batch))
            for kind in tasks.activations("decode"):
                price = self.prices.decode(kind, microbatch, batch)
                load += self._decode_number(tasks, kind, microbatch, batch, passes)[:, None] * price
                if kind.op not in AHEAD_COPIES and not self.traffic.reactive:
                    chain_s += tasks.per_step[1].get(kind, 0) * passes * price[:, self.prices.lanes.index(kind.lane)]
            self._decodes[key] = load, chain_s
        return self._decodes[key]

    def _decode_number(self, tasks: Launched, kind: Kind, microbatch: int, batch: Counts, passes: Array) -> Array:
        """Tasks of one kind; where sequences end as they please, as many as all rows fill whole micro-batches."""
        if self.traffic.reactive:
            rows: Array = tasks.per_step[1].get(kind, 0) * self.traffic.later_tokens(batch) / microbatch
            return rows
        counts = batch // microbatch
        (fixed, each), (fixed_1, each_1) = tasks.spread(kind, 0), tasks.spread(kind, 1)
        few = np.minimum(counts, len(fixed)) - 1
        first = fixed[few] + each[few] * counts
        number: Array = first + passes * (fixed_1[few] + each_1[few] * counts - first)
        return np.maximum(number - AHEAD_COPIES.get(kind.op, 0), 0.0)

    # Streamed weights -----------------------------------------------------------------------------

    def _streamed(self, order: Order, static_experts: int, pages: int | None) -> tuple[Array, Array]:
        """[levels] of one prefill pass; [n or 1, levels] of one layer in decode."""
        key = (order, static_experts, pages)
        if key not in self._streams:
            kinds = [k for k in launched(order, self.model).kinds if k.op in WEIGHT_COPIES]
            prefill = [k for k in kinds if k.phase == "prefill"]
            decode = [k for k in kinds if k.phase == "decode"]
            whole = self._pages(static_experts, 1)
            first = self.model.moe_layers * sum((self.prices.copies(k, whole) for k in prefill), np.zeros(len(self.levels)))
            counts = [pages] if pages else self.counts.tolist() if any(k.op != "layer_to_gpu" for k in decode) else [1]
            rows = [self._layer(decode, static_experts, p) for p in counts]
            self._streams[key] = first, np.array(rows)
        return self._streams[key]

    def _layer(self, kinds: list[Kind], static_experts: int, pages: int) -> Array:
        whole, parts = self._pages(static_experts, 1), self._pages(static_experts, pages)
        return sum((self.prices.copies(k, whole if k.op == "layer_to_gpu" else parts) for k in kinds), np.zeros(len(self.levels)))

    def _pages(self, static_experts: int, pages: int) -> tuple[int, ...]:
        return page_bytes(self.model, Policy(batch=1, microbatch=1, pages=pages, static_experts=static_experts))
