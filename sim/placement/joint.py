"""Joint: load and affinity at once, on the front of what can be had of both.

The search maximises mean balancedness over the scenarios - pull x GPUs touched by a token. A row of pulls gives the
front, from balance alone to affinity alone; `place` returns the point of its own pull. Unless that is given, it is the
strongest whose placement still keeps, on load that was left out, what balance is asked for: another policy's, EPLB's unless
told. No other pull keeps that balance and touches fewer GPUs: weaker ones touch more, stronger ones are worse balanced.
Where another policy is to be beaten in both goals, a weak pull leads more in balance and a strong one in reach: it is the
one between, where the smaller lead, by its standard error, is largest.
Sources for the two goals: `robust` and `affinity`; weighing them in one objective as MoETuner (arXiv 2502.06643) does.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import ClassVar

import numpy as np

from sim.errors import UserError
from sim.placement.affinity import check_unit, sample_of, tokens_for, unit_of
from sim.placement.held_out import Fold, folds, surely_above, sureness
from sim.placement.improve import effort_s, improved, sampled_sets, steps_for
from sim.placement.measures import touched
from sim.placement.placement import Placement
from sim.placement.policy import Tell, load, silent
from sim.placement.problem import Problem
from sim.placement.relabel import along_tokens, near_current
from sim.placement.robust import filled
from sim.placement.scenarios import scenarios

CHOSEN, KEPT = -1.0, "eplb"
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
    a policy's or a balancedness itself. beat: in place of that, the policy to be beaten in balance and in units touched. unit: "gpu",
    "node" or "region". nominal: as in `robust`."""

    whole_layers: ClassVar[bool] = False
    pull: float = CHOSEN
    keep: str = KEPT
    beat: str = ""
    unit: str = "gpu"
    nominal: float = 0.25

    def __post_init__(self) -> None:
        check_unit(self.unit)
        if not 0 <= self.nominal <= 1:
            raise UserError(f"option nominal: has {self.nominal}; must be 0 to 1")
        self._kept()
        self._rival()
        if self.beat and (self.pull >= 0 or self.keep != KEPT):
            raise UserError("option beat: chooses the pull by itself; it goes with neither pull nor keep")

    def place(self, problem: Problem, tell: Tell = silent) -> Placement:
        pull = self.pull if self.pull >= 0 else self._chosen(problem, tell)
        found = self._searcher(problem)(pull, effort_s(problem))
        return near_current(found, problem) if problem.current is not None else along_tokens(found, problem)

    def _chosen(self, problem: Problem, tell: Tell) -> float:
        rival = self._rival()
        return self.beating(problem, rival, tell) if rival is not None else self.keeping(problem, self._kept(), tell)

    def keeping(self, problem: Problem, keep: Place | float, tell: Tell = silent) -> float:
        """The strongest of `PULLS` that keeps the balance, by its standard error, on what was left out; the weakest where none does."""
        left_out = folds(problem) if effort_s(problem) >= ENOUGH_S else []
        if not left_out:
            return USUAL
        kept = np.array([fold.score(keep(fold.problem)) if callable(keep) else keep for fold in left_out])
        found = self._tried(problem, left_out)

        def fails(pull: float) -> bool:
            gain = np.array([fold.score(one) for fold, one in zip(left_out, found(pull), strict=True)]) - kept
            tell(f"trying pull {pull}: balancedness {gain.mean():+.3f} against the goal, on {len(left_out)} parts left out")
            return not surely_above(gain)

        return PULLS[max(0, bisect_left(PULLS, True, key=fails) - 1)]

    def beating(self, problem: Problem, rival: Place, tell: Tell = silent) -> float:
        """Of the two `PULLS` between which the lead over the rival in units touched passes that in balance, the one whose smaller lead
        is larger, on what was left out. Raises UserError for load without tokens, which does not say what a token touches."""
        left_out = folds(problem)
        if problem.sample is None or any(fold.tokens is None for fold in left_out):
            raise UserError("option beat: needs recorded tokens of all windows, a routing trace; counts do not say what a token touches")
        if not left_out or effort_s(problem) < ENOUGH_S:
            tell(f"taking pull {USUAL}: too few tokens, or too large a problem, to leave any out")
            return USUAL
        theirs = np.array([self._scores(fold, rival(fold.problem)) for fold in left_out])
        found = self._tried(problem, left_out)

        @cache
        def leads(pull: float) -> tuple[float, float]:
            ours = np.array([self._scores(fold, one) for fold, one in zip(left_out, found(pull), strict=True)])
            gain = ours - theirs
            told = f"balancedness {gain[:, 0].mean():+.3f}, GPUs touched {-gain[:, 1].mean():+.3f} against the rival"
            tell(f"trying pull {pull}: {told}, on {len(left_out)} parts left out")
            return sureness(gain[:, 0]), sureness(gain[:, 1])

        at = bisect_left(PULLS, True, key=lambda pull: leads(pull)[0] <= leads(pull)[1])
        best = max(PULLS[max(0, at - 1) : at + 1], key=lambda pull: min(leads(pull)))
        if min(leads(best)) <= 0:
            tell(f"taking pull {best}, which does not lead in both on the parts left out")
        return best

    def _scores(self, fold: Fold, placement: Placement) -> tuple[float, float]:
        """Balancedness and units that a token does not touch, on what was left out."""
        assert fold.tokens is not None
        gpus = fold.problem.gpus
        return fold.score(placement), -touched(placement, fold.tokens, gpus, unit_of(gpus, self.unit))

    def _tried(self, problem: Problem, left_out: Sequence[Fold]) -> Callable[[float], list[Placement]]:
        """The placement of each fold by pull."""
        search = [self._searcher(fold.problem) for fold in left_out]
        seconds = effort_s(problem) / LOOKS / len(left_out)
        return lambda pull: [one(pull, seconds) for one in search]

    def _kept(self) -> Place | float:
        try:
            return float(self.keep)
        except ValueError:
            return load(self.keep, "option keep").place

    def _rival(self) -> Place | None:
        return load(self.beat, "option beat").place if self.beat else None

    def _searcher(self, problem: Problem) -> Callable[[float, float], Placement]:
        """The search by pull and core-seconds, all that is common to its calls made once."""
        loads, weight = scenarios(problem, self.nominal)
        sets = sampled_sets(problem, sample_of(problem), tokens_for(effort_s(problem)))
        start, unit = filled(problem), unit_of(problem.gpus, self.unit)

        def search(pull: float, seconds: float) -> Placement:
            return improved(problem, start, loads, weight, steps_for(problem, seconds, len(weight), sets), pull, sets, unit)

        return search
