"""Replicate the hot: copies in proportion to load under the memory budget, then packed largest first.

The classical form of "probabilistic replication": an expert that gets a share p of the tokens gets a share p of the
slots, at least one and at most one a GPU (largest remainder). Unlike `eplb`, which evens out the load of single copies,
this follows the load itself. Source: proportional replication of content, Tewari and Kleinrock, INFOCOM 2006.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from sim.placement.packing import pack
from sim.placement.placement import Placement
from sim.placement.policy import Tell, silent
from sim.placement.problem import Floats, Ints, Problem, apportion


@dataclass(frozen=True)
class ReplicateHot:
    whole_layers: ClassVar[bool] = False

    def place(self, problem: Problem, tell: Tell = silent) -> Placement:
        slots = np.minimum(problem.gpus.slots, problem.experts)
        held = np.zeros((problem.layers, problem.experts, len(slots)), np.bool_)
        for layer, load in enumerate(problem.load):
            copies = proportional(load, int(slots.sum()), int((slots > 0).sum()))
            items = np.repeat(np.arange(problem.experts), copies)
            where = pack(items, (load / copies)[items], slots, problem.gpus.speed)
            held[layer, items[where >= 0], where[where >= 0]] = True
        return Placement(held)


def proportional(load: Floats, total: int, most: int) -> Ints:
    """Copies [experts] in proportion to load, each 1 to `most`, `total` in all (or `most` of each, if that is less)."""
    experts = len(load)
    copies = np.zeros(experts, np.int64)
    open_ = np.ones(experts, np.bool_)
    total = min(total, most * experts)
    while open_.any():
        rest = total - int(copies[~open_].sum())
        weights = load[open_] if load[open_].sum() > 0 else np.ones(int(open_.sum()))
        wanted = rest * weights / weights.sum()
        low, high = wanted < 1, wanted > most
        if low.any() and (not high.any() or (1 - wanted[low]).sum() >= (wanted[high] - most).sum()):
            clamped, value = low, 1
        elif high.any():
            clamped, value = high, most
        else:
            copies[open_] = apportion(rest, weights)
            break
        at = np.flatnonzero(open_)[clamped]
        copies[at] = value
        open_[at] = False
    return copies
