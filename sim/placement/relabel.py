"""Which of several equal GPUs is which: a choice that changes no load, made so that fewest copies move or tokens hop.

Source: the assignment problem, Kuhn (Naval Research Logistics 2, 1955), solved by scipy; hops between layers as
ExFlow's objective (arXiv 2401.08383, section 4).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from sim.placement.compiled import jit
from sim.placement.placement import Bools, Placement
from sim.placement.problem import Floats, Gpus, Ints, Problem

TOKENS = 2048
"""Recorded tokens that are followed from layer to layer."""


def near_current(placement: Placement, problem: Problem) -> Placement:
    """The placement with equal GPUs renamed, layer by layer, so that the fewest copies move. Loads by GPU stay a permutation."""
    if problem.current is None:
        return placement
    held, kinds = placement.held.copy(), equal_gpus(problem.gpus)
    for layer, row in enumerate(problem.current.held):
        held[layer] = _renamed(held[layer], _overlap(held[layer], row), kinds)
    return Placement(held)


def along_tokens(placement: Placement, problem: Problem) -> Placement:
    """The placement with equal GPUs renamed, from the second layer on, so that tokens mostly stay on the GPU they are on."""
    if problem.sample is None:
        return placement
    held, kinds = placement.held.copy(), equal_gpus(problem.gpus)
    rows = np.linspace(0, len(problem.sample) - 1, min(TOKENS, len(problem.sample))).astype(np.int64)
    experts = problem.sample.experts[rows]
    for layer in range(1, len(held)):
        worth = _kept(held[layer], held[layer - 1], experts[:, layer], experts[:, layer - 1])
        held[layer] = _renamed(held[layer], worth, kinds)
    return Placement(held)


def equal_gpus(gpus: Gpus) -> list[Ints]:
    """Groups of GPUs that may take each other's place: as fast, as large, on one node (anywhere, where there is one region)."""
    same = [gpus.slots, gpus.speed] if gpus.regions == 1 else [gpus.slots, gpus.speed, gpus.node]
    kind = np.unique(np.stack(same), axis=1, return_inverse=True)[1].ravel()
    return [np.flatnonzero(kind == k) for k in np.unique(kind) if (kind == k).sum() > 1]


@jit
def _lists(held: Any) -> Any:
    """GPUs of each expert [experts, most copies], and how many."""
    copies = held.sum(axis=1)
    found, at = np.zeros((held.shape[0], copies.max()), np.int64), np.zeros(held.shape[0], np.int64)
    for e in range(held.shape[0]):
        for g in range(held.shape[1]):
            if held[e, g]:
                found[e, at[e]] = g
                at[e] += 1
    return found, at


@jit
def _overlap(held: Any, current: Any) -> Any:
    """Experts that are on GPU a of one and on GPU b of the other [gpus, gpus]."""
    worth = np.zeros((held.shape[1], held.shape[1]))
    (here, n), (there, m) = _lists(held), _lists(current)
    for e in range(held.shape[0]):
        for i in range(n[e]):
            for j in range(m[e]):
                worth[here[e, i], there[e, j]] += 1.0
    return worth


@jit
def _kept(held: Any, before: Any, experts: Any, experts_before: Any) -> Any:
    """Pairs of a token's choices in this layer on GPU a and in the layer before on GPU b, copies served evenly [gpus, gpus]."""
    worth = np.zeros((held.shape[1], held.shape[1]))
    (here, n), (there, m) = _lists(held), _lists(before)
    for t in range(experts.shape[0]):
        for e in experts[t]:
            for f in experts_before[t]:
                for i in range(n[e]):
                    for j in range(m[f]):
                        worth[here[e, i], there[f, j]] += 1.0 / (n[e] * m[f])
    return worth


def _renamed(held: Bools, worth: Floats, kinds: list[Ints]) -> Bools:
    """Columns of `held` permuted among equal GPUs; worth [gpus, gpus]: what it is worth that column a becomes GPU b."""
    from scipy.optimize import linear_sum_assignment

    found = held.copy()
    for members in kinds:
        a, b = linear_sum_assignment(worth[np.ix_(members, members)] + 1e-9 * np.eye(len(members)), maximize=True)
        found[:, members[b]] = held[:, members[a]]
    return found
