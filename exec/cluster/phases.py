"""What serving with placed experts comes to: throughput before and after the load shifts and experts have moved, on either clock."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from exec.cluster.placing import Served, Serving
from sim.engines.run import Run
from sim.schedulers.ep.rebalancing import Served as Plan
from sim.tasks import PS_PER_S

BEFORE, SHIFTED, MOVING, REBALANCED, SHORT = "before the shift", "after the shift", "experts move", "after rebalancing", "a rank is missing"
PHASES = (BEFORE, SHIFTED, MOVING, REBALANCED, SHORT)


class Phase(NamedTuple):
    """rates: of each Plan, rows that pass all layers in a second; a row is a request's at a step."""

    rates: tuple[float, ...] = ()

    @property
    def rows_per_s(self) -> float | None:
        """The median: a Plan that something else disturbed does not count."""
        return float(np.median(self.rates)) if self.rates else None


def phases(serving: Serving, served: Served) -> dict[str, Phase]:
    """Plans by phase. Left out: those in which seats of ranks that were there were empty, and, while all were, those with requests of
    both sides of the shift."""
    plans = served.scheduler.tally.served
    full = serving.settings.seats * serving.settings.steps
    versions = [p.version for p in plans if p.requests[1] < serving.shift]
    before = versions[-1] if versions else 0
    found = dict.fromkeys(PHASES, Phase())
    for plan in plans:
        name = SHORT if plan.living < serving.ranks else _phase(plan, serving.shift, before)
        if name and plan.rows == full * plan.living:
            found[name] = Phase((*found[name].rates, plan.rows / _seconds(served.run, plan)))
    return found


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


def summarize(serving: Serving, real: Served, twins: Sequence[Served], difference: float | None) -> dict[str, Any]:
    """The object of `run --placement --json`. Simulated figures are medians over the twins; null without any."""
    tally, answered = real.scheduler.tally, list(real.scheduler.answered)
    measured, simulated = phases(serving, real), [phases(serving, twin) for twin in twins]
    wall_s = real.run.makespan_ps / PS_PER_S
    return {
        "clock": "measured", "model": serving.model.name, "ranks": serving.ranks, "requests": len(serving.lengths),
        "answered": len(set(answered)), "lost": len(serving.lengths) - len(set(answered)), "duplicated": len(answered) - len(set(answered)),
        "phases": [_row(name, measured[name], [s[name] for s in simulated]) for name in PHASES],
        "rows": sum(serving.lengths), "wall_s": wall_s, "running_s": sum(_seconds(real.run, p) for p in tally.served),
        "plans": len(tally.served), "rebalances": tally.rebalances, "moves": tally.moves, "loads": tally.loads,
        "moved_bytes": tally.moves * serving.model.expert_bytes, "lost_ranks": tally.lost_ranks, "joined_ranks": tally.joined_ranks,
        "replaced_s": list(real.replaced_s), "replayed_rows": tally.replayed_rows, "handed_over": tally.handed_over,
        "max_relative_difference": difference,
    }  # fmt: skip


def _row(name: str, measured: Phase, simulated: Sequence[Phase]) -> dict[str, Any]:
    rates = [s.rows_per_s for s in simulated if s.rows_per_s is not None]
    twin = float(np.median(rates)) if rates else None
    mine = measured.rows_per_s
    error = twin / mine - 1.0 if twin is not None and mine is not None else None
    return {"phase": name, "plans": len(measured.rates), "measured_rows_per_s": mine, "simulated_rows_per_s": twin, "error": error}
