"""How unevenly experts are used. Everything here takes counts [..., experts] and gives one figure for each leading index."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Counts = NDArray[np.integer]
Figures = NDArray[np.float64]

SHARE_FLOOR = 5e-5
"""Added to each share before its logarithm: else the rarest experts decide the spread alone, and their counts are mostly chance."""


def max_over_mean(counts: Counts) -> Figures:
    """Load of the busiest expert over the mean load; 1 is even. NaN where nothing was counted."""
    mean = counts.mean(axis=-1)
    return _ratio(counts.max(axis=-1), mean)


def gini(counts: Counts) -> Figures:
    """Gini coefficient (Gini 1912; as the mean absolute difference over twice the mean): 0 even, 1 - 1/experts all on one."""
    ordered = np.sort(counts, axis=-1).astype(np.float64)
    n = ordered.shape[-1]
    rank = 2 * np.arange(1, n + 1) - n - 1
    total = ordered.sum(axis=-1)
    return _ratio(ordered @ rank, n * total)


def log_spread(counts: Counts) -> Figures:
    """Standard deviation over the experts of ln(share + 5e-5): the sigma of a log-normal that imitates the load."""
    total = counts.sum(axis=-1, keepdims=True)
    share = _ratio(counts, np.broadcast_to(total, counts.shape))
    return np.asarray(np.log(share + SHARE_FLOOR).std(axis=-1))


def entropy(counts: Counts) -> Figures:
    """Entropy of the load over that of an even one, ln(experts): 1 even, 0 all on one."""
    total = counts.sum(axis=-1, keepdims=True)
    share = _ratio(counts, np.broadcast_to(total, counts.shape))
    logs = np.log(share, out=np.zeros_like(share), where=share > 0)
    return np.asarray(-(share * logs).sum(axis=-1) / np.log(counts.shape[-1]) if counts.shape[-1] > 1 else np.ones(counts.shape[:-1]))


def on_gpus(counts: Counts, gpus: int) -> Counts:
    """Load of each GPU [..., gpus] with the experts in contiguous blocks; the first GPUs hold one more where it does not divide."""
    parts = np.array_split(counts, gpus, axis=-1)
    return np.stack([p.sum(axis=-1) for p in parts], axis=-1)


def balancedness(counts: Counts, gpus: int) -> Figures:
    """Mean over maximum GPU load, experts in contiguous blocks; 1 is balanced, 1/gpus all on one. NaN where nothing was counted.

    As SGLang's recorder defines it (per layer, then averaged); vLLM's logged figure of that name is another.
    """
    load = on_gpus(counts, gpus)
    most = load.max(axis=-1)
    return _ratio(load.mean(axis=-1), most)


def _ratio(above: NDArray[np.number], below: NDArray[np.number]) -> Figures:
    """NaN where there is nothing to divide by."""
    return np.asarray(np.divide(above, below, out=np.full(np.shape(below), np.nan), where=below > 0))
