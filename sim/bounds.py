"""Times that no schedule of the same tasks can beat on the same machine.

A schedule may start the tasks in any order and at any time, as long as it keeps their dependencies,
the order in which they touch buffers, the servers of each lane and the capacity of each resource.
Then each of these is a bound, and the largest is the bound:

* the longest chain of tasks that wait for each other, at solo durations;
* the busiest resource (all demands over its capacity) and the busiest lane (all solo durations over
  its servers);
* the two combined (Carlier's one-machine bound, EJOR 11, 1982): the work on one lane or resource of
  all tasks that cannot start before r, and after which at least q must follow, takes T >= r + work + q;
* where work passes through a narrow place: what must come after a task b and before a task c (a *cut*)
  stands between their ends, whole, and c's own chain begins only then. A run whose prefill is limited
  by the GPU and whose decode by a link is bounded by the sum of both, not by the larger.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sim.columns import Columns, columns_of, plans_of
from sim.costs import Costs, PricedPlan, Prices
from sim.plan import Plan
from sim.tasks import PS_PER_S, Task

CUTS = 62
"""Tasks tried as cuts: one bit each of a set."""
LEVELS = 128
"""Values of r, and of q, that the combined bound is evaluated at."""
EXACT = 1.0 - 2.0**-31
"""Bounds are lowered by this factor: engines share in fixed point and may be that much faster than exact arithmetic."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """Lower bounds of a makespan, in seconds.

    Attributes
    ----------
    seconds: the largest that is proven.
    critical_path_s: the longest chain alone. lanes_s, resources_s: the work of each alone.
    """

    seconds: float
    critical_path_s: float
    lanes_s: Mapping[str, float]
    resources_s: Mapping[str, float]

    def gap(self, makespan_s: float) -> float:
        """Share of a makespan that is not proven to be needed."""
        return 1.0 - self.seconds / makespan_s if makespan_s > 0 else 0.0


@dataclass(frozen=True, slots=True)
class _Machine:
    """A lane or a resource: tasks [k], rows of those that use it; work [k], ps that each fills of it."""

    name: str
    tasks: NDArray[np.int64]
    work: NDArray[np.float64]


def solo_ps(prices: Prices, capacity: NDArray[np.float64]) -> NDArray[np.float64]:
    """Time of each price class when nothing else runs [c]: latency + max over k of amount / min(capacity, cap)."""
    rate = np.minimum(capacity[prices.resource], prices.cap)
    spans = prices.amount / rate
    longest = np.zeros(len(prices.latency_ps))
    owner = np.repeat(np.arange(len(longest)), np.diff(prices.ptr))
    np.maximum.at(longest, owner, spans)
    return prices.latency_ps + longest * PS_PER_S


def lower_bound_s(
    sources: Sequence[Plan | Task], costs: Costs, servers: Mapping[str, int], ran: NDArray[np.bool_] | None = None
) -> float:
    """`bounds(...).seconds`."""
    return bounds(sources, costs, servers, ran).seconds


def bounds(sources: Sequence[Plan | Task], costs: Costs, servers: Mapping[str, int], ran: NDArray[np.bool_] | None = None) -> Bounds:
    """Bound the makespan of what was handed out.

    sources: Plans and Tasks in order of submission; costs: prices and capacities; servers: of each
    lane by name; ran [n], in order of task numbers: False for tasks that did not run to their end,
    which then count for nothing. O(n log n) at most.
    """
    priced = [costs.bind(p) for p in plans_of(sources)]
    if not priced:
        return Bounds(0.0, 0.0, {}, {})
    capacity = np.asarray(costs.capacity, np.float64)
    columns = columns_of(sources)
    ran = np.ones(len(columns), np.bool_) if ran is None else ran
    inside = np.concatenate([_inside(p) for p in priced], axis=1)
    alone_ps = np.concatenate([solo_ps(p.prices, capacity)[p.cls] for p in priced])
    span = np.where(ran, alone_ps + (inside / capacity[:, None]).max(axis=0, initial=0.0) * PS_PER_S, 0.0)
    lanes = list(_lanes(priced, span, servers))
    resources = list(_resources(priced, inside, capacity, costs.resources, ran))
    critical, best = _Graph(priced, columns, span, ran).bound([*lanes, *resources])
    alone = [float(m.work.sum()) for m in (*lanes, *resources)]
    seconds = [v * EXACT / PS_PER_S for v in (max(best, critical, *alone), critical, *alone)]
    by_name = list(zip((m.name for m in (*lanes, *resources)), seconds[2:], strict=True))
    return Bounds(seconds[0], seconds[1], dict(by_name[: len(lanes)]), dict(by_name[len(lanes) :]))


def lane_totals_s(sources: Sequence[Plan | Task], costs: Costs) -> dict[str, float]:
    """Solo durations of each lane's tasks, summed, in seconds: what a look at the busiest lane alone predicts."""
    priced = [costs.bind(p) for p in plans_of(sources)]
    capacity = np.asarray(costs.capacity)
    span = np.concatenate([np.empty(0), *(solo_ps(p.prices, capacity)[p.cls] for p in priced)])
    names = dict.fromkeys(name for p in priced for name in p.plan.lanes)
    return {m.name: float(m.work.sum()) / PS_PER_S for m in _lanes(priced, span, dict.fromkeys(names, 1))}


