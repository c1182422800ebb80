"""Joint: load and affinity at once, on the front of what can be had of both.

The search maximises mean balancedness over the scenarios - pull x GPUs touched by a token. A row of pulls gives the
front, from balance alone to affinity alone; `place` returns the point of its own pull.
Sources for the two goals: `robust` and `affinity`; weighing them in one objective as MoETuner (arXiv 2502.06643) does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from sim.errors import UserError
from sim.placement.affinity import check_unit, sample_of, tokens_for, unit_of
from sim.placement.improve import effort_s, improved, sampled_sets, steps_for
from sim.placement.placement import Placement
from sim.placement.policy import Tell, silent
from sim.placement.problem import Problem
from sim.placement.relabel import along_tokens, near_current
from sim.placement.robust import filled
from sim.placement.scenarios import scenarios


@dataclass(frozen=True)
class Joint:
    """pull: what a unit touched less is worth in balancedness. unit: "gpu", "node" or "region". nominal: as in `robust`."""

    whole_layers: ClassVar[bool] = False
    pull: float = 0.3
    unit: str = "gpu"
    nominal: float = 0.25

    def __post_init__(self) -> None:
        check_unit(self.unit)
        if self.pull < 0 or not 0 <= self.nominal <= 1:
            raise UserError(f"options pull and nominal: have {self.pull} and {self.nominal}; must be 0 or more, and 0 to 1")

    def place(self, problem: Problem, tell: Tell = silent) -> Placement:
        seconds = effort_s(problem)
        loads, weight = scenarios(problem, self.nominal)
        sets = sampled_sets(problem, sample_of(problem), tokens_for(seconds))
        steps = steps_for(problem, seconds, len(weight), sets)
        found = improved(problem, filled(problem), loads, weight, steps, self.pull, sets, unit_of(problem.gpus, self.unit))
        return near_current(found, problem) if problem.current is not None else along_tokens(found, problem)
