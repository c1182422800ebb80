"""The summary of a run: what `run --json` prints, by the same definitions on both clocks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from sim.columns import Columns, columns_of
from sim.engines.run import DONE, Inside, Run
from sim.events import Request
from sim.machines.schema import Machine
from sim.plan import PHASES
from sim.tasks import PS_PER_S

if TYPE_CHECKING:
    from sim.job import Job

Clock = Literal["simulated", "emulated", "measured"]
Source = Literal["trace", "model", "synthetic"]
"""Of the routing."""


@dataclass(frozen=True, slots=True)
class About:
    """What was run. `peak_bytes`: by memory; `lower_bound_s`: see `sim.bounds`."""

    clock: Clock
    routing: Source
    model: str
    machine: Machine
    workload: str
    scheduler: str
    policy: Mapping[str, Any]
    peak_bytes: Mapping[str, int]
    lower_bound_s: float

    @classmethod
    def of(cls, job: Job, clock: Clock, routing: Source, peak_bytes: Mapping[str, int], lower_bound_s: float) -> About:
        policy = job.policy.model_dump(mode="json", exclude_none=True)
        return cls(
            clock, routing, job.model.name, job.machine, job.workload.name, job.scheduler, policy, peak_bytes, lower_bound_s
        )  # fmt: skip


def summarize(about: About, run: Run, requests: Sequence[Request], lengths: Sequence[int], wall_s: float) -> dict[str, Any]:
    """The object of `run --json`.

    lengths: tokens that each request really generates; samples beyond them are no tokens.
    ttft_s: mean over requests of the time from arrival to the first token. tpot_s: mean over
    requests with two tokens or more of the time between their first and last, over the tokens after
    the first. prefill_s: time in which at least one prefill task ran; decode_s: the rest of the
    makespan. A lane's busy_s: time in which at least one of its tasks ran.
    """
    columns = columns_of(run.sources)
    tokens = _Tokens(columns, run, requests, lengths)
    makespan_s = run.makespan_ps / PS_PER_S
    prefill_s = union_ps(*_times(run, columns.phase == PHASES.index("prefill"))) / PS_PER_S
    return {
        "clock": about.clock,
        "sources": sources(about.machine),
        "routing": about.routing,
        "ttft_s": tokens.ttft_s(),
        "tpot_s": tokens.tpot_s(),
        "model": about.model,
        "machine": about.machine.name,
        "workload": about.workload,
        "scheduler": about.scheduler,
        "policy": dict(about.policy),
        "makespan_s": makespan_s,
        "prefill_s": prefill_s,
        "decode_s": makespan_s - prefill_s,
        "generated_tokens": tokens.total,
        "tokens_per_s": tokens.total / makespan_s if makespan_s else 0.0,
        "tasks": len(run),
        "lanes": lanes(run),
        "peak_bytes": dict(about.peak_bytes),
        "lower_bound_s": about.lower_bound_s,
        "wall_s": wall_s,
    }


def sources(machine: Machine) -> dict[str, str]:
    """Where each capacity comes from: resources by name, memories as `memory.NAME`."""
    memories = {f"memory.{name}": m.source for name, m in machine.memories.items()}
    return {**{name: r.source for name, r in machine.resources.items()}, **memories}


def lanes(run: Run) -> dict[str, dict[str, float]]:
    """Busy seconds of each lane of the machine, what ran inside tasks included, and their share of the makespan."""
    found = {}
    for i, name in enumerate(run.lanes):
        parts = [_times(run, run.lane == i), *(_times(one, one.body.on(name)) for one in run.inside if name in one.body.lanes)]
        busy = union_ps(*(np.concatenate(times) for times in zip(*parts, strict=True)))
        found[name] = {"busy_s": busy / PS_PER_S, "utilization": busy / run.makespan_ps if run.makespan_ps else 0.0}
    return found


def union_ps(start_ps: NDArray[np.int64], end_ps: NDArray[np.int64]) -> int:
    """Length of the union of intervals."""
    order = np.argsort(start_ps, kind="stable")
    start, end = start_ps[order], end_ps[order]
    covered = np.maximum.accumulate(np.concatenate([start[:1], end[:-1]]))
    return int(np.maximum(0, end - np.maximum(start, covered)).sum())


def _times(run: Run | Inside, chosen: NDArray[np.bool_]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    return run.start_ps[chosen], run.end_ps[chosen]


class _Tokens:
    """When each request got its tokens: count, first and last [requests], in order of the requests."""

    def __init__(self, columns: Columns, run: Run, requests: Sequence[Request], lengths: Sequence[int]) -> None:
        at = np.flatnonzero(columns.where_op("sample") & (run.status == DONE) & (columns.group >= 0))
        rows = [columns.groups[g] for g in columns.group[at].tolist()]
        times = np.repeat(run.end_ps[at], [len(r) for r in rows])
        ids = np.fromiter((i for r in rows for i in r), np.int64, len(times))
        count = len(lengths)
        order = np.lexsort((times, ids))
        ids, times = ids[order], times[order]
        drawn = np.bincount(ids, minlength=count)
        begin = np.cumsum(drawn) - drawn
        self.count = np.minimum(drawn, np.asarray(lengths, np.int64))
        self._served = self.count > 0
        self._first = times[begin[self._served]]
        self._last = times[begin[self._served] + self.count[self._served] - 1]
        self._arrival = np.array([r.arrival_ps for r in requests], np.int64)[self._served]

    @property
    def total(self) -> int:
        return int(self.count.sum())

    def ttft_s(self) -> float:
        return float((self._first - self._arrival).mean()) / PS_PER_S if len(self._first) else 0.0

    def tpot_s(self) -> float:
        later = self.count[self._served] - 1
        several = later > 0
        if not several.any():
            return 0.0
        return float(((self._last - self._first)[several] / later[several]).mean()) / PS_PER_S