def _lanes(priced: Sequence[PricedPlan], span: NDArray[np.float64], servers: Mapping[str, int]) -> Iterator[_Machine]:
    names = list(dict.fromkeys(name for p in priced for name in p.plan.lanes))
    lane = np.concatenate([np.array([*map(names.index, p.plan.lanes), -1], np.int64)[p.plan.lane] for p in priced])
    for k, name in enumerate(names):
        at = np.flatnonzero(lane == k)
        yield _Machine(name, at, span[at] / servers[name])


def _amounts(p: PricedPlan, k: int) -> NDArray[np.float64]:
    """What each task demands of resource k [n]."""
    owner = np.repeat(np.arange(len(p.prices.latency_ps)), np.diff(p.prices.ptr))
    mine = p.prices.resource == k
    return np.asarray(np.bincount(owner[mine], p.prices.amount[mine], minlength=len(p.prices.latency_ps)), np.float64)[p.cls]


def _inside(p: PricedPlan) -> NDArray[np.float64]:
    """What the body of each task demands of each resource [resources, n]: the task lasts until all of it is done."""
    found = np.zeros((len(p.capacity), len(p.plan)))
    totals: dict[int, list[float]] = {}
    for i, body in p.bodies.items():
        if id(body) not in totals:
            totals[id(body)] = [float(_amounts(body, k).sum()) for k in range(len(p.capacity))]
        found[:, i] = totals[id(body)]
    return found


def _resources(
    priced: Sequence[PricedPlan], inside: NDArray[np.float64], capacity: NDArray[np.float64], names: Sequence[str], ran: NDArray[np.bool_]
) -> Iterator[_Machine]:
    for k, name in enumerate(names):
        work = (np.concatenate([_amounts(p, k) for p in priced]) + inside[k]) * ran / capacity[k] * PS_PER_S
        at = np.flatnonzero(work)
        if len(at):
            yield _Machine(name, at, work[at])


