"""Loads left out: a recording cut into folds, each of which is in turn the load that nobody saw.

Load drifts, so what a setting is worth shows only on load that it was not fitted to. Where several windows are recorded each
of them is left out in turn (never single tokens: neighbours in time tell of each other); where one routing trace is
all there is, its stretches are. Source: cross-validation and the one-standard-error rule, Breiman, Friedman, Olshen and Stone,
Classification and Regression Trees (1984), section 3.4.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from sim.placement.measures import balancedness
from sim.placement.placement import Placement
from sim.placement.problem import Floats, Ints, Problem, Sample
from sim.placement.scenarios import counted

MOST, LEAST = 8, 3
"""Folds: at most, and below which nothing can be said."""
LAYERS = 8
"""Layers that are looked at, evenly taken."""
TOKENS = 200
"""Tokens that a stretch needs for its counts to say anything."""


@dataclass(frozen=True, slots=True)
class Fold:
    """problem: with the rest of the load, on some of the layers. What was left out of it: counts [layers, experts], and its tokens
    where they are recorded."""

    problem: Problem
    counts: Floats
    tokens: Sample | None = None

    def score(self, placement: Placement) -> float:
        """Balancedness on what was left out."""
        return balancedness(placement, self.counts, self.problem.gpus)


def folds(problem: Problem) -> list[Fold]:
    """At most `MOST` folds; none where too little is recorded."""
    layers = np.unique(np.linspace(0, problem.layers - 1, min(LAYERS, problem.layers)).astype(np.int64))
    if len(problem.windows) >= LEAST:
        return [_without_windows(problem, part, layers) for part in np.array_split(np.arange(len(problem.windows)), _parts(problem))]
    if problem.sample is None or len(problem.sample) < LEAST * TOKENS:
        return []
    parts = np.array_split(np.arange(len(problem.sample)), min(MOST, len(problem.sample) // TOKENS))
    return [_without_tokens(problem, problem.sample, part, layers) for part in parts]


def _parts(problem: Problem) -> int:
    return min(MOST, len(problem.windows))


def _without_windows(problem: Problem, left_out: Ints, layers: Ints) -> Fold:
    windows, sample = problem.windows[:, layers], problem.sample
    kept = np.setdiff1d(np.arange(len(windows)), left_out)
    rest = _of_windows(sample, kept, layers) if sample is not None else None
    tokens = _of_windows(sample, left_out, layers) if sample is not None else None
    return Fold(_part(problem, windows[kept], rest), windows[left_out].sum(axis=0), tokens)


def _of_windows(sample: Sample, windows: Ints, layers: Ints) -> Sample | None:
    """Tokens of these windows, which are numbered anew; None where there are none."""
    rows = np.isin(sample.window, windows)
    return Sample(sample.experts[rows][:, layers], np.searchsorted(windows, sample.window[rows])) if rows.any() else None


def _without_tokens(problem: Problem, sample: Sample, left_out: Ints, layers: Ints) -> Fold:
    mine = Sample(sample.experts[:, layers], np.zeros(len(sample), np.int64))
    kept = np.setdiff1d(np.arange(len(sample)), left_out)
    rest = Sample(mine.experts[kept], mine.window[kept])
    windows = counted(mine, kept, problem.experts)[None]
    tokens = Sample(mine.experts[left_out], mine.window[left_out])
    return Fold(_part(problem, windows, rest), counted(mine, left_out, problem.experts), tokens)


def _part(problem: Problem, windows: Floats, sample: Sample | None) -> Problem:
    return replace(problem, windows=windows, sample=sample, current=None, memory=None)


def surely_above(gain: Floats) -> bool:
    """Whether a gain, one of each fold [folds], is at least its own standard error on average."""
    return bool(gain.mean() >= _standard_error(gain))


def sureness(gain: Floats) -> float:
    """A gain, one of each fold [folds], in units of its own standard error."""
    return float(gain.mean() / max(_standard_error(gain), 1e-12))


def _standard_error(gain: Floats) -> float:
    return float(gain.std(ddof=1) / np.sqrt(len(gain)))
