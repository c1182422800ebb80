"""What of two timelines goes into the page: the windows one can look at, and the bars in them.

A short run is shown whole. Of a long one the page carries the prefill, the first two decode steps
and one from the middle; each clock's window begins where its own step begins, so that the two stay
comparable when they have drifted apart.
"""

from __future__ import annotations

import base64
import heapq
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.report.critical import CriticalPath
from sim.report.figures import lane_name, step_window
from traces.timeline import Timeline

LIMIT = 40_000
"""Bars of one clock that the page carries: it stays below a few megabytes and draws fluently."""

FEW = 600
"""Bars that one sees at a glance."""

BESIDE = 16
"""Rows that a page gives to what runs inside tasks: threads have room, the hundreds of blocks of a GPU have none."""


@dataclass(frozen=True, slots=True)
class Window:
    """A stretch of the run: (begin, end) in picoseconds on each clock, in the order of the clocks."""

    label: str
    spans: tuple[tuple[int, int], ...]


def windows(timelines: list[Timeline]) -> list[Window]:
    """The stretches that the page offers, in the order of the run; the whole run first, where it is carried."""
    steps = sorted(set.intersection(*(set(np.unique(t.step[t.step > 0]).tolist()) for t in timelines)))
    shown = [0] + sorted({s for s in (*steps[:2], *steps[len(steps) // 2 : len(steps) // 2 + 1])})
    found = []
    for step in shown:
        spans = [step_window(t, step) for t in timelines]
        if all(spans):
            found.append(Window("Prefill" if step == 0 else f"Decode step {step}", tuple(s for s in spans if s is not None)))
    if all(np.count_nonzero(_bars(t)) <= LIMIT for t in timelines) or not found:
        return [Window("Whole run", tuple((0, max(1, t.makespan_ps)) for t in timelines)), *found]
    return found


def opening(shown: list[Window], timelines: list[Timeline]) -> int:
    """Which window the page opens with: a short run whole, a longer one at its first decode step."""
    decode = [i for i, w in enumerate(shown) if w.label.startswith("Decode")]
    return decode[0] if decode and max(np.count_nonzero(_bars(t)) for t in timelines) > FEW else 0


def chosen(timeline: Timeline, spans: list[tuple[int, int]]) -> NDArray[np.int64]:
    """Rows of tasks on a lane that run within one of the spans, at most `LIMIT`.

    A span that has more than its share of the limit is cut to its first tasks; what the short ones
    leave over goes to the long ones.
    """
    on_lane = _bars(timeline)
    found = [np.flatnonzero(on_lane & (timeline.start_ps < end) & (timeline.end_ps > begin)) for begin, end in spans]
    kept = np.empty(0, np.int64)
    for left, rows in zip(range(len(found), 0, -1), sorted(found, key=len), strict=True):
        first = rows[np.argsort(timeline.start_ps[rows], kind="stable")]
        kept = np.union1d(kept, first[: (LIMIT - len(kept)) // left])
    return kept


def _bars(timeline: Timeline) -> NDArray[np.bool_]:
    """[n], whether a task has a bar: joins and timers have none, nor what is inside tasks where much of it runs at once."""
    mask: NDArray[np.bool_] = (timeline.lane != timeline.code("lane", "")) & timeline.ran
    return mask & ~timeline.inside if _most_at_once(timeline, mask & timeline.inside) > BESIDE else mask


def _most_at_once(timeline: Timeline, mask: NDArray[np.bool_]) -> int:
    start, end = np.sort(timeline.start_ps[mask]), np.sort(timeline.end_ps[mask])
    return int((np.arange(1, len(start) + 1) - np.searchsorted(end, start, "right")).max(initial=0))


def pack(timeline: Timeline, rows: NDArray[np.int64], path: CriticalPath, name: str) -> dict[str, Any]:
    """Bars as base64 columns, times in microseconds."""
    part = timeline.take(rows)
    row, lanes = _rows(part)
    return {
        "name": name, "count": len(rows), "total": int(_bars(timeline).sum()), "lanes": lanes, "ops": list(part.ops),
        "start": packed(part.start_ps / 1e6, "<f8"), "duration": packed(part.duration_ps / 1e6, "<f4"),
        "row": packed(row, "<u2"), "op": packed(part.op, "<u2"), "task": packed(part.task_id, "<f8"),
        "step": packed(part.step, "<i4"), "layer": packed(part.layer, "<i2"), "microbatch": packed(part.microbatch, "<i2"),
        "critical": packed(np.isin(rows, path.rows), "<u1"), "done": packed(part.status == part.code("status", "done"), "<u1"),
    }  # fmt: skip


def packed(values: NDArray[Any], dtype: str) -> str:
    """A column as text that scripts read."""
    return base64.b64encode(np.ascontiguousarray(values, np.dtype(dtype)).tobytes()).decode()


def _rows(part: Timeline) -> tuple[NDArray[np.int64], list[dict[str, Any]]]:
    """The row of each bar, and the lanes with how many rows each needs: as many as it ran at once."""
    row = np.zeros(len(part), np.int64)
    lanes: list[dict[str, Any]] = []
    ranks = int(part.rank.max(initial=0)) + 1
    for rank in range(ranks):
        for code, lane in enumerate(part.lanes):
            mine = np.flatnonzero((part.lane == code) & (part.rank == rank))
            if not len(mine):
                continue
            mine = mine[np.argsort(part.start_ps[mine], kind="stable")]
            place = _stack(part.start_ps[mine].tolist(), part.end_ps[mine].tolist())
            first = sum(existing["rows"] for existing in lanes)
            row[mine] = first + np.array(place)
            lanes.append({"label": lane_name(lane, rank, ranks), "rows": max(place) + 1})
    return row, lanes


def _stack(start: list[int], end: list[int]) -> list[int]:
    """The lowest free row of each bar, by start: bars that overlap get rows of their own."""
    free: list[int] = []
    busy: list[tuple[int, int]] = []
    place = []
    rows = 0
    for a, b in zip(start, end, strict=True):
        while busy and busy[0][0] <= a:
            heapq.heappush(free, heapq.heappop(busy)[1])
        if free:
            r = heapq.heappop(free)
        else:
            r, rows = rows, rows + 1
        place.append(r)
        heapq.heappush(busy, (b, r))
    return place
