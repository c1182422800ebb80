"""Joint: load and affinity at once, on the front of what can be had of both.

The search maximises mean balancedness over the scenarios - pull x GPUs touched by a token. A row of pulls gives the
front, from balance alone to affinity alone; `place` returns the point of its own pull. Unless that is given, it is the
strongest whose placement is still better balanced than EPLB's (without spare slots: than largest-first) on load that was
left out: tokens touch as few GPUs as they can at no price in balance.
Sources for the two goals: `robust` and `affinity`; weighing them in one objective as MoETuner (arXiv 2502.06643) does.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from sim.errors import UserError
from sim.placement.affinity import check_unit, sample_of, tokens_for, unit_of
from sim.placement.held_out import Fold, folds, surely_above
from sim.placement.improve import effort_s, improved, sampled_sets, steps_for
from sim.placement.placement import Placement
from sim.placement.policy import Tell, silent
from sim.placement.problem import Problem
from sim.placement.relabel import along_tokens, near_current
from sim.placement.robust import filled
from sim.placement.scenarios import scenarios

CHOSEN = -1.0
PULLS = (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5)
"""What is tried where the pull is chosen: by bisection, since balance falls as the pull grows."""
LOOKS = 3
USUAL = 0.3
"""The pull where too little is recorded to leave any out, or the problem is too large to be searched again and again."""
ENOUGH_S = 1.0


@dataclass(frozen=True)
class Joint:
    """pull: what a unit touched less is worth in balancedness; below 0: chosen. unit: "gpu", "node" or "region".
    nominal: as in `robust`."""

    whole_layers: ClassVar[bool] = False
    pull: float = CHOSEN
    unit: str = "gpu"
    nominal: float = 0.25

    def __post_init__(self) -> None:
        check_unit(self.unit)
        if not 0 <= self.nominal <= 1:
            raise UserError(f"option nominal: has {self.nominal}; must be 0 to 1")

    def place(self, problem: Problem, tell: Tell = silent) -> Placement:
        pull = self.pull if self.pull >= 0 else self._chosen(problem, tell)
        found = self._searched(problem, pull, effort_s(problem))
        return near_current(found, problem) if problem.current is not None else along_tokens(found, problem)

    def _searched(self, problem: Problem, pull: float, seconds: float) -> Placement:
        loads, weight = scenarios(problem, self.nominal)
        sets = sampled_sets(problem, sample_of(problem), tokens_for(seconds))
        steps = steps_for(problem, seconds, len(weight), sets)
        return improved(problem, filled(problem), loads, weight, steps, pull, sets, unit_of(problem.gpus, self.unit))

    def _chosen(self, problem: Problem, tell: Tell) -> float:
        """The strongest of `PULLS` that keeps the balance on what was left out; the weakest where none does."""
        left_out = folds(problem) if effort_s(problem) >= ENOUGH_S else []
        if not left_out:
            return USUAL
        standard = np.array([fold.score(Placement(filled(fold.problem))) for fold in left_out])
        seconds = effort_s(problem) / LOOKS / len(left_out)

        def fails(pull: float) -> bool:
            gain = self._scores(left_out, pull, seconds) - standard
            tell(f"pull {pull}: {gain.mean():+.3f} balancedness on {len(left_out)} parts left out")
            return not surely_above(gain)

        return PULLS[max(0, bisect_left(PULLS, True, key=fails) - 1)]

    def _scores(self, left_out: list[Fold], pull: float, seconds: float) -> np.ndarray:
        return np.array([fold.score(self._searched(fold.problem, pull, seconds)) for fold in left_out])
