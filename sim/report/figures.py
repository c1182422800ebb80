"""Figures of a timeline and of a pair of them: lanes, steps, ops, and how far the two are apart."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from traces.timeline import Timeline

PS = 1e-12


@dataclass(frozen=True, slots=True)
class LaneUse:
    """busy_s: time in which at least one task of the lane ran. utilization: its share of the makespan."""

    lane: str
    tasks: int
    busy_s: float
    utilization: float


@dataclass(frozen=True, slots=True)
class OpError:
    """One op in one phase on both clocks; `error` = simulated / measured total - 1, None where one lacks it."""

    op: str
    phase: str
    simulated_tasks: int
    measured_tasks: int
    simulated_s: float
    measured_s: float
    simulated_median_s: float
    measured_median_s: float
    error: float | None


def lane_name(lane: str, rank: int, ranks: int) -> str:
    """A lane as people read it: with its rank where there are several."""
    return lane if ranks == 1 else f"{lane}, rank {rank}"


def lane_use(timeline: Timeline) -> list[LaneUse]:
    """Each (rank, lane) in the order of the timeline's own table."""
    makespan_s = timeline.makespan_ps * PS
    ranks = int(timeline.rank.max(initial=0)) + 1
    found = []
    for rank in range(ranks):
        for code, lane in enumerate(timeline.lanes):
            mine = (timeline.lane == code) & (timeline.rank == rank) & timeline.ran
            if lane and mine.any():
                busy_s = union_ps(timeline.start_ps[mine], timeline.end_ps[mine]) * PS
                use = busy_s / makespan_s if makespan_s else 0.0
                found.append(LaneUse(lane_name(lane, rank, ranks), int(mine.sum()), busy_s, use))
    return found


def union_ps(start: NDArray[np.int64], end: NDArray[np.int64]) -> int:
    """Length of the union of intervals."""
    order = np.argsort(start, kind="stable")
    start, end = start[order], end[order]
    covered = np.maximum.accumulate(np.concatenate([[0], end[:-1]]))
    return int(np.maximum(0, end - np.maximum(start, covered)).sum())


def step_ends(timeline: Timeline) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Steps (0: the prefill) and their ends in picoseconds.

    A step ends when its last token is sampled, or, where nothing is sampled, with its last task.
    """
    done = timeline.ran & (timeline.step >= 0)
    sampled = done & (timeline.op == timeline.code("op", "sample"))
    chosen = sampled if sampled.any() else done
    steps = timeline.step[chosen]
    if not len(steps):
        return np.empty(0, np.int64), np.empty(0, np.int64)
    ends = np.full(int(steps.max()) + 1, -1, np.int64)
    np.maximum.at(ends, steps, timeline.end_ps[chosen])
    known = np.flatnonzero(ends >= 0)
    return known, ends[known]


def step_times(timeline: Timeline) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Decode steps and their seconds: from the end of the step before (of the prefill for the first) to their own."""
    steps, ends = step_ends(timeline)
    seconds = np.diff(ends, prepend=0) * PS
    return steps[steps > 0], seconds[steps > 0]


def step_window(timeline: Timeline, step: int) -> tuple[int, int] | None:
    """From the end of the step before to its own, in picoseconds; None where it took no time.

    Copies that run ahead for a step lie in the window of the one before: that is where they ran.
    """
    steps, ends = step_ends(timeline)
    at = int(np.searchsorted(steps, step))
    if at >= len(steps) or steps[at] != step:
        return None
    begin = int(ends[at - 1]) if at else 0
    return (begin, int(ends[at])) if ends[at] > begin else None


def _by_op(timeline: Timeline) -> dict[tuple[str, str], NDArray[np.float64]]:
    """Durations in seconds of what ended well, by (op, phase)."""
    done = (timeline.status == timeline.code("status", "done")) & (timeline.lane != timeline.code("lane", ""))
    key = timeline.op.astype(np.int64) * len(timeline.phases) + timeline.phase
    out = {}
    for k in np.unique(key[done]).tolist():
        name = timeline.ops[k // len(timeline.phases)], timeline.phases[k % len(timeline.phases)]
        out[name] = timeline.duration_ps[done & (key == k)] * PS
    return out


def op_errors(simulated: Timeline, measured: Timeline) -> list[OpError]:
    """Every op of either timeline, the one with most measured time first."""
    ours, theirs = _by_op(simulated), _by_op(measured)
    none = np.empty(0)
    rows = []
    for op, phase in {**ours, **theirs}:
        a, b = ours.get((op, phase), none), theirs.get((op, phase), none)
        error = float(a.sum() / b.sum() - 1) if len(a) and b.sum() > 0 else None
        rows.append(OpError(op, phase, len(a), len(b), float(a.sum()), float(b.sum()), _median(a), _median(b), error))
    return sorted(rows, key=lambda r: -max(r.measured_s, r.simulated_s))


def _median(values: NDArray[np.float64]) -> float:
    return float(np.median(values)) if len(values) else 0.0


def seconds_text(seconds: float) -> str:
    """Three significant digits with the unit that fits."""
    size = abs(seconds)
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6), ("ns", 1e-9)):
        if size >= scale:
            return f"{seconds / scale:.3g} {unit}" if size / scale < 1000 else f"{seconds / scale:,.0f} {unit}"
    return "0 s" if seconds == 0 else f"{seconds / 1e-12:.3g} ps"
