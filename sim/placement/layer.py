"""One layer as arrays for compiled search: copies, loads under every scenario, recorded tokens."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sim.placement.compiled import jit
from sim.placement.reach import misses, pairs_of


class Layer(NamedTuple):
    """State and givens of one layer; shapes with E experts, G GPUs, S scenarios, T token sets of k experts, U units.

    held [E, G] bool; x [E, G]: share of the expert's tokens that the GPU serves, 1/copies where it has a copy.
    copies [E]; members [G, most used]: the used[g] experts on GPU g.
    scenarios [S, E]: loads that add up to the sum of speeds; weight [S]; speed [G].
    loads [S, G]: load over speed; top [S]: its busiest GPU.
    sets [T, k]: experts that tokens chose together; share [T]: of the tokens; first [E + 1], where: the sets that
    hold an expert. unit [G]: what is counted when touched (the GPU, its node or region).
    y [U, E]: x by unit; miss [U, T]: chance that the token leaves the unit untouched.
    pairs [E, E]: share of the tokens that chose both; near [U, E]: y x pairs. Both [0, 0] where there are no tokens.
    home [E, G] bool: copies that need not be loaded.
    """

    held: Any
    x: Any
    copies: Any
    members: Any
    used: Any
    scenarios: Any
    weight: Any
    speed: Any
    loads: Any
    top: Any
    sets: Any
    share: Any
    first: Any
    where: Any
    unit: Any
    y: Any
    miss: Any
    pairs: Any
    near: Any
    home: Any


NO_SETS = np.zeros((0, 1), np.int64), np.zeros(0)


def layer_of(
    held: NDArray[np.bool_], scenarios: NDArray[np.float64], weight: NDArray[np.float64], speed: NDArray[np.float64],
    sets: tuple[NDArray[np.int64], NDArray[np.float64]] = NO_SETS, unit: NDArray[np.int64] | None = None,
    home: NDArray[np.bool_] | None = None,
) -> Layer:  # fmt: skip
    """A layer ready for `sim.placement.search`; `held` is copied. Scenarios [S, E] may be in any unit; home: by default `held`."""
    experts, gpus = held.shape
    unit = np.arange(gpus) if unit is None else unit
    total = scenarios.sum(axis=1, keepdims=True)
    ideal = np.ascontiguousarray(scenarios / total * speed.sum())
    chosen, share = np.ascontiguousarray(sets[0]), np.ascontiguousarray(sets[1])
    first, where = _inverted(chosen, experts)
    found: Layer = _build(held.copy(), ideal, weight, speed, chosen, share, first, where, unit, held if home is None else home)
    return found


@jit
def _inverted(sets: Any, experts: int) -> Any:
    """For each expert the sets that hold it."""
    first = np.zeros(experts + 1, np.int64)
    for t in range(sets.shape[0]):
        for e in sets[t]:
            first[e + 1] += 1
    first = np.cumsum(first)
    where, at = np.empty(sets.size, np.int64), first[:-1].copy()
    for t in range(sets.shape[0]):
        for e in sets[t]:
            where[at[e]] = t
            at[e] += 1
    return first, where


@jit
def _build(held: Any, scenarios: Any, weight: Any, speed: Any, sets: Any, share: Any, first: Any, where: Any, unit: Any, home: Any) -> Any:
    experts, gpus = held.shape
    copies = held.sum(axis=1)
    x, y = np.zeros((experts, gpus)), np.zeros((unit.max() + 1, experts))
    members, used = np.zeros((gpus, held.sum(axis=0).max()), np.int64), np.zeros(gpus, np.int64)
    for g in range(gpus):
        for e in range(experts):
            if held[e, g]:
                x[e, g] = 1.0 / copies[e]
                y[unit[g], e] += x[e, g]
                members[g, used[g]] = e
                used[g] += 1
    loads = (scenarios @ x) / speed
    top = np.zeros(len(weight), np.int64)
    for s in range(len(weight)):
        top[s] = loads[s].argmax()
    miss = misses(sets, y)
    pairs = pairs_of(sets, share, experts) if len(share) else np.zeros((0, 0))
    near = y @ pairs if len(share) else np.zeros((0, 0))
    return Layer(
        held, x, copies, members, used, scenarios, weight, speed, loads, top, sets, share, first, where, unit, y, miss, pairs, near, home
    )
