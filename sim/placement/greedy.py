"""Greedy: one copy of each expert, the busiest expert first, each to the GPU that would be done with it soonest.

Source: longest processing time first, Graham, SIAM J. Appl. Math. 17 (1969), with slots and speeds. Spare slots stay empty.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from sim.placement.packing import spread
from sim.placement.placement import Placement
from sim.placement.policy import Tell, silent
from sim.placement.problem import Problem


@dataclass(frozen=True)
class Greedy:
    whole_layers: ClassVar[bool] = False

    def place(self, problem: Problem, tell: Tell = silent) -> Placement:
        gpus = problem.gpus
        return Placement(np.stack([spread(load, gpus.slots, gpus.speed, problem.experts) for load in problem.load]))
