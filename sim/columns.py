"""Columns: everything that was handed out in a run as one structure of arrays, beside the run's times."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.plan import Plan, plan_of
from sim.tasks import Task, Work


@dataclass(frozen=True, eq=False, slots=True)
class Columns:
    """n tasks in order of their numbers, hence row by row those of the `Run`.

    Attributes
    ----------
    works, groups: tables that work [n] and group [n] (-1: none) index.
    number, phase (see `sim.plan.PHASES`), step, layer, microbatch, rank, attempt [n]: as in Task.
    dep_ptr [n + 1], dep: CSR of the numbers of the tasks waited for.
    """

    works: tuple[Work, ...]
    groups: tuple[tuple[int, ...], ...]
    number: NDArray[np.int64]
    work: NDArray[np.int64]
    group: NDArray[np.int64]
    phase: NDArray[np.int8]
    step: NDArray[np.int32]
    layer: NDArray[np.int16]
    microbatch: NDArray[np.int16]
    rank: NDArray[np.int16]
    attempt: NDArray[np.int16]
    dep_ptr: NDArray[np.int64]
    dep: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.number)

    def where_op(self, op: str) -> NDArray[np.bool_]:
        """[n], the tasks of one op."""
        return np.array([w.op == op for w in self.works], np.bool_)[self.work]


def plans_of(sources: Sequence[Plan | Task]) -> Iterator[Plan]:
    """The Plans among `sources` as they are, Tasks between them frozen; empty Plans are left out."""
    loose: list[Task] = []
    for source in sources:
        if loose and (isinstance(source, Plan) or source.number != loose[-1].number + 1):
            yield plan_of(loose)
            loose = []
        if isinstance(source, Task):
            loose.append(source)
        elif len(source):
            yield source
    if loose:
        yield plan_of(loose)


def columns_of(sources: Sequence[Plan | Task]) -> Columns:
    """Join what was handed out. Numbers ascend in order of submission, so nothing is sorted."""
    plans = list(plans_of(sources))
    works, work = _merged([p.works for p in plans], [p.work for p in plans])
    groups, group = _merged([p.groups for p in plans], [p.group for p in plans])
    waits = [np.diff(p.dep_ptr) for p in plans]
    return Columns(
        works=works,
        groups=groups,
        number=_joined([np.arange(p.first, p.first + len(p)) for p in plans], np.int64),
        work=work,
        group=group,
        **{c: _joined([getattr(p, c) for p in plans], dtype) for c, dtype in _LABELS.items()},
        dep_ptr=np.concatenate([np.zeros(1, np.int64), np.cumsum(_joined(waits, np.int64))]),
        dep=_joined([p.dep for p in plans], np.int64),
    )


_LABELS: dict[str, Any] = {
    "phase": np.int8, "step": np.int32, "layer": np.int16, "microbatch": np.int16, "rank": np.int16, "attempt": np.int16,
}  # fmt: skip


def _merged(tables: Sequence[tuple[Any, ...]], columns: Sequence[NDArray[Any]]) -> tuple[tuple[Any, ...], NDArray[np.int64]]:
    """One table of several, and the columns that index it; -1 stays -1."""
    index: dict[Any, int] = {}
    moved = []
    for table, column in zip(tables, columns, strict=True):
        place = np.array([*(index.setdefault(v, len(index)) for v in table), -1], np.int64)
        moved.append(place[column])
    return tuple(index), _joined(moved, np.int64)


def _joined(parts: Sequence[NDArray[Any]], dtype: Any) -> NDArray[Any]:
    return np.concatenate(parts).astype(dtype, copy=False) if parts else np.empty(0, dtype)
