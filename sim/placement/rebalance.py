"""When a placement is given up for another, what moves, and who takes over what a lost GPU held."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sim.placement.measures import balancedness
from sim.placement.placement import Bools, Placement
from sim.placement.policy import Policy
from sim.placement.problem import Floats, Gpus, Ints, Problem
from sim.placement.relabel import near_current


@dataclass(frozen=True)
class Rebalancer:
    """policy: says where experts go. slots: copies of a layer's experts on each GPU. hysteresis: balancedness that a new placement
    must gain over the one that stands, for which copies have to move."""

    policy: Policy
    slots: int
    hysteresis: float = 0.05
    seed: int = 0

    def first(self, counts: Floats, gpus: int) -> Bools:
        """held [layers, experts, gpus] for counts [layers, experts] that were recorded before. Raises UserError where they do not fit."""
        return self.policy.place(self._problem(counts, gpus, None)).held

    def better(self, counts: Floats, held: Bools, living: Ints) -> Bools | None:
        """What to move to, on the living GPUs alone; None where what stands is good enough. Some layer may lack experts there."""
        current = Placement(held[:, :, living])
        problem = self._problem(counts, len(living), current)
        found = near_current(self.policy.place(problem), problem)
        if found == current or self._gain(counts, found, current, problem.gpus) < self.hysteresis:
            return None
        target = np.zeros_like(held)
        target[:, :, living] = found.held
        return target

    @staticmethod
    def _gain(counts: Floats, found: Placement, current: Placement, gpus: Gpus) -> float:
        return balancedness(found, counts, gpus) - balancedness(current, counts, gpus)

    def _problem(self, counts: Floats, gpus: int, current: Placement | None) -> Problem:
        even = Gpus.even(gpus, counts.shape[1])
        slots = np.full(gpus, min(self.slots, counts.shape[1]), np.int64)
        fleet = Gpus(even.names, even.node, even.region, even.speed, slots)
        return Problem(counts[None], fleet, current=current, seed=self.seed)


def taken_over(held: Bools, living: Ints, slots: int, counts: Floats) -> Bools:
    """held with each expert that no living GPU holds given to one: the heaviest first, to the GPU with least load that has a slot free
    or a copy to spare, of which the least used goes. Needs room for all experts on the living."""
    found = held.copy()
    found[:, :, np.setdiff1d(np.arange(held.shape[2]), living)] = False
    for layer, row in enumerate(found):
        lacking = np.flatnonzero(~row.any(axis=1))
        for expert in lacking[np.argsort(-counts[layer, lacking], kind="stable")].tolist():
            _take(row, expert, living, slots, counts[layer])
    return found


def _take(row: Bools, expert: int, living: Ints, slots: int, count: Floats) -> None:
    copies = row.sum(axis=1)
    share = np.where(row, count[:, None] / np.maximum(copies, 1)[:, None], 0.0)
    spare = row & (copies > 1)[:, None]
    able = [g for g in living.tolist() if row[:, g].sum() < slots or spare[:, g].any()]
    assert able, f"expert {expert}: no living GPU has room for it"
    gpu = min(able, key=lambda g: (share[:, g].sum(), g))
    if row[:, gpu].sum() >= slots:
        row[min(np.flatnonzero(spare[:, gpu]).tolist(), key=lambda e: (share[e, gpu], e)), gpu] = False
    row[expert, gpu] = True
