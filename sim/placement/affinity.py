"""Affinity: experts that tokens choose together live together, so that a token touches few GPUs (or nodes, or regions).

Within a layer the search minimises exactly that, the expected number of units that a recorded token touches. Across
layers equal GPUs are then named so that tokens stay where they are. Sources: co-activation grouping as in GRACE-MoE
(arXiv 2509.25041), cross-layer affinity as in ExFlow (arXiv 2401.08383); the search is our own. Load is not looked at.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from sim.errors import UserError
from sim.placement.improve import EFFORT_S, effort_s, improved, sampled_sets, steps_for
from sim.placement.placement import Placement
from sim.placement.policy import Tell, silent
from sim.placement.problem import Gpus, Ints, Problem, Sample
from sim.placement.relabel import along_tokens, near_current
from sim.placement.robust import filled

UNITS = ("gpu", "node", "region")
TOKENS = 65536
INDEPENDENT_TOKENS, INDEPENDENT_K = 256, 8


@dataclass(frozen=True)
class Affinity:
    """unit: what a token should touch few of, "gpu", "node" or "region"."""

    whole_layers: ClassVar[bool] = False
    unit: str = "gpu"

    def __post_init__(self) -> None:
        check_unit(self.unit)

    def place(self, problem: Problem, tell: Tell = silent) -> Placement:
        seconds = effort_s(problem)
        sets = sampled_sets(problem, sample_of(problem), tokens_for(seconds))
        none = np.zeros((0, problem.layers, problem.experts)), np.zeros(0)
        steps = steps_for(problem, seconds, 0, sets)
        found = improved(problem, filled(problem), *none, steps, 1.0, sets, unit_of(problem.gpus, self.unit))
        return near_current(found, problem) if problem.current is not None else along_tokens(found, problem)


def check_unit(unit: str) -> None:
    if unit not in UNITS:
        raise UserError(f"option unit: has {unit!r}; must be one of {', '.join(UNITS)}")


def unit_of(gpus: Gpus, unit: str) -> Ints:
    """The unit that each GPU belongs to [gpus]."""
    return {"gpu": np.arange(len(gpus)), "node": gpus.node, "region": gpus.region}[unit]


def tokens_for(seconds: float) -> int:
    """Tokens to look at: the fewer the larger a layer and the shorter the search (`effort_s` goes by the root of the size)."""
    return int(min(TOKENS, 1024 * max(1.0, (seconds / EFFORT_S) ** 2)))


def sample_of(problem: Problem) -> Sample:
    """The recorded tokens; where only counts are known, tokens whose experts are drawn one by one by load."""
    if problem.sample is not None:
        return problem.sample
    rng = np.random.default_rng(problem.seed)
    k = min(INDEPENDENT_K, max(1, problem.experts // 4))
    waits = rng.standard_exponential((INDEPENDENT_TOKENS, problem.layers, problem.experts), np.float32)
    waits /= (problem.load + 1).astype(np.float32)
    chosen = np.argpartition(waits, k - 1, axis=2)[:, :, :k]  # the k first of a race of exponentials: a draw without replacement
    return Sample(chosen.astype(np.int16), np.zeros(INDEPENDENT_TOKENS, np.int64))
