"""From a run to its timeline: what was handed out (Plans and Tasks) joined with the times that came of it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sim.engines.run import SKIPPED, STATUSES, Run
from sim.models.spec import ModelSpec
from sim.ops import COMPUTE, components
from sim.plan import PHASES, Plan, plan_of
from sim.report.critical import Dependencies
from sim.tasks import Task, Work
from traces.files import Provenance
from traces.timeline import INSIDE, Timeline, concatenate

_LABELS = ("attempt", "rank", "step", "layer", "microbatch")
_TYPES: dict[str, Any] = {"attempt": np.int16, "rank": np.int16, "step": np.int32, "layer": np.int16, "microbatch": np.int16}


class _Codes(dict[str, int]):
    """Strings in order of first use."""

    def __missing__(self, value: str) -> int:
        code = self[value] = len(self)
        return code


def timeline_of(run: Run, provenance: Provenance, model: ModelSpec | None = None) -> Timeline:
    """The timeline of a run, rows in order of task numbers, then what ran inside tasks.

    Rows inside have the labels of their task, but for `microbatch`, and the numbers that `traces.timeline.INSIDE`
    tells. With a model, `bytes` and `flops` of a compute task are the sums of its kernels' work formulas
    (expected routing); copies always count the bytes they move. `provenance.clock` names the clock.
    """
    n = len(run)
    columns: dict[str, Any] = {name: np.empty(n, _TYPES[name]) for name in _LABELS}
    columns |= {"op": np.empty(n, np.int32), "phase": np.empty(n, np.int32), "bytes": np.zeros(n, np.int64), "flops": np.zeros(n, np.int64)}
    ops = _Codes()

    @cache
    def totals(work: Work) -> tuple[int, int, int]:
        return ops[work.op], *_totals(work, model)

    for plan in (s for s in run.sources if isinstance(s, Plan)):
        _fill_plan(columns, plan, int(np.searchsorted(run.number, plan.first)), [totals(w) for w in plan.works])
    tasks = [s for s in run.sources if isinstance(s, Task)]
    if tasks:
        _fill_tasks(columns, tasks, np.searchsorted(run.number, [t.number for t in tasks]), [totals(t.work) for t in tasks])
    lane = np.where(run.lane >= 0, run.lane, len(run.lanes)).astype(np.int32)
    whole = Timeline(
        task_id=run.number, lane=lane, start_ps=run.start_ps, end_ps=run.end_ps, status=run.status.astype(np.int32), ops=tuple(ops),
        lanes=(*run.lanes, ""), provenance=provenance, phases=PHASES, statuses=STATUSES, **columns,
    )  # fmt: skip
    return concatenate([whole, _inside(run, whole, model)]) if run.inside else whole


def _inside(run: Run, whole: Timeline, model: ModelSpec | None) -> Timeline:
    """The rows of all bodies, in order of their tasks."""
    ops, lanes = _Codes(), _Codes()

    @cache
    def columns(body: Plan) -> dict[str, NDArray[Any]]:
        table = np.array([(ops[w.op], *_totals(w, model)) for w in body.works], np.int64).reshape(-1, 3)[body.work]
        lane = np.array([*(lanes[name] for name in body.lanes), lanes[""]], np.int32)[body.lane]
        return {"op": table[:, 0].astype(np.int32), "bytes": table[:, 1], "flops": table[:, 2], "lane": lane, "microbatch": body.microbatch}

    def own(name: str) -> NDArray[Any]:
        return np.concatenate([getattr(i, name) for i in run.inside])

    outer = np.repeat(np.searchsorted(run.number, [i.task for i in run.inside]), [len(i.body) for i in run.inside])
    found: dict[str, Any] = {name: np.concatenate([columns(i.body)[name] for i in run.inside]) for name in columns(run.inside[0].body)}
    found |= {name: getattr(whole, name)[outer] for name in ("attempt", "rank", "step", "layer", "phase")}
    for name in ("bytes", "flops"):
        found[name] *= own("status") != SKIPPED
    number = np.concatenate([INSIDE * (i.task + 1) + np.arange(len(i.body)) for i in run.inside])
    return Timeline(
        task_id=number, start_ps=own("start_ps"), end_ps=own("end_ps"), status=own("status").astype(np.int32), ops=tuple(ops),
        lanes=tuple(lanes), provenance=whole.provenance, **found,
    )  # fmt: skip


def _totals(work: Work, model: ModelSpec | None) -> tuple[int, int]:
    """Bytes and FLOPs of one work row."""
    if model is None or work.op not in COMPUTE:
        return work.bytes, 0
    parts = components(model, work)
    return round(sum(p.cost.bytes for p in parts)), round(sum(p.cost.flops for p in parts))


def _fill_plan(columns: dict[str, Any], plan: Plan, at: int, totals: Sequence[tuple[int, int, int]]) -> None:
    here = slice(at, at + len(plan))
    for name in _LABELS:
        columns[name][here] = getattr(plan, name)
    columns["phase"][here] = plan.phase
    table = np.array(totals, np.int64).reshape(-1, 3)
    for k, name in enumerate(("op", "bytes", "flops")):
        columns[name][here] = table[plan.work, k]


def _fill_tasks(columns: dict[str, Any], tasks: Sequence[Task], at: NDArray[np.intp], totals: Sequence[tuple[int, int, int]]) -> None:
    for name in _LABELS:
        columns[name][at] = [getattr(t, name) for t in tasks]
    columns["phase"][at] = [PHASES.index(t.phase) for t in tasks]
    table = np.array(totals, np.int64)
    for k, name in enumerate(("op", "bytes", "flops")):
        columns[name][at] = table[:, k]


def dependencies_of(run: Run) -> Dependencies:
    """Who waited for whom, and who holds and gives back what, of everything that the run was given: for the critical path."""
    plans = _plans(run)
    numbers = _joined(np.arange(p.first, p.first + len(p)) for p in plans)
    ptr = np.concatenate([[0], np.cumsum(_joined(np.diff(p.dep_ptr) for p in plans))])
    holds = _holds(plans)
    dep = _joined(p.dep for p in plans)
    return Dependencies(numbers, ptr, dep, holds.task, holds.pool, holds.releaser, holds.pool[holds.released])


class _Holds(NamedTuple):
    """h holds: task [h] takes of pool [h]. releaser [r] gives back the hold number released [r]."""

    task: NDArray[np.int64]
    pool: NDArray[np.int64]
    releaser: NDArray[np.int64]
    released: NDArray[np.int64]


def _holds(plans: Sequence[Plan]) -> _Holds:
    pools = _Codes()
    pool = _joined(np.array([pools[name] for name in p.pools], np.int64)[p.take_pool] for p in plans)
    task = _joined(_owners(p, p.take_ptr) for p in plans)
    releaser, holder = _joined(_owners(p, p.release_ptr) for p in plans), _joined(p.release for p in plans)
    # Each release gives back all that its holder took: join the two lists on the holder. Tasks ascend.
    first, last = (np.searchsorted(task, holder, side) for side in ("left", "right"))
    taken = last - first
    before = np.cumsum(taken) - taken
    released = np.repeat(first - before, taken) + np.arange(int(taken.sum()))
    return _Holds(task, pool, np.repeat(releaser, taken), released)


def _plans(run: Run) -> list[Plan]:
    """All that the run was given as Plans, in order of task numbers."""
    return [s if isinstance(s, Plan) else plan_of([s]) for s in run.sources]


def _owners(plan: Plan, ptr: NDArray[np.int32]) -> NDArray[np.int64]:
    """Task number of each entry of a ragged column."""
    return np.repeat(np.arange(plan.first, plan.first + len(plan)), np.diff(ptr))


def _joined(parts: Iterable[NDArray[Any]]) -> NDArray[np.int64]:
    return np.concatenate([np.empty(0, np.int64), *parts]).astype(np.int64)
