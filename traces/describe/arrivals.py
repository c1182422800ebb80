"""When requests come and how long they are."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

QUANTILES = (0.5, 0.9, 0.99)
WINDOWS_S = (1, 10, 60)


def distribution(values: NDArray[np.integer]) -> dict[str, float]:
    """Mean, standard deviation, smallest, largest and quantiles."""
    if not len(values):
        return {}
    found = {"mean": float(values.mean()), "std": float(values.std()), "min": float(values.min()), "max": float(values.max())}
    return found | {f"p{round(q * 100)}": float(np.quantile(values, q)) for q in QUANTILES}


def burstiness(arrival_ns: NDArray[np.int64]) -> dict[str, Any]:
    """Rate, and how far arrivals are from a Poisson process, for which both figures below are 1.

    gap_cv: coefficient of variation of the gaps between arrivals. dispersion: variance over mean of
    the arrivals in windows of 1, 10 and 60 s (index of dispersion for counts, Cox and Lewis 1966).
    peak_over_mean: busiest minute over the mean minute. Windows that the trace does not fill 10
    times are left out.
    """
    span_s = float((arrival_ns[-1] - arrival_ns[0]) / 1e9) if len(arrival_ns) else 0.0
    if len(arrival_ns) < 3 or span_s == 0:
        return {"span_s": span_s}
    gaps = np.diff(arrival_ns) / 1e9
    found: dict[str, Any] = {"span_s": span_s, "rate_per_s": (len(arrival_ns) - 1) / span_s, "gap_cv": float(gaps.std() / gaps.mean())}
    since_s = (arrival_ns - arrival_ns[0]) / 1e9
    found["dispersion"] = {}
    for w in WINDOWS_S:
        full = int(span_s // w)
        if full >= 10:
            counts = np.bincount((since_s[since_s < full * w] // w).astype(np.int64), minlength=full)
            found["dispersion"][f"{w}s"] = float(counts.var() / counts.mean())
            if w == WINDOWS_S[-1]:
                found["peak_over_mean"] = float(counts.max() / counts.mean())
    return found


def shared_prefixes(hashes: tuple[tuple[int, ...] | None, ...]) -> dict[str, float]:
    """Share of prompt blocks that an earlier request had already: what a boundless prefix cache would save."""
    seen: set[int] = set()
    blocks = known = 0
    for request in hashes:
        for block in request or ():
            blocks += 1
            known += block in seen
            seen.add(block)
    return {"blocks": blocks, "distinct": len(seen), "seen_before": known / blocks if blocks else 0.0}
