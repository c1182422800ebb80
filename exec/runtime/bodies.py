"""What an op stamped inside: from the clock of its kernel to times of the body's tasks."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sim.engines.run import DONE, SKIPPED, Inside
from sim.plan import Plan

PS_PER_NS = 1000


class Stamps(NamedTuple):
    """Of a body's tasks on lanes, in order of their numbers [m]: nanoseconds of `time.perf_counter_ns`, and
    which turned out to be surplus."""

    start_ns: NDArray[np.int64]
    end_ns: NDArray[np.int64]
    surplus: NDArray[np.bool_]


def inside_of(task: int, body: Plan, stamps: Stamps, origin_ns: int) -> Inside:
    """Times since `origin_ns`. A join closes when the last that it waits for ends; one that waits for nothing, at
    the first start."""
    on_lane = np.flatnonzero(body.lane >= 0)
    start, end = np.zeros(len(body), np.int64), np.zeros(len(body), np.int64)
    status = np.full(len(body), DONE, np.int8)
    start[on_lane], end[on_lane], status[on_lane[stamps.surplus]] = stamps.start_ns, stamps.end_ns, SKIPPED
    first = stamps.start_ns.min(initial=np.iinfo(np.int64).max)
    for i in np.flatnonzero(body.lane < 0).tolist():
        start[i] = end[i] = end[body.dep[body.dep_ptr[i] : body.dep_ptr[i + 1]] - body.first].max(initial=first)
    return Inside(task, body, (start - origin_ns) * PS_PER_NS, (end - origin_ns) * PS_PER_NS, status)
