"""What loads may come: the scenarios against which `robust` and `joint` place.

A placement fitted to one load is near-perfect on that load and poor on the next. Recorded windows differ in the way in
which the future will differ from them, so a placement is made good on each of them and not on their sum: sample average
approximation (Kleywegt, Shapiro, Homem-de-Mello, SIAM J. Optim. 12, 2002). Where tokens are recorded, stretches of them
are windows too: they show how experts rise and fall together at a finer grain.
"""

from __future__ import annotations

import numpy as np

from sim.placement.problem import Floats, Problem, Sample, shares

MOST = 24
"""Scenarios of each sort; more are merged with their neighbours in time."""
STRETCH = 1500
"""Tokens of a stretch: long enough that its counts are no chance, short enough that its subject is one."""


def scenarios(problem: Problem, nominal: float) -> tuple[Floats, Floats]:
    """Loads [scenarios, layers, experts] and their weights [scenarios], which add up to 1.

    nominal: weight of all windows pooled, the load as it was; the rest is shared by windows and stretches of tokens.
    """
    parts = [merged(problem.windows)] if len(problem.windows) > 1 else []
    if problem.sample is not None:
        cut = stretches(problem.sample, problem.experts)
        parts += [merged(cut)] if len(cut) > 1 else []
    parts = [shares(part) for part in parts]
    loads = np.concatenate([problem.load[None], *parts])
    each = [(1.0 - nominal) / len(parts) / len(part) for part in parts for _ in range(len(part))]
    return loads, np.array([nominal if parts else 1.0, *each])


def merged(windows: Floats) -> Floats:
    """At most `MOST` windows: neighbours in time added up."""
    edges = np.linspace(0, len(windows), min(MOST, len(windows)) + 1).astype(np.int64)[:-1]
    return np.asarray(np.add.reduceat(windows, edges, axis=0))


def stretches(sample: Sample, experts: int) -> Floats:
    """Counts [stretches, layers, experts] of runs of tokens within a window, each of about `STRETCH` tokens."""
    found = []
    for window in np.unique(sample.window):
        mine = np.flatnonzero(sample.window == window)
        for part in np.array_split(mine, max(1, round(len(mine) / STRETCH))):
            found.append(counted(sample, part, experts))
    return np.stack(found)


def counted(sample: Sample, rows: np.ndarray, experts: int) -> Floats:
    """Tokens of each expert [layers, experts] among these rows of the sample."""
    chosen = sample.experts[rows].astype(np.int64)
    layers = chosen.shape[1]
    flat = (np.arange(layers)[None, :, None] * experts + chosen).ravel()
    return np.bincount(flat, minlength=layers * experts).reshape(layers, experts).astype(np.float64)
