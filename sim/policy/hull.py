"""The lower convex hull of a function that is known at some points.

By Jensen's inequality its value at the mean of any numbers in their range is at most the function's mean over them,
where the function is convex between its points or linear.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def hull(x: Sequence[float], y: Sequence[float] | Array) -> tuple[Array, Array]:
    """Corners of the hull of y [points] at x [points], ascending (Andrew's monotone chain). Between them it is linear."""
    kept: list[int] = []
    for i in range(len(x)):
        while len(kept) > 1 and _above(x, y, kept[-2], kept[-1], i):
            kept.pop()
        kept.append(i)
    return np.array([x[i] for i in kept], np.float64), np.array([y[i] for i in kept], np.float64)


def _above(x: Sequence[float], y: Sequence[float] | Array, a: int, b: int, c: int) -> bool:
    """Whether point b lies on or above the line from a to c."""
    return bool((y[c] - y[a]) * (x[b] - x[a]) <= (y[b] - y[a]) * (x[c] - x[a]))
