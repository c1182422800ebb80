"""Fragmented arenas and logits with a nucleus, for the tests of both forms."""

from __future__ import annotations

import numpy as np


def fragmented(rng: np.random.Generator, segments: int, longest: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(arena int32, starts, lengths): segments in random order of numbers, gaps between them, some of none."""
    lengths = rng.integers(0, longest + 1, segments)
    gaps = rng.integers(0, longest + 1, segments) * rng.integers(0, 2, segments)
    order, starts, at = rng.permutation(segments), np.zeros(segments, np.int64), 0
    for s in order:
        at += gaps[s]
        starts[s] = at
        at += lengths[s]
    return rng.integers(-(2**31), 2**31, at + 3).astype(np.int32), starts, lengths


def nucleus(logits: np.ndarray, temperature: float, top_p: float) -> np.ndarray:
    """Probabilities of the tokens in each row's nucleus, by sorting, 0 outside; float64."""
    p = np.exp(logits.astype(float) / temperature)
    p /= p.sum(1, keepdims=True)
    ranked = -np.sort(-p, axis=1)
    count = (np.cumsum(ranked, axis=1) < top_p).sum(1)
    least = ranked[np.arange(len(p)), np.minimum(count, p.shape[1] - 1)]
    return np.where(p >= least[:, None], p, 0)
