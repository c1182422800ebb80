"""What each upgrade of the machine gives: the same run, simulated again."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from sim.explain.limits import Limit
from sim.explain.retime import Timed, Twin
from sim.explain.upgrades import Upgrade, upgrades
from sim.machines.schema import Machine

FREE = 1e4
"""A factor at which what is upgraded costs nothing any more."""
WORTH = 0.005
"""Gains below this are not looked into."""


@dataclass(frozen=True, slots=True)
class Elasticity:
    """An upgrade and what comes of it.

    gain: throughput over the present one - 1. elasticity: d ln(throughput) / d ln(capacity), the chord from 1
    to the factor. then: what limits the run most after the upgrade. most: the gain where the upgraded thing
    costs nothing at all, and most_then: what limits it most then. All three are None where the upgrade
    gives next to nothing. wall_s: what simulating it took.
    """

    upgrade: Upgrade
    tokens_per_s: float
    gain: float
    elasticity: float
    then: Limit | None
    most: float | None
    most_then: Limit | None
    wall_s: float


def elasticities(
    twin: Twin, machine: Machine, resources: list[str], lanes: list[str], factor: float, limit: Callable[[Timed], Limit]
) -> list[Elasticity]:
    """Each capacity in use `factor` times as large, one at a time; the largest gain first.

    limit: names the bottleneck of a timed run.
    """
    free = {u.name: u.machine for u in upgrades(machine, resources, lanes, FREE)}
    found = [_one(twin, u, free[u.name], limit) for u in upgrades(machine, resources, lanes, factor)]
    return sorted(found, key=lambda e: -e.gain)


def _one(twin: Twin, upgrade: Upgrade, free: Machine, limit: Callable[[Timed], Limit]) -> Elasticity:
    timed = twin.on(upgrade.machine)
    gain = timed.tokens_per_s / twin.base.tokens_per_s - 1
    slope = math.log1p(gain) / math.log(upgrade.factor)
    if gain < WORTH:
        return Elasticity(upgrade, timed.tokens_per_s, gain, slope, None, None, None, timed.wall_s)
    best = twin.on(free)
    most = best.tokens_per_s / twin.base.tokens_per_s - 1
    return Elasticity(upgrade, timed.tokens_per_s, gain, slope, limit(timed), most, limit(best), timed.wall_s)
