"""A time that no schedule of the same tasks can beat on the same machine."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from sim.columns import columns_of, plans_of
from sim.costs import Costs, PricedPlan, Prices
from sim.plan import Plan
from sim.tasks import PS_PER_S, Task


def solo_ps(prices: Prices, capacity: NDArray[np.float64]) -> NDArray[np.float64]:
    """Time of each price class when nothing else runs [c]: latency + max over k of amount / min(capacity, cap)."""
    rate = np.minimum(capacity[prices.resource], prices.cap)
    spans = prices.amount / rate
    longest = np.zeros(len(prices.latency_ps))
    owner = np.repeat(np.arange(len(longest)), np.diff(prices.ptr))
    np.maximum.at(longest, owner, spans)
    return prices.latency_ps + longest * PS_PER_S


def lower_bound_s(sources: Sequence[Plan | Task], costs: Costs, servers: Mapping[str, int]) -> float:
    """The largest of three times, each of which the run must take, in seconds:

    the longest chain of dependencies at solo durations; the busiest resource, all demands over its
    capacity; the busiest lane, all solo durations over its servers.
    """
    priced = [costs.bind(p) for p in plans_of(sources)]
    if not priced:
        return 0.0
    capacity = np.asarray(costs.capacity)
    spans = [solo_ps(p.prices, capacity)[p.cls] for p in priced]
    columns = columns_of(sources)
    chain = _longest_chain(np.concatenate(spans), columns.number, columns.dep_ptr, columns.dep)
    lane = max((total / servers[name] for name, total in _lane_totals(priced, spans)), default=0.0)
    return max(chain / PS_PER_S, _busiest_resource_s(priced, capacity), lane / PS_PER_S)


def lane_totals_s(sources: Sequence[Plan | Task], costs: Costs) -> dict[str, float]:
    """Solo durations of each lane's tasks, summed, in seconds: what a look at the busiest lane alone predicts."""
    priced = [costs.bind(p) for p in plans_of(sources)]
    capacity = np.asarray(costs.capacity)
    spans = [solo_ps(p.prices, capacity)[p.cls] for p in priced]
    return {lane: total / PS_PER_S for lane, total in _lane_totals(priced, spans)}


def _lane_totals(priced: Iterable[PricedPlan], spans: Iterable[NDArray[np.float64]]) -> list[tuple[str, float]]:
    totals: dict[str, float] = {}
    for p, span in zip(priced, spans, strict=True):
        sums = np.bincount(p.plan.lane + 1, weights=span, minlength=len(p.plan.lanes) + 1)
        for name, value in zip(p.plan.lanes, sums[1:].tolist(), strict=True):
            totals[name] = totals.get(name, 0.0) + value
    return list(totals.items())


def _busiest_resource_s(priced: Iterable[PricedPlan], capacity: NDArray[np.float64]) -> float:
    used = np.zeros(len(capacity))
    for p in priced:
        tasks = np.bincount(p.cls, minlength=len(p.prices.latency_ps))
        owner = np.repeat(np.arange(len(tasks)), np.diff(p.prices.ptr))
        np.add.at(used, p.prices.resource, p.prices.amount * tasks[owner])
    return float((used / capacity).max(initial=0.0))


def _longest_chain(
    span: NDArray[np.float64], number: NDArray[np.int64], dep_ptr: NDArray[np.int64], dep: NDArray[np.int64]
) -> float:
    """Length of the longest path over dependencies; they point backwards, so one sweep in number order does."""
    from sim.chain import sweep  # numba: only where a bound is wanted

    return float(sweep(span, np.searchsorted(number, dep), dep_ptr))
