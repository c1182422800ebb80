"""How far the popularity of experts changes from one part of a trace to another."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from traces.describe.tokens import Tokens


def correlation(a: NDArray[np.integer], b: NDArray[np.integer]) -> float:
    """Pearson correlation of two loads [layers, experts], mean over the layers that both used; NaN where none varies."""
    x, y = (v - v.mean(axis=1, keepdims=True) for v in (a.astype(np.float64), b.astype(np.float64)))
    norm = np.sqrt((x**2).sum(axis=1) * (y**2).sum(axis=1))
    return float(np.mean((x * y).sum(axis=1)[norm > 0] / norm[norm > 0])) if (norm > 0).any() else float("nan")


def between(parts: NDArray[np.integer]) -> NDArray[np.float64]:
    """Correlations [parts, parts] of the loads of parts [parts, layers, experts]."""
    n = len(parts)
    found = np.eye(n)
    for i in range(n):
        for j in range(i + 1, n):
            found[i, j] = found[j, i] = correlation(parts[i], parts[j])
    return found


def in_parts(tokens: Tokens, parts: int = 4) -> NDArray[np.int64]:
    """Load of so many parts of the trace [parts, layers, experts]: whole requests, in order, about as many tokens each.

    A trace with fewer requests than parts is cut by tokens.
    """
    sequence = tokens.sequence()
    if len(sequence) and sequence[-1] + 1 >= parts:
        first = np.flatnonzero(np.concatenate([[True], np.diff(sequence) != 0]))
        part = np.minimum(first[sequence] * parts // len(tokens), parts - 1)
    else:
        part = np.arange(len(tokens)) * parts // max(1, len(tokens))
    return np.stack([tokens.take(part == i).counts() for i in range(parts)])
