"""What a timeline's lanes did: busy time, ops, status."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from traces.timeline import Timeline


def busy_ps(starts: NDArray[np.int64], ends: NDArray[np.int64]) -> int:
    """Length of the union of the intervals: time in which at least one runs."""
    if not len(starts):
        return 0
    order = np.argsort(starts, kind="stable")
    s, reached = starts[order], np.maximum.accumulate(ends[order])
    gaps = np.maximum(s[1:] - reached[:-1], 0).sum()
    return int(reached[-1] - s[0] - gaps)


def lanes(t: Timeline) -> list[dict[str, Any]]:
    """Tasks, busy seconds and busy share of the makespan of each (rank, lane)."""
    rows = []
    ran = t.start_ps >= 0
    for rank in np.unique(t.rank).tolist():
        for code, name in enumerate(t.lanes):
            mine = ran & (t.rank == rank) & (t.lane == code)
            if name and mine.any():
                busy = busy_ps(t.start_ps[mine], t.end_ps[mine])
                rows.append({
                    "rank": rank, "lane": name, "tasks": int(mine.sum()), "busy_s": busy / 1e12,
                    "busy_share": busy / t.makespan_ps if t.makespan_ps else 0.0,
                })  # fmt: skip
    return rows


def ops(t: Timeline) -> list[dict[str, Any]]:
    """Tasks, seconds, bytes and FLOPs of each op, longest first; joins and timers left out."""
    rows = []
    ran = (t.start_ps >= 0) & (t.lane != t.code("lane", ""))
    for code, name in enumerate(t.ops):
        mine = ran & (t.op == code)
        if mine.any():
            seconds = float((t.end_ps[mine] - t.start_ps[mine]).sum() / 1e12)
            moved, flops = int(t.bytes[mine].sum()), int(t.flops[mine].sum())
            rows.append({"op": name, "tasks": int(mine.sum()), "seconds": seconds, "bytes": moved, "flops": flops})
    return sorted(rows, key=lambda r: -float(r["seconds"]))


def activity(t: Timeline, bins: int = 200) -> tuple[list[str], NDArray[np.float64]]:
    """Busy share of each lane in so many equal parts of the makespan: (names, [lanes, bins])."""
    edges = np.linspace(0, max(1, t.makespan_ps), bins + 1)
    names, shares = [], []
    ran = t.start_ps >= 0
    for rank in np.unique(t.rank).tolist():
        for code, name in enumerate(t.lanes):
            mine = ran & (t.rank == rank) & (t.lane == code)
            if name and mine.any():
                names.append(name if t.rank.max() == 0 else f"{rank}:{name}")
                shares.append(np.diff(_running(t.start_ps[mine], t.end_ps[mine], edges)) / np.diff(edges))
    return names, np.clip(np.array(shares), 0, 1) if shares else np.zeros((0, bins))


def _running(starts: NDArray[np.int64], ends: NDArray[np.int64], at: NDArray[np.float64]) -> NDArray[np.float64]:
    """Time in which at least one interval ran, up to each moment [moments]."""
    order = np.argsort(starts, kind="stable")
    s, e = starts[order], ends[order]
    reached = np.maximum.accumulate(e)
    begin = np.maximum(s, np.concatenate([[0], reached[:-1]]))
    points = np.stack([begin, np.maximum(begin, e)], axis=1).ravel().astype(np.float64)
    done = np.repeat(np.cumsum(np.concatenate([[0], np.maximum(e - begin, 0)])), 2)[1:-1].astype(np.float64)
    return np.interp(at, points, done)
