"""The longest chain of dependencies, compiled: its one sweep cannot be vectorised."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def sweep(span: NDArray[np.float64], dep: NDArray[np.int64], dep_ptr: NDArray[np.int64]) -> Any:
    """Latest end when nothing but dependencies holds a task back. dep: rows, each below its owner's."""
    end = np.empty_like(span)
    latest = 0.0
    for i in range(len(span)):
        start = 0.0
        for j in range(dep_ptr[i], dep_ptr[i + 1]):
            start = max(start, end[dep[j]])
        end[i] = start + span[i]
        latest = max(latest, end[i])
    return latest
