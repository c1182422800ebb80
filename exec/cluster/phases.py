"""What serving with placed experts comes to: throughput before and after the load shifts and experts have moved, on either clock."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from exec.cluster.placing import Served, Serving
from exec.cluster.watch import calmest
from sim.engines.run import Run
from sim.schedulers.ep.rebalancing import Served as Plan
from sim.tasks import PS_PER_S

BEFORE, SHIFTED, MOVING, REBALANCED, SHORT = "before the shift", "after the shift", "experts move", "after rebalancing", "a rank is missing"
PHASES = (BEFORE, SHIFTED, MOVING, REBALANCED, SHORT)


class Phase(NamedTuple):
    """rates: of each Plan that counts, rows that pass all layers in a second; a row is a request's at a step. disturbed: Plans that
    do not count; None: nobody watched the computer."""

    rates: tuple[float, ...] = ()
    disturbed: int | None = None

    @property
    def rows_per_s(self) -> float | None:
        """The median."""
        return float(np.median(self.rates)) if self.rates else None


def phases(serving: Serving, runs: Sequence[Served], at_best_s: float = 0.0) -> dict[str, Phase]:
    """Plans of all runs by phase. Left out: the first of a run, which finds caches and connections cold; those in which seats of ranks
    that were there were empty; and, while all were, those with requests of both sides of the shift. Where the computer was
    watched, those count that nothing disturbed (`exec.cluster.watch.calmest`); Plans of a phase that copy as many experts on as many
    ranks are runs of one setup. at_best_s: of that."""
    found: dict[str, list[tuple[Served, Plan]]] = {name: [] for name in PHASES}
    for served in runs:
        for name, plan in _full(serving, served.scheduler.tally.served):
            found[name].append((served, plan))
    return {name: _settled(plans, at_best_s) for name, plans in found.items()}


def _settled(plans: Sequence[tuple[Served, Plan]], at_best_s: float) -> Phase:
    rates = [plan.rows / _seconds(served.run, plan) for served, plan in plans]
    samples = [served.samples[plan.first] for served, plan in plans if plan.first in served.samples]
    if len(samples) < len(plans) or not plans:
        return Phase(tuple(rates))
    calm = calmest(samples, at_best_s, [(plan.living, plan.moves, plan.loads) for _, plan in plans])
    return Phase(tuple(rates[i] for i in calm), len(plans) - len(calm))


def _full(serving: Serving, plans: Sequence[Plan]) -> Iterator[tuple[str, Plan]]:
    """Plans that count for a phase."""
    full = serving.settings.seats * serving.settings.steps
    versions = [p.version for p in plans if p.requests[1] < serving.shift]
    before = versions[-1] if versions else 0
    for plan in plans[1:]:
        name = SHORT if plan.living < serving.ranks else _phase(plan, serving.shift, before)
        if name and plan.rows == full * plan.living:
            yield name, plan


def _phase(plan: Plan, shift: int, before: int) -> str:
    if plan.requests[0] < shift <= plan.requests[1]:
        return ""
    if plan.layer >= 0:
        return MOVING
    if plan.requests[1] < shift:
        return BEFORE
    return REBALANCED if plan.version > before else SHIFTED


def _seconds(run: Run, plan: Plan) -> float:
    """From the first start of a Plan's tasks to the last end."""
    at = slice(*np.searchsorted(run.number, (plan.first, plan.first + plan.tasks)).tolist())
    return float(run.end_ps[at].max() - run.start_ps[at].min()) / PS_PER_S


def summarize(
    serving: Serving, runs: Sequence[Served], twins: Sequence[Served], difference: float | None, at_best_s: float = 0.0
) -> dict[str, Any]:
    """The object of `run --placement --json`: sums over the runs, and medians of their Plans. Simulated figures are medians over the
    twins; null without any. at_best_s: see `phases`."""
    tallies, served = [run.scheduler.tally for run in runs], [list(run.scheduler.answered) for run in runs]
    measured, simulated = phases(serving, runs, at_best_s), [phases(serving, [twin]) for twin in twins]
    requests, answered = len(runs) * len(serving.lengths), sum(len(set(one)) for one in served)
    moves = sum(t.moves for t in tallies)
    return {
        "clock": "measured", "model": serving.model.name, "ranks": serving.ranks, "runs": len(runs), "requests": requests,
        "answered": answered, "lost": requests - answered, "duplicated": sum(map(len, served)) - answered,
        "phases": [_row(name, measured[name], [s[name] for s in simulated]) for name in PHASES],
        "rows": len(runs) * sum(serving.lengths), "wall_s": sum(run.run.makespan_ps for run in runs) / PS_PER_S,
        "running_s": sum(_seconds(run.run, p) for run in runs for p in run.scheduler.tally.served),
        "plans": sum(len(t.served) for t in tallies), "rebalances": sum(t.rebalances for t in tallies), "moves": moves,
        "loads": sum(t.loads for t in tallies), "moved_bytes": moves * serving.model.expert_bytes,
        "lost_ranks": [r for t in tallies for r in t.lost_ranks], "joined_ranks": [r for t in tallies for r in t.joined_ranks],
        "replaced_s": [s for run in runs for s in run.replaced_s], "replayed_rows": sum(t.replayed_rows for t in tallies),
        "handed_over": sum(t.handed_over for t in tallies), "max_relative_difference": difference,
    }  # fmt: skip


def _row(name: str, measured: Phase, simulated: Sequence[Phase]) -> dict[str, Any]:
    rates = [s.rows_per_s for s in simulated if s.rows_per_s is not None]
    twin = float(np.median(rates)) if rates else None
    mine = measured.rows_per_s
    error = twin / mine - 1.0 if twin is not None and mine is not None else None
    return {
        "phase": name, "plans": len(measured.rates), "disturbed": measured.disturbed, "measured_rows_per_s": mine,
        "simulated_rows_per_s": twin, "error": error,
    }  # fmt: skip
