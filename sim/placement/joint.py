"""Joint: load and affinity at once, on the front of what can be had of both.

The search maximises mean balancedness over the scenarios - pull x GPUs touched by a token. A row of pulls gives the
front, from balance alone to affinity alone; `place` returns the point of its own pull. Unless that is given, it is the
strongest whose placement still keeps, on load that was left out, what balance is asked for: another policy's, EPLB's unless
told. No other pull keeps that balance and touches fewer GPUs: weaker ones touch more, stronger ones are worse balanced.
Sources for the two goals: `robust` and `affinity`; weighing them in one objective as MoETuner (arXiv 2502.06643) does.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from sim.errors import UserError
from sim.placement.affinity import check_unit, sample_of, tokens_for, unit_of
from sim.placement.held_out import folds, surely_above
from sim.placement.improve import effort_s, improved, sampled_sets, steps_for
from sim.placement.placement import Placement
from sim.placement.policy import Tell, load, silent
from sim.placement.problem import Problem
from sim.placement.relabel import along_tokens, near_current
from sim.placement.robust import filled
from sim.placement.scenarios import scenarios

CHOSEN = -1.0
PULLS = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.6, 0.7, 1.0, 1.4, 2.0, 2.8, 4.0, 8.0)
"""What is tried where the pull is chosen: by bisection, since balance falls as the pull grows."""
LOOKS = 5
USUAL = 0.3
"""The pull where too little is recorded to leave any out, or the problem is too large to be searched again and again."""
ENOUGH_S = 1.0

Place = Callable[[Problem], Placement]


@dataclass(frozen=True)
class Joint:
    """pull: what a unit touched less is worth in balancedness; below 0: chosen. keep: what balance is then kept on load left out,
    a policy's or a balancedness itself. unit: "gpu", "node" or "region". nominal: as in `robust`."""

    whole_layers: ClassVar[bool] = False
    pull: float = CHOSEN
    keep: str = "eplb"
    unit: str = "gpu"
    nominal: float = 0.25

    def __post_init__(self) -> None:
        check_unit(self.unit)
        if not 0 <= self.nominal <= 1:
            raise UserError(f"option nominal: has {self.nominal}; must be 0 to 1")
        self._kept()

    def place(self, problem: Problem, tell: Tell = silent) -> Placement:
        pull = self.pull if self.pull >= 0 else self.chosen(problem, self._kept(), tell)
        found = self._searcher(problem)(pull, effort_s(problem))
        return near_current(found, problem) if problem.current is not None else along_tokens(found, problem)

    def chosen(self, problem: Problem, keep: Place | float, tell: Tell = silent) -> float:
        """The strongest of `PULLS` that keeps the balance, by its standard error, on what was left out; the weakest where none does."""
        left_out = folds(problem) if effort_s(problem) >= ENOUGH_S else []
        if not left_out:
            return USUAL
        kept = np.array([fold.score(keep(fold.problem)) if callable(keep) else keep for fold in left_out])
        search = [self._searcher(fold.problem) for fold in left_out]
        seconds = effort_s(problem) / LOOKS / len(left_out)

        def fails(pull: float) -> bool:
            gain = np.array([fold.score(one(pull, seconds)) for fold, one in zip(left_out, search, strict=True)]) - kept
            tell(f"pull {pull}: {gain.mean():+.3f} balancedness on {len(left_out)} parts left out")
            return not surely_above(gain)

        return PULLS[max(0, bisect_left(PULLS, True, key=fails) - 1)]

    def _kept(self) -> Place | float:
        try:
            return float(self.keep)
        except ValueError:
            return load(self.keep, "option keep").place

    def _searcher(self, problem: Problem) -> Callable[[float, float], Placement]:
        """The search by pull and core-seconds, all that is common to its calls made once."""
        loads, weight = scenarios(problem, self.nominal)
        sets = sampled_sets(problem, sample_of(problem), tokens_for(effort_s(problem)))
        start, unit = filled(problem), unit_of(problem.gpus, self.unit)

        def search(pull: float, seconds: float) -> Placement:
            return improved(problem, start, loads, weight, steps_for(problem, seconds, len(weight), sets), pull, sets, unit)

        return search
