"""Which cache for a machine and a trace, and how large: a search over the simulator.

First the trace is replayed without a clock under every eviction policy, admission rule and scope: of each rule of admission what hits
most goes on. With every prefetcher and place of work these decode a short stretch of the trace on the machine's timeline, the
fastest of them a longer one, and the fastest of these all of it (successive halving: Jamieson and Talwalkar, AISTATS 2016, keep half
each time; here a fifth). The winner is then run with fewer experts, and on machines that are twice as fast in one respect: what a slot
buys, and what limits. Rates are those of the second half of a stretch, when the cache is warm. No policy knows the future.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, cast

from sim.explain.upgrades import upgrades
from sim.machines.schema import Machine
from sim.residency import policies
from sim.residency.admission import ADMISSIONS
from sim.residency.placement import WORK
from sim.residency.prefetch import PREDICTORS
from sim.residency.study import Study, needed_lanes, simulate
from sim.schedulers.caching import Caching

RUNGS = (8, 2, 1)
"""Parts of the steps that each rung decodes."""
SHORTEST = 16
KEPT = 5
"""One in so many goes on to the next rung."""
FACTOR = 2.0
"""How much faster a part is made to see whether it limits."""
SIZES = (0.25, 0.5, 0.75)
"""Of the largest capacity, which are simulated beside it and the next smaller one."""

Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Trial:
    """A simulated decode. steps: of its batch. tokens_per_s: over the second half of them. hit_rate: over all."""

    caching: Caching
    steps: int
    tokens_per_s: float
    hit_rate: float


@dataclass(frozen=True, slots=True)
class Choice:
    """What the search found. best: over all steps. rivals: of each place of work the fastest at the longest stretch that it
    reached, the winner's included. replayed, tried: combinations without a clock and on the timeline. sizes: the winner with other
    capacities, ascending. faster: tokens/s with one resource made `FACTOR` times as fast, the most helpful first.
    """

    best: Trial
    rivals: dict[str, Trial]
    replayed: int
    tried: int
    sizes: tuple[Trial, ...]
    faster: dict[str, float]

    @property
    def last_slot(self) -> float:
        """Tokens/s that the last expert of each layer bought; 0 where one is all there is."""
        smaller = [t.tokens_per_s for t in self.sizes if t.caching.capacity == self.best.caching.capacity - 1]
        return self.best.tokens_per_s - smaller[0] if smaller else 0.0


@dataclass(frozen=True, slots=True)
class Grid:
    """Names to choose from; `scopes`: whether the layers share their capacity."""

    evict: Sequence[str] = tuple(policies.ONLINE)
    admit: Sequence[str] = tuple(ADMISSIONS)
    prefetch: Sequence[str] = tuple(name for name in PREDICTORS if name != "next-gate")
    work: Sequence[str] = WORK
    scopes: Sequence[bool] = (False, True)

    def tables(self, base: Caching) -> Iterator[Caching]:
        """All combinations of what a replay can tell apart."""
        for evict, admit, whole in product(self.evict, self.admit, self.scopes):
            yield replace(base, evict=evict, admit=admit, whole=whole)

    def moves(self, table: Caching, machine: Machine) -> Iterator[Caching]:
        """A table with every prefetcher and place of work that the machine has lanes for."""
        for prefetch, work in product(self.prefetch, self.work):
            caching = replace(table, prefetch=prefetch, work=cast("Any", work))
            if all(lane in machine.lane for lane in needed_lanes(caching)):
                yield caching


def choose(study: Study, base: Caching, grid: Grid, tell: Tell) -> Choice:
    """The fastest of `grid` with at most the capacity of `base`, which fits. The study has a machine and a number of steps."""
    machine = study.machine
    assert machine is not None and study.limit is not None, "a choice needs a timeline of some length"
    tables = _best_tables(study, base, grid, tell)
    left = [caching for table in tables for caching in grid.moves(table, machine)]
    assert left, f"{machine.name} has lanes for none of {grid}"
    tried = len(left)
    rivals: dict[str, Trial] = {}
    for part in RUNGS:
        trials = _rung(study, machine, left, min(study.limit, max(SHORTEST, study.limit // part)), tell)
        for t in reversed(trials):
            rivals[t.caching.work] = t
        left = [t.caching for t in trials[: max(1, len(trials) // KEPT)]]
    best, sizes = _sized(study, machine, trials[0], tell)
    rivals[best.caching.work] = best
    return Choice(best, rivals, len(list(grid.tables(base))), tried, sizes, _faster(study, machine, best, tell))


def _best_tables(study: Study, base: Caching, grid: Grid, tell: Tell) -> list[Caching]:
    """Of each rule of admission the eviction policy and scope that hit most."""
    best: dict[str, tuple[float, Caching]] = {}
    for caching in grid.tables(base):
        tell(f"replay: {caching.evict}, {caching.admit}")
        rate, _ = study.hits(caching)
        if caching.admit not in best or rate > best[caching.admit][0]:
            best[caching.admit] = rate, caching
    return [caching for _, caching in best.values()]


def _rung(study: Study, machine: Machine, candidates: Sequence[Caching], steps: int, tell: Tell) -> list[Trial]:
    """All of them over so many steps, the fastest first."""
    trials = []
    for i, caching in enumerate(candidates):
        tell(f"{steps} steps, {i + 1} of {len(candidates)}")
        trials.append(_trial(study, machine, caching, steps))
    return sorted(trials, key=lambda t: -t.tokens_per_s)


def _trial(study: Study, machine: Machine, caching: Caching, steps: int) -> Trial:
    done = simulate(study.model, machine, study.feed, caching, batch=study.batch, limit=steps, gates=study.gates)
    return Trial(caching, steps, done.rate_after(done.served.steps // 2), done.served.hits / done.served.asked)


def _sized(study: Study, machine: Machine, winner: Trial, tell: Tell) -> tuple[Trial, tuple[Trial, ...]]:
    """The winner with fewer experts; the best of all these."""
    most, found = winner.caching.capacity, [winner]
    for capacity in sorted({max(1, round(most * share)) for share in SIZES} | {most - 1}):
        if 0 < capacity < most:
            tell(f"{capacity} experts of a layer")
            found.append(_trial(study, machine, replace(winner.caching, capacity=capacity), winner.steps))
    found.sort(key=lambda t: t.caching.capacity)
    return max(found, key=lambda t: (t.tokens_per_s, t.caching.capacity)), tuple(found)


def _faster(study: Study, machine: Machine, best: Trial, tell: Tell) -> dict[str, float]:
    lanes = needed_lanes(best.caching)
    used = {r for name in lanes if (lane := machine.lane[name]) for r in (lane.compute, lane.memory, lane.cores, *lane.path) if r}
    rates = {}
    for better in upgrades(machine, used, lanes, FACTOR):
        if better.kind == "hardware":
            tell(f"{FACTOR:g} times {better.name}")
            rates[better.name] = _trial(study, better.machine, best.caching, best.steps).tokens_per_s
    return dict(sorted(rates.items(), key=lambda item: -item[1]))