class _Graph:
    """The tasks, what orders them, and the cuts."""

    def __init__(self, priced: Sequence[PricedPlan], columns: Columns, span: NDArray[np.float64], ran: NDArray[np.bool_]) -> None:
        from sim import chain  # numba: only where a bound is wanted

        self._chain = chain
        self._span = span
        names: dict[str, int] = {}
        buffer = [np.array([names.setdefault(b, len(names)) for b in p.plan.buffers], np.int64)[p.plan.buffer] for p in priced]
        touched = np.concatenate([np.diff(p.plan.buffer_ptr) for p in priced])
        self._order = chain.Order(
            columns.dep_ptr, np.searchsorted(columns.number, columns.dep), np.concatenate([[0], np.cumsum(touched)]),
            np.concatenate(buffer), np.concatenate([p.plan.buffer_write for p in priced]), ran, len(names),
        )  # fmt: skip

    def bound(self, machines: Sequence[_Machine]) -> tuple[float, float]:
        """The longest chain and the largest bound, in ps."""
        cut = self._cuts()
        bit = np.where(cut >= 0, np.uint64(1) << np.maximum(cut, 0).astype(np.uint64), np.uint64(0))
        before = self._chain.cuts_before(self._order, bit)
        tail, after = self._chain.after(self._order, self._span, bit)
        critical = float((self._span + tail).max())
        count = int(cut.max()) + 1
        start = self._chain.heads(self._order, self._span, cut, before, _between(before, after, count, machines))
        windows = (_window(start[m.tasks], m.work, tail[m.tasks]) for m in machines)
        return critical, max([float((start + self._span + tail).max()), *windows])

    def _cuts(self) -> NDArray[np.int64]:
        """Number of each task that is a cut, else -1 [n]: of each stretch of equal work the task that most others meet in."""
        met = self._chain.fans(self._order).min(axis=1)
        work = np.cumsum(self._span)
        stretch = np.minimum((work * (CUTS / max(work[-1], 1.0))).astype(np.int64), CUTS - 1)
        order = np.lexsort((met, stretch))
        last = order[np.append(np.flatnonzero(np.diff(stretch[order])), len(order) - 1)]
        cut = np.full(len(met), -1, np.int64)
        chosen = np.sort(last[met[last] > 0])
        cut[chosen] = np.arange(len(chosen))
        return cut


def _between(before: NDArray[np.uint64], after: NDArray[np.uint64], count: int, machines: Sequence[_Machine]) -> NDArray[np.float64]:
    """Work of the busiest machine, in ps, that must lie between two cuts [1 + cuts, cuts]; row 0: since the beginning."""
    row = np.unique(before, return_inverse=True)[1]
    column = np.unique(after, return_inverse=True)[1]
    _, first, group = np.unique(row * len(before) + column, return_index=True, return_inverse=True)
    bits = np.arange(count, dtype=np.uint64)
    since = np.concatenate([np.ones((1, len(first))), (before[first] >> bits[:, None] & np.uint64(1)).astype(np.float64)])
    until = (after[first] >> bits[:, None] & np.uint64(1)).astype(np.float64)
    most = np.zeros((count + 1, count))
    for m in machines:
        work = np.bincount(group[m.tasks], m.work, minlength=len(first))
        np.maximum(most, (since * work) @ until.T, out=most)
    return most


def _window(head: NDArray[np.float64], work: NDArray[np.float64], tail: NDArray[np.float64]) -> float:
    """Largest r + work + q over thresholds r and q: all work of tasks with head >= r and tail >= q. [k] each."""
    if not len(head):
        return 0.0
    r, row = _levels(head)
    q, column = _levels(tail)
    inside = np.bincount(row * len(q) + column, work, minlength=len(r) * len(q)).reshape(len(r), len(q))
    inside = inside[::-1, ::-1].cumsum(axis=0).cumsum(axis=1)[::-1, ::-1]
    return float(np.where(inside > 0, r[:, None] + q[None, :] + inside, 0.0).max())


def _levels(values: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Ascending levels, and for each value the place of a level that is not above it [k]. All values are levels where
    they are few; else levels stand denser near the smallest, where most of the work is above."""
    if len(values) <= LEVELS:
        levels = np.unique(values)
    else:
        low, high = float(values.min()), float(values.max())
        levels = np.unique(low + (high - low) * np.linspace(0.0, 1.0, LEVELS) ** 2)
    return levels, np.searchsorted(levels, values, "right") - 1
