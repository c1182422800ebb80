"""Round-robin: contiguous blocks of experts, as expert parallelism does by default, whatever the load.

Spare slots take further copies of the experts in their order, from expert 0 on (the "trivial" placement of serving
frameworks). Source: the default layout of GShard (arXiv 2006.16668), section 3.2, generalised to unequal slots.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from sim.placement.placement import Placement
from sim.placement.policy import Tell, silent
from sim.placement.problem import Problem, apportion


@dataclass(frozen=True)
class RoundRobin:
    whole_layers: ClassVar[bool] = False

    def place(self, problem: Problem, tell: Tell = silent) -> Placement:
        """Each GPU's block is as large as its share of the slots."""
        slots = np.minimum(problem.gpus.slots, problem.experts)
        blocks = apportion(problem.experts, slots)
        held = np.zeros((problem.experts, len(slots)), np.bool_)
        held[np.arange(problem.experts), np.repeat(np.arange(len(slots)), blocks)] = True
        for g in np.flatnonzero(slots > blocks):
            free = np.flatnonzero(~held[:, g])
            order = free[np.argsort(held[free].sum(axis=1), kind="stable")]
            held[order[: slots[g] - blocks[g]], g] = True
        return Placement(np.repeat(held[None], problem.layers, axis=0))
