"""One layer as arrays for compiled search: copies, loads under every scenario, recorded tokens."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sim.placement.compiled import jit


class Layer(NamedTuple):
    """State and givens of one layer; shapes with E experts, G GPUs, S scenarios, T token sets of k experts, U units.

    held [E, G] bool; x [E, G]: share of the expert's tokens that the GPU serves, 1/copies where it has a copy.
    copies [E]; members [G, E]: the used[g] experts on GPU g.
    scenarios [S, E]: loads that add up to the sum of speeds; weight [S]; speed [G].
    loads [S, G]: load over speed; top [S]: its busiest GPU.
    sets [T, k]: experts that tokens chose together; share [T]: of the tokens; first [E + 1], where: the sets that
    hold an expert; mass [E]: their share. unit [G]: what is counted when touched (the GPU, its node or region).
    y [U, E]: x by unit; miss [U, T]: chance that the token leaves the unit untouched.
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
    mass: Any
    unit: Any
    y: Any
    miss: Any
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
    first, where, mass = _inverted(chosen, share, experts)
    found: Layer = _build(held.copy(), ideal, weight, speed, chosen, share, first, where, mass, unit, held if home is None else home)
    return found


@jit
def _inverted(sets: Any, share: Any, experts: int) -> Any:
    """For each expert the sets that hold it, and their share."""
    first, mass = np.zeros(experts + 1, np.int64), np.zeros(experts)
    for t in range(sets.shape[0]):
        for e in sets[t]:
            first[e + 1] += 1
            mass[e] += share[t]
    first = np.cumsum(first)
    where, at = np.empty(sets.size, np.int64), first[:-1].copy()
    for t in range(sets.shape[0]):
        for e in sets[t]:
            where[at[e]] = t
            at[e] += 1
    return first, where, mass


@jit
def _build(
    held: Any, scenarios: Any, weight: Any, speed: Any, sets: Any, share: Any, first: Any, where: Any, mass: Any, unit: Any, home: Any
) -> Any:
    experts, gpus = held.shape
    copies = held.sum(axis=1)
    x, y = np.zeros((experts, gpus)), np.zeros((unit.max() + 1, experts))
    members, used = np.zeros((gpus, experts), np.int64), np.zeros(gpus, np.int64)
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
    miss = _misses(sets, y)
    return Layer(held, x, copies, members, used, scenarios, weight, speed, loads, top, sets, share, first, where, mass, unit, y, miss, home)


@jit
def _misses(sets: Any, y: Any) -> Any:
    """Chance that a token leaves a unit untouched [U, T]."""
    units, experts = y.shape
    reach, count = np.zeros((experts, units), np.int64), np.zeros(experts, np.int64)
    for u in range(units):
        for e in range(experts):
            if y[u, e] > 0:
                reach[e, count[e]] = u
                count[e] += 1
    miss = np.ones((units, sets.shape[0]))
    for t in range(sets.shape[0]):
        for e in sets[t]:
            for i in range(count[e]):
                miss[reach[e, i], t] *= 1.0 - y[reach[e, i], e]
    return miss
