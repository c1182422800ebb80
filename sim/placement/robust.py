"""Robust: good on load that has gone stale, not only on the load that was seen.

Starts from EPLB's placement and searches for the best mean balancedness over the scenarios that the recordings tell
(`scenarios`), with the pooled load as one of them so that today's load stays served well. Copies go where they guard
against change: to experts that swing, and those that swing together to different GPUs. Where only one window was ever
recorded there is nothing to learn about change, and the result is a better packed EPLB.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from sim.errors import UserError
from sim.placement.improve import effort_s, improved, steps_for
from sim.placement.packing import spread
from sim.placement.placement import Bools, Placement
from sim.placement.policy import Tell, silent
from sim.placement.problem import Problem
from sim.placement.relabel import near_current
from sim.placement.scenarios import scenarios


@dataclass(frozen=True)
class Robust:
    """nominal: weight of the pooled load among the scenarios."""

    whole_layers: ClassVar[bool] = False
    nominal: float = 0.25

    def __post_init__(self) -> None:
        if not 0 <= self.nominal <= 1:
            raise UserError(f"option nominal: has {self.nominal}; must be 0 to 1")

    def place(self, problem: Problem, tell: Tell = silent) -> Placement:
        loads, weight = scenarios(problem, self.nominal)
        steps = steps_for(problem, effort_s(problem), len(weight), None)
        found = improved(problem, filled(problem), loads, weight, steps)
        return near_current(found, problem)


def filled(problem: Problem) -> Bools:
    """EPLB's global placement: every slot used [layers, experts, gpus]."""
    gpus = problem.gpus
    slots = np.minimum(gpus.slots, problem.experts)
    return np.stack([spread(load, slots, gpus.speed, int(slots.sum())) for load in problem.load])
