"""Columns: Plans of a million tiles, built block by block from arrays.

A block is n tasks of one kind; all that `PlanBuilder.add` takes for one task is an array here, or one
value for all. References go to tasks of earlier blocks only.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sim.plan import PlanBuilder
from sim.tasks import Work

Ints = NDArray[np.int64]

Labels = Mapping[str, Ints | int]
"""Columns of `Plan` by name: rank, layer, microbatch, page, priority."""


class Joined(NamedTuple):
    """Several dependencies a task: `lengths` [n], and all numbers one after another."""

    lengths: Ints
    numbers: Ints


def evenly(numbers: Ints) -> Joined:
    """Row i of numbers [n, k] is what task i waits for."""
    return Joined(np.full(len(numbers), numbers.shape[1]), numbers.reshape(-1))


def grouped(numbers: Ints, group: Ints, groups: int) -> Joined:
    """Task g waits for the numbers [m] whose group [m] is g."""
    return Joined(np.bincount(group, minlength=groups), numbers[np.argsort(group, kind="stable")])


@cache
def _template() -> dict[str, NDArray[Any]]:
    """The columns of one task that has nothing."""
    builder = PlanBuilder()
    builder.add(Work("join"))
    builder._flush()
    return builder._chunks[0]


class ColumnBuilder(PlanBuilder):
    """Works, lanes, pools and buffers are given as indices, see `works_of`, `lanes_of`, `pools_of`."""

    def works_of(self, works: Iterable[Work]) -> Ints:
        return np.array([self._works[w] for w in works], np.int64)

    def lanes_of(self, names: Iterable[str]) -> Ints:
        return np.array([self._lanes[n] for n in names], np.int64)

    def pools_of(self, names: Iterable[str]) -> Ints:
        return np.array([self._pools[n] for n in names], np.int64)

    def block(
        self, n: int, work: Work | Ints, lane: Ints | None, deps: Sequence[Ints] = (), *, joined: Joined | None = None,
        takes: Ints | None = None, releases: Ints | None = None, labels: Labels | None = None,
    ) -> Ints:  # fmt: skip
        """Append n tasks; returns their numbers.

        deps: each [n], one dependency a task; or `joined`. takes [n]: pool that a task takes one unit of. releases [n]:
        task whose holds end with it. lane None: no lane.
        """
        self._flush()
        first = self.next
        chunk = {name: np.repeat(column, n) if len(column) else column for name, column in _template().items()}
        chunk["work"][:] = self._works[work] if isinstance(work, Work) else work
        chunk["lane"][:] = -1 if lane is None else lane
        for name, value in (labels or {}).items():
            chunk[name][:] = value
        if joined is not None:
            chunk["dep_len"], chunk["dep"] = joined.lengths.astype(np.int32), joined.numbers.astype(np.int32)
        elif deps:
            chunk["dep_len"][:], chunk["dep"] = len(deps), np.stack(deps, axis=1).astype(np.int32).reshape(-1)
        if takes is not None:
            chunk["take_len"][:], chunk["take_pool"], chunk["take_units"] = 1, takes.astype(np.int16), np.ones(n, np.int64)
        if releases is not None:
            chunk["release_len"][:], chunk["release"] = 1, releases.astype(np.int32)
        self._chunks.append(chunk)
        self._count += n
        return np.arange(first, first + n)
