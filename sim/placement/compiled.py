"""Compiled functions: numba's decorator with the function's own type kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numba

F = TypeVar("F", bound=Callable[..., Any])


def jit(function: F) -> F:
    """Compiled at the first call and kept on disk; runs without the interpreter's lock, so that layers can share the cores."""
    found: F = numba.njit(cache=True, nogil=True)(function)
    return found
