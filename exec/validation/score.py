"""Errors of the simulator over a set of cases, overall and by what binds them."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from itertools import combinations
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

LINK_LANES = ("h2d", "d2h", "pin")
BUSY = 0.6
"""A lane over this utilization counts as busy."""
NOTICED = 0.05
"""A lane under this utilization has no busy time worth an error."""
APART = 0.05
"""Schedulers that measure closer than this are not ranked."""
STEADY = 0.025
"""On ranks no more rounds are needed once each median is known to this standard error, relative: two schedulers 8 % apart then
change places only by over two standard errors of their difference."""


def stratum(utilization: dict[str, float]) -> str:
    """What binds a run: "two-lanes" where two are over 60 % busy, else the kind of the busiest lane."""
    if sum(u > BUSY for u in utilization.values()) >= 2:
        return "two-lanes"
    busiest = max(utilization, key=lambda lane: utilization[lane])
    return "link" if busiest in LINK_LANES else "compute"


def relative(simulated: float, measured: float) -> float:
    return simulated / measured - 1.0


def busy_errors(simulated: dict[str, float], measured: dict[str, float], makespan_s: float) -> dict[str, float]:
    """Error of each lane's busy time, for lanes that are busy at all."""
    return {lane: relative(simulated.get(lane, 0.0), busy) for lane, busy in measured.items() if busy > NOTICED * makespan_s}


def standard_error(samples: NDArray[np.float64]) -> float:
    """Of the median of samples, relative to it, as if they were normal; infinite for fewer than four, which hardly tell their spread."""
    if len(samples) < 4:
        return math.inf
    return float(math.sqrt(math.pi / 2 / len(samples)) * samples.std(ddof=1) / np.median(samples))


class Ranked(Protocol):
    """A case of one scheduler among several of the same configuration."""

    @property
    def scheduler(self) -> str: ...
    def without_scheduler(self) -> tuple[Any, ...]: ...


def rank_agreement(cases: Sequence[tuple[Ranked, float, float]], apart: float = APART) -> dict[str, Any]:
    """Over pairs of schedulers in the same configuration that measure over `apart` apart: how often the
    simulator puts the same one first. Each case is (case, simulated_s, measured_s)."""
    groups = defaultdict(list)
    for case, simulated, measured in cases:
        groups[case.without_scheduler()].append((case.scheduler, simulated, measured))
    pairs, wrong = 0, []
    for rows in groups.values():
        for (a, sim_a, real_a), (b, sim_b, real_b) in combinations(rows, 2):
            if abs(real_a / real_b - 1.0) <= apart:
                continue
            pairs += 1
            if (sim_a < sim_b) != (real_a < real_b):
                wrong.append(f"{a} against {b}")
    return {"pairs": pairs, "agreed": pairs - len(wrong), "share": (pairs - len(wrong)) / pairs if pairs else None, "wrong": wrong}


def summarize(cases: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Median and 90th percentile of absolute errors, overall and by stratum. `cases` are rows of `validate --json`."""
    strata = sorted({c["stratum"] for c in cases})
    groups = {"overall": list(cases), **{s: [c for c in cases if c["stratum"] == s] for s in strata}}
    return {
        "median_abs_error": {k: _median([abs(c["error"]) for c in v]) for k, v in groups.items()},
        "p90_abs_error": {k: float(np.percentile([abs(c["error"]) for c in v], 90)) for k, v in groups.items()},
        "median_lane_busy_error": {k: _median([abs(e) for c in v for e in c["lane_busy_error"].values()]) for k, v in groups.items()},
        "median_naive_error": {k: _median([abs(c["naive_error"]) for c in v]) for k, v in groups.items()},
        "median_repeat_spread": {k: _median([c["repeat_spread"] for c in v]) for k, v in groups.items()},
        "count": {k: len(v) for k, v in groups.items()},
    }


def _median(values: Sequence[float]) -> float | None:
    return float(np.median(values)) if len(values) else None
