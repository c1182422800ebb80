"""How far the simulator is off for several ranks: cases that calibration never saw, taken in turn with its probes.

A shared computer is faster at one time than at another. So each round goes through cases and probes
alike, and the profile is fitted to the probes of all rounds; no case is ever fitted to.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from exec.calibration.reference import Reference
from exec.cluster import probes
from exec.cluster.calibrate import draft
from exec.cluster.controller import Cluster
from exec.cluster.fit import fitted
from exec.cluster.observe import RUNS, Observed, against_the_best, merged, observe
from exec.cluster.prices import simulate
from exec.cluster.probes import LAYERS
from exec.cluster.runs import Setup, layers_setup
from exec.validation.grid import DISTURBED, Grid, product
from exec.validation.score import STEADY, rank_agreement, relative, standard_error
from sim import configuration
from sim.errors import UserError
from sim.machines.schema import Machine

APART = 0.08
"""Schedulers that measure closer than this are not ranked."""

Say = Callable[[str], None]


class Case(BaseModel):
    """MoE layers of so many rows a rank, under one scheduler."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    scheduler: str
    tokens: int = Field(gt=0, le=1 << 20, description="rows of each rank")
    hidden: int = Field(gt=0)
    ffn: int = Field(gt=0)
    experts: int = Field(gt=0)
    top_k: int = Field(gt=0)
    skew: float = Field(0.0, ge=0)
    seed: int = 0

    def setup(self, ranks: int, device: str = "") -> Setup:
        """Raises UserError for a case that so many ranks cannot run."""
        model = probes.sized(self.hidden, self.ffn, self.experts, self.top_k)
        threads = probes.threads_of(ranks)
        return layers_setup(
            model, [self.tokens] * ranks, self.scheduler, layers=LAYERS, skew=self.skew, seed=self.seed, threads=threads, device=device
        )

    def without_scheduler(self) -> tuple[Any, ...]:
        """What two cases share that may be ranked against each other."""
        return tuple(sorted((k, v) for k, v in self.model_dump().items() if k != "scheduler"))


def load_grid(path: Path | None, device: str = "") -> tuple[int, list[Case]]:
    """(rounds at most, cases) of a YAML grid; without a path, the one that comes with Tandem for such ranks. Raises UserError
    naming each wrong field."""
    path = path or Path(__file__).with_name("grid_gpu_ranks.yaml" if device else "grid_ranks.yaml")
    grid = configuration.load(path, Grid)
    return grid.repeats, [configuration.parse(f"{path}: case {i}", one, Case) for i, row in enumerate(grid.cases) for one in product(row)]


def validate(
    ranks: int, cases: Sequence[Case], rounds: int, machine: Machine | None = None, say: Say = lambda text: None, device: str = ""
) -> dict[str, Any]:
    """The object of `validate --ranks --json`, of one number of ranks. rounds: at most. machine: profile to test as it is; without
    one, probes are taken in turn with the cases, and the profile is theirs. device: what each rank computes with, see `Order`.
    counts: whether few enough runs were disturbed."""
    setups = setups_of(cases, ranks, device)
    with Cluster(ranks) as cluster:
        unfitted = draft(cluster, say, device) if machine is None else machine
        asked = [probes.setup_of(p, ranks, device) for p in probes.probes_of(device)] if machine is None else []
        seen_cases, seen_probes = _rounds(cluster, setups, asked, rounds, say)
    profile = fitted(unfitted, seen_probes) if machine is None else machine
    rows = [_row(case, ranks, seen, profile) for case, seen in zip(cases, seen_cases, strict=True)]
    errors = np.array([abs(row["error"]) for row in rows])
    ranked = rank_agreement([(c, r["simulated_s"], r["measured_s"]) for c, r in zip(cases, rows, strict=True)], APART)
    everything = [*seen_cases, *seen_probes]
    runs, disturbed = sum(len(seen.samples) for seen in everything), sum(seen.disturbed for seen in everything)
    return {
        "ranks": ranks, "machine": profile.name, "rounds": len(seen_cases[0].samples) // RUNS, "cases": rows,
        "median_abs_error": float(np.median(errors)),
        "p90_abs_error": float(np.percentile(errors, 90)), "median_repeat_spread": float(np.median([r["repeat_spread"] for r in rows])),
        "rank_agreement": ranked, "runs": runs, "disturbed": disturbed, "counts": disturbed <= DISTURBED * runs,
    }  # fmt: skip


def setups_of(cases: Sequence[Case], ranks: int, device: str = "") -> list[Setup]:
    """Raises UserError naming a case that so many ranks cannot run."""
    found = []
    for i, case in enumerate(cases):
        try:
            found.append(case.setup(ranks, device))
        except UserError as e:
            raise UserError(f"--grid: case {i + 1} ({case.scheduler}): {e}") from None
    return found


def _rounds(
    cluster: Cluster, setups: Sequence[Setup], probes: Sequence[Setup], rounds: int, say: Say
) -> tuple[list[Observed], list[Observed]]:
    """Each setup and each probe, once a round, probes spread evenly between the others, until the setups' medians are steady."""
    everything = [*enumerate(setups), *((len(setups) + k, p) for k, p in enumerate(probes))]
    order = sorted(everything, key=lambda item: item[0] if item[0] < len(setups) else (item[0] - len(setups)) * len(setups) / len(probes))
    reference = Reference()
    seen: dict[int, list[Observed]] = {k: [] for k, _ in everything}
    found: list[Observed] = []
    for turn in range(rounds):
        for k, setup in order:
            say(f"round {turn + 1} of at most {rounds}: {setup.scheduler}, {setup.order.tokens[0]} rows, {setup.order.model.name}")
            seen[k].append(observe(cluster, setup, reference))
        found = against_the_best([merged(seen[k]) for k in range(len(everything))], reference.best_s)
        if all(standard_error(_layers_s(one)) <= STEADY for one in found[: len(setups)]):
            break
    return found[: len(setups)], found[len(setups) :]


def _layers_s(seen: Observed) -> NDArray[np.float64]:
    """Time of one layer in each run that counts."""
    return np.array([s.makespan_s for s in seen.settled]) / LAYERS


def _row(case: Case, ranks: int, seen: Observed, profile: Machine) -> dict[str, Any]:
    layers = _layers_s(seen)
    measured_s = float(np.median(layers))
    simulated_s = simulate(profile, seen.order, seen.plan, seen.outputs).makespan_ps / 1e12 / LAYERS
    return {
        **case.model_dump(), "ranks": ranks, "simulated_s": simulated_s, "measured_s": measured_s,
        "error": relative(simulated_s, measured_s), "repeat_spread": float(layers.max() - layers.min()) / measured_s,
        "samples_s": layers.tolist(), "disturbed": seen.disturbed,
    }  # fmt: skip
