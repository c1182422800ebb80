"""Delays: jitter of each rank and launch as latencies of a priced Plan.

A ratio multiplies what its launch takes: the host's time for a kernel; for a collective also the time that the rank's own
part of it takes undisturbed, since that is what the published ratios are of (total over fastest time of an
all-to-all). The rank is late by so much, and whoever waits for it waits.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from sim.costs import PricedPlan
from sim.jitter import Jitter
from sim.tasks import PS_PER_S


class Delays:
    """A priced Plan in which each launch and each entry into a collective has a price class of its own."""

    def __init__(self, priced: PricedPlan) -> None:
        plan, prices = priced.plan, priced.prices
        op = np.array([work.op for work in plan.works])[plan.work]
        self._at = np.flatnonzero((op == "launch") | (op == "enter"))
        self._rank = plan.rank[self._at].astype(np.int64)
        self._launch = _ordinals(self._rank)
        self._latency = prices.latency_ps[priced.cls[self._at]]
        self._waits = self._latency.astype(np.float64)
        enters = op[self._at] == "enter"
        self._waits[enters] += _collective_ps(priced, self._at[enters], op)
        cls = priced.cls.copy()
        first = len(prices.latency_ps)
        cls[self._at] = first + np.arange(len(self._at), dtype=np.int32)
        ptr = np.concatenate([prices.ptr, np.full(len(self._at), prices.ptr[-1], np.int32)])
        self._base = replace(priced, cls=cls, prices=replace(prices, ptr=ptr))

    def drawn(self, jitter: Jitter, seed: int, step: int) -> PricedPlan:
        """The Plan as it goes in one step. Equal arguments give equal delays, whatever else there is."""
        ratio = jitter.ratio(seed, self._rank, step, self._launch)
        own = self._latency + np.rint((ratio - 1.0) * self._waits).astype(np.int64)
        prices = self._base.prices
        return replace(self._base, prices=replace(prices, latency_ps=np.concatenate([prices.latency_ps, own])))


def _ordinals(rank: NDArray[np.int64]) -> NDArray[np.int64]:
    """Which launch of its rank each is, in order of the Plan."""
    order = np.argsort(rank, kind="stable")
    counts = np.bincount(rank)
    places = np.arange(len(rank)) - np.repeat(np.cumsum(counts) - counts, counts)
    found = np.empty(len(rank), np.int64)
    found[order] = places
    return found


def _collective_ps(priced: PricedPlan, enters: NDArray[np.intp], op: NDArray[np.str_]) -> NDArray[np.float64]:
    """[enters], what the puts of each entry's rank and collective take undisturbed: the longest of them alone, or all together on
    the link that they load most."""
    plan, prices = priced.plan, priced.prices
    variants = np.array([work.variant for work in plan.works])[plan.work]
    puts = np.flatnonzero(op == "put")
    labels = np.stack([plan.layer, plan.microbatch, plan.rank, np.unique(variants, return_inverse=True)[1].reshape(-1)], axis=1)
    _, group = np.unique(labels, axis=0, return_inverse=True)
    group = group.reshape(-1)
    seconds = np.zeros(int(group.max(initial=0)) + 1)
    together: dict[tuple[int, int], float] = {}
    for i in puts.tolist():
        demands = slice(prices.ptr[priced.cls[i]], prices.ptr[priced.cls[i] + 1])
        resource, amount = prices.resource[demands], prices.amount[demands]
        capacity = priced.capacity[resource]
        alone = float((amount / np.minimum(capacity, prices.cap[demands])).max(initial=0.0))
        seconds[group[i]] = max(seconds[group[i]], alone + prices.latency_ps[priced.cls[i]] / PS_PER_S)
        for k, share in zip(resource.tolist(), (amount / capacity).tolist(), strict=True):
            together[int(group[i]), k] = together.get((int(group[i]), k), 0.0) + share
    for (g, _), sum_s in together.items():
        seconds[g] = max(seconds[g], sum_s)
    return np.asarray(seconds[group[enters]] * PS_PER_S)
