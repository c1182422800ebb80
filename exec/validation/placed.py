"""How far the simulator is off for placed experts: serving while experts move and ranks are lost, in turn with calibration.

Rounds of serving take turns with probes, so that what is predicted and what it is predicted from saw the same computer. The
profile is fitted to the probes alone; of the Plans served and of the probes count those that nothing disturbed, by one rule
(`exec.cluster.watch.calmest`). Rounds go on until throughput before the shift and after rebalancing is known well enough, by
the rule of `exec.validation.ranks`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from exec.calibration.reference import Reference
from exec.cluster.calibrate import draft
from exec.cluster.fit import fitted
from exec.cluster.observe import Observed, against_the_best, merged, observe
from exec.cluster.phases import BEFORE, REBALANCED, phases, summarize
from exec.cluster.placing import Served, Serving, largest_difference, serve, simulate, when_lost
from exec.cluster.probes import PROBES, setup_of
from exec.cluster.profile import Unknown
from exec.cluster.recovering import Kill
from exec.cluster.standing import StandingCluster
from exec.cluster.traffic import Traffic
from exec.cluster.watch import Watch
from exec.validation.grid import DISTURBED, Grid, product
from exec.validation.score import STEADY, standard_error
from sim import configuration
from sim.errors import UserError
from sim.machines.schema import Machine

LEAST = 2
"""Rounds, where as many are asked for: few runs may agree by chance, and the probes have to be sure as well."""

Say = Callable[[str], None]

Job = tuple[Serving, Kill | None]


def load_grid(path: Path | None) -> tuple[int, list[Traffic]]:
    """(rounds at most, cases) of a YAML grid; without a path, the one that comes with Tandem. Raises UserError naming each wrong field."""
    path = path or Path(__file__).with_name("grid_placed.yaml")
    grid = configuration.load(path, Grid)
    rows = [one for row in grid.cases for one in product(row)]
    return grid.repeats, [configuration.parse(f"{path}: case {i}", row, Traffic) for i, row in enumerate(rows)]


def validate(
    ranks: int, placement: str, cases: Sequence[Traffic], rounds: int, machine: Machine | None = None, say: Say = lambda text: None
) -> dict[str, Any]:
    """The object of `validate --placement --json`, of one number of ranks. rounds: at most. machine: profile to test as it is; without
    one, it is made in between. counts: whether few enough Plans and probes were disturbed. Raises UserError for a case that cannot be
    served, and what `StandingCluster` raises."""
    jobs = jobs_of(cases, ranks, placement)
    with StandingCluster(ranks) as cluster:
        unfitted = draft(cluster, say) if machine is None else machine
        reference = Reference()
        served, probed, turns = _rounds(cluster, jobs, rounds, machine is None, reference, say)
    best_s = reference.best_s
    seen = against_the_best(probed, best_s)
    say("simulating the same")
    profile = fitted(unfitted, seen) if machine is None else machine
    rows = [_row(serving, kill, runs, profile, best_s, say) for (serving, kill), runs in zip(jobs, served, strict=True)]
    found = [phase for row in rows for phase in row["phases"]]
    disturbed = sum(p["disturbed"] or 0 for p in found) + sum(one.disturbed for one in seen)
    everything = sum(p["plans"] + (p["disturbed"] or 0) for p in found) + sum(len(one.samples) for one in seen)
    return {
        "ranks": ranks, "placement": placement, "machine": profile.name, "rounds": turns, "cases": rows, "runs": everything,
        "disturbed": disturbed, "counts": disturbed <= DISTURBED * everything,
    }  # fmt: skip


def jobs_of(cases: Sequence[Traffic], ranks: int, placement: str) -> list[Job]:
    """Raises UserError naming a case that so many ranks cannot serve."""
    found = []
    for i, case in enumerate(cases):
        try:
            serving = case.serving(ranks, placement)
            found.append((serving, case.drill(serving)))
        except UserError as e:
            raise UserError(f"--grid: case {i + 1}: {e}") from None
    return found


def _rounds(
    cluster: StandingCluster, jobs: Sequence[Job], rounds: int, probing: bool, reference: Reference, say: Say
) -> tuple[list[list[Served]], list[Observed], int]:
    """Runs of each case, probes, and how many rounds it took. Ranks are lost after the last one: who starts meanwhile takes cores."""
    served: list[list[Served]] = [[] for _ in jobs]
    setups = [setup_of(probe, cluster.ranks) for probe in PROBES] if probing else []
    seen: list[list[Observed]] = [[] for _ in setups]
    drills = [k for k, (_, kill) in enumerate(jobs) if kill is not None]
    others = [k for k in range(len(jobs)) if k not in drills]

    def run(k: int, what: str) -> None:
        serving, kill = jobs[k]
        say(f"{what}: {len(serving.lengths)} requests{', a rank is killed' if kill else ''}")
        served[k].append(serve(cluster, serving, Unknown(), kill, watch=Watch(reference)))

    turns = 0
    while turns < rounds and not (turns >= LEAST and all(steady(jobs[k][0], served[k], reference.best_s) for k in others)):
        turns += 1
        for i, setup in enumerate(setups):
            say(f"round {turns} of at most {rounds}: whole layers, {i + 1} of {len(setups)}, {setup.scheduler}")
            seen[i].append(observe(cluster, setup, reference))
        for k in others:
            run(k, f"round {turns} of at most {rounds}")
    for k in drills:
        run(k, "after the rounds")
    return served, [merged(one) for one in seen], turns


def steady(serving: Serving, runs: Sequence[Served], at_best_s: float) -> bool:
    """Whether throughput before the shift and after rebalancing is known well enough; what never was tells nothing."""
    found = phases(serving, runs, at_best_s)
    return all(standard_error(np.array(found[name].rates)) <= STEADY for name in (BEFORE, REBALANCED) if found[name].rates)


def _row(serving: Serving, kill: Kill | None, runs: Sequence[Served], profile: Machine, best_s: float, say: Say) -> dict[str, Any]:
    """Of one case. A rank that was killed is lost at the same step in the twin, and comes as long after as it did in the first run."""
    twins = simulate(serving, profile, when_lost(serving, profile, kill, runs[0].replaced_s))
    say("comparing the answers with those of one process")
    return summarize(serving, runs, twins, largest_difference(serving, [run.answers for run in runs]), best_s)
