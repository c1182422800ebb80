"""Memory layout of the rate solver's state, its constants, and how its functions are compiled."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numba
import numpy as np
from numpy.typing import NDArray

F = TypeVar("F", bound=Callable[..., Any])

ONE = 1 << 40
"""The whole of a resource, in units of shares."""
WEIGHT_ONE = 1 << 36
NEVER = 1 << 62
"""Due time of a task that cannot end as things are."""
TIGHTNESS = float(1 << 20)
"""Tightness is compared in units of 2^-20, so that a rounding error never chooses the order."""
SLACK = 1 << 10
"""A resource is full when no more than this and one unit a user are left: 2^-30 of its capacity."""
NOISE = 2.0**-46
"""Relative float noise that is not rounded up to another picosecond."""
MARGIN = 2.0**-40
"""Relative distance to a bound below which a level is held against every user."""

CLASS = np.dtype([("latency", "i8"), ("solo", "f8"), ("first", "i4"), ("last", "i4")], align=True)
"""A price class: latency and solo span in ps, its slice of the demands."""
DEMAND = np.dtype([("share", "i8"), ("weight", "i8"), ("amount", "f8"), ("cap", "f8"), ("resource", "i4")], align=True)
RESOURCE = np.dtype(
    [("total", "i8"), ("used", "i8"), ("base", "i8"), ("capacity", "f8"), ("level", "f8"),
     ("head", "i4"), ("users", "i4"), ("part", "i4"), ("is_lazy", "i4"),
     ("light", "i8"), ("weight", "i8"), ("low", "f8"), ("high", "f8"), ("clock", "f8"), ("since", "i8"),
     ("heavy", "i4"), ("root", "i4"), ("shown", "i4")],
    align=True,
)  # fmt: skip
"""Sums over the users: `total` at speed 1, `used` at present speeds, `base` before cut tasks ask
again; the last `level`; `head` of the list of users; `part`: whether it stands in lists[PART].
Of a lazy resource (`sim.engines.lazy`): wants of its light users, weight and number of the heavy ones,
bounds of their wants per weight; `clock` at `since` ps; `root` of the heap of heavy users, and which
of them stands on the heap of due times (-1: none)."""
SLOT = np.dtype(
    [("anchor", "i8"), ("end", "i8"), ("left", "f8"), ("span", "f8"), ("speed", "f8"), ("base", "f8"),
     ("target", "f8"), ("cls", "i4"), ("heap", "i4"), ("lazy", "i4"), ("demand", "i4"), ("child", "i4"), ("before", "i4"), ("after", "i4"),
     ("cut", "i1"), ("touched", "i1"), ("fluid", "i1")],
    align=True,
)  # fmt: skip
"""A running task: at `anchor` ps the fraction `left` was to do, at `span` ps for the whole; due at
`end`; `heap`: place there or -1; `cut`, `touched`: whether it stands in that list. `lazy`: the resource
on whose clock it runs, by that `demand`, until the clock shows `target`; -1: on its own. Then anchor, left,
span and end mean nothing. `child`, `before`, `after`: places in that clock's heap."""
NODE = np.dtype([("slot", "i4"), ("demand", "i4"), ("next", "i4"), ("prev", "i4")])
"""Entry of a resource's list of users; those of slot s are s * width and up."""

# Rows of `lists` and, at the same places, their lengths in `counts`: slots by due time; slots cut in
# this solve; slots whose speed may have changed; resources to solve anew; slots due next; lazy resources
# to level anew, then those that become lazy.
HEAP, CUT, TOUCHED, PART, DUE, LEVEL = range(6)
# Further counts: most demands of a class; users from which on a resource may be lazy; lazy resources.
WIDTH, LAZY_FROM, LAZY = 6, 7, 8
COUNTS = 9


class Shared(NamedTuple):
    """All arrays of the solver, see `sim.engines.slots.Rates`."""

    classes: NDArray[Any]
    demands: NDArray[Any]
    resources: NDArray[Any]
    slots: NDArray[Any]
    nodes: NDArray[Any]
    lists: NDArray[np.int32]
    counts: NDArray[np.int64]


def _stamp() -> str:
    """Hash of every compiled source. Numba keys its cache on the function's own file only, and would
    go on using an old solver inside a cached loop."""
    here = Path(__file__).parent
    names = ("layout", "heap", "loop", "lanes", "usage", "lazy", "levels", "settle")
    sources = (*(here / f"{name}.py" for name in names), here.parent / "rates.py")
    return f"{zlib.crc32(b''.join(p.read_bytes() for p in sources)):08x}"


_STAMP = _stamp()


def jit(function: F) -> F:
    """Compile with exact IEEE arithmetic (no fastmath), for use by other compiled functions."""
    compiled: F = numba.njit(nogil=True, error_model="numpy", _nrt=False, forceinline=True)(function)
    return compiled


def seldom(function: F) -> F:
    """As `jit`, for what is called from many places, or seldom where nothing is lazy: compiled once, not into each caller, whose
    loop it would only spread out."""
    compiled: F = numba.njit(nogil=True, error_model="numpy", _nrt=False)(function)
    return compiled


def entry(function: F) -> F:
    """Compile a function that Python calls; its machine code is kept for later processes."""
    function.__qualname__ += "_" + _STAMP
    compiled: F = numba.njit(cache=True, nogil=True, error_model="numpy", _nrt=False)(function)
    return compiled
