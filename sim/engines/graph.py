"""The compiled engine's graph: the columns of a Plan, and behind them those of the bodies that run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sim.engines.intake import lane_table, pool_table
from sim.engines.lanes import BODY, Graph

if TYPE_CHECKING:
    from sim.costs import PricedPlan, Prices


class Piece(NamedTuple):
    """A Plan whose rows stand from row `first` of the graph on: the body of row `task`, or the Plan itself (task -1)."""

    priced: PricedPlan
    first: int
    task: int


def pieces(priced: PricedPlan) -> list[Piece]:
    """The Plan, then its bodies in order of their tasks, the empty ones left out."""
    found, at = [Piece(priced, 0, -1)], len(priced.plan)
    for task, body in sorted(priced.bodies.items()):
        if len(body.plan):
            found.append(Piece(body, at, task))
            at += len(body.plan)
    return found


def class_tables(priced: PricedPlan) -> dict[int, tuple[Prices, int]]:
    """Prices of the Plan and of each different body, with the index of their first class in one table, by `id`."""
    found: dict[int, tuple[Prices, int]] = {}
    first = 0
    for one in (priced, *priced.bodies.values()):
        if id(one) not in found:
            found[id(one)] = (one.prices, first)
            first += len(one.prices.latency_ps)
    return found


def graph(priced: PricedPlan, lanes: Sequence[str], pools: Mapping[str, int]) -> Graph:
    plan, parts, tables = priced.plan, pieces(priced), class_tables(priced)
    inner = [p.priced.plan for p in parts[1:]]
    none = np.zeros(sum(map(len, inner)), np.int32)
    body, bodies = _bodies(parts)
    return Graph(
        lane=_joined(lane_table(p.plan, lanes)[p.plan.lane] + np.int32(1) for p, _, _ in parts),
        cls=_joined(_shifted(p.cls, tables[id(p)][1]) for p, _, _ in parts),
        dep_ptr=_pointers(plan.dep_ptr, [np.diff(p.dep_ptr) for p in inner]),
        dep=_joined(_shifted(p.plan.dep, plan.first + first - p.plan.first) for p, first, _ in parts),
        take_ptr=_pointers(plan.take_ptr, [none]), take_pool=plan.take_pool, take_units=plan.take_units,
        release_ptr=_pointers(plan.release_ptr, [none]), release=plan.release,
        priority=_joined(p.plan.priority for p, _, _ in parts), body=body, bodies=bodies, pool_of=pool_table(plan, pools), first=plan.first,
    )  # fmt: skip


def _bodies(parts: Sequence[Piece]) -> tuple[NDArray[np.int32], NDArray[Any]]:
    """`Graph.body` and `Graph.bodies`."""
    column = np.repeat(np.arange(-1, -1 - len(parts), -1, dtype=np.int32), [len(p.plan) for p, _, _ in parts])
    rows = np.array([(task, first, first + len(p.plan)) for p, first, task in parts[1:]], BODY)
    column[rows["task"]] = np.arange(len(rows))
    return column, rows


def _shifted(column: NDArray[Any], by: int) -> NDArray[Any]:
    return column + np.int32(by) if by else column


def _joined(parts: Iterable[NDArray[Any]]) -> NDArray[Any]:
    whole = list(parts)
    return whole[0] if len(whole) == 1 else np.concatenate(whole)


def _pointers(own: NDArray[np.int32], lengths: Sequence[NDArray[Any]]) -> NDArray[np.int32]:
    """Offsets that go on behind `own` with rows of these lengths."""
    more = _joined([np.empty(0, np.int32), *lengths])
    return np.concatenate([own, own[-1] + np.cumsum(more, dtype=np.int32)]) if len(more) else own
