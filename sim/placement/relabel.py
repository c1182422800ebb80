"""Which of several equal GPUs is which: a choice that changes no load, made so that fewest copies move or tokens hop.

Source: the assignment problem, Kuhn (Naval Research Logistics 2, 1955), solved by scipy; hops between layers as
ExFlow's objective (arXiv 2401.08383, section 4).
"""

from __future__ import annotations

import numpy as np

from sim.placement.placement import Bools, Placement
from sim.placement.problem import Floats, Gpus, Problem, Sample

TOKENS = 2048
"""Recorded tokens that are followed from layer to layer."""


def near_current(placement: Placement, problem: Problem) -> Placement:
    """The placement with equal GPUs renamed, layer by layer, so that the fewest copies move. Loads by GPU stay a permutation."""
    if problem.current is None:
        return placement
    held = placement.held.copy()
    for layer, row in enumerate(problem.current.held):
        overlap = held[layer].T.astype(np.float64) @ row
        held[layer] = _renamed(held[layer], overlap, problem.gpus)
    return Placement(held)


def along_tokens(placement: Placement, problem: Problem) -> Placement:
    """The placement with equal GPUs renamed, from the second layer on, so that tokens mostly stay on the GPU they are on."""
    if problem.sample is None:
        return placement
    held = placement.held.copy()
    for layer in range(1, len(held)):
        flow = transitions(problem.sample, layer, held.shape[1])
        before, here = (h / np.maximum(1, h.sum(axis=1, keepdims=True)) for h in (held[layer - 1], held[layer]))
        held[layer] = _renamed(held[layer], here.T @ flow.T @ before, problem.gpus)
    return Placement(held)


def transitions(sample: Sample, layer: int, experts: int) -> Floats:
    """How often an expert of the layer before and one of this layer served the same token [experts, experts]."""
    rows = np.linspace(0, len(sample) - 1, min(TOKENS, len(sample))).astype(np.int64)
    before, here = sample.experts[rows, layer - 1], sample.experts[rows, layer]
    pairs = before[:, :, None].astype(np.int64) * experts + here[:, None, :]
    return np.bincount(pairs.ravel(), minlength=experts * experts).reshape(experts, experts).astype(np.float64)


def _renamed(held: Bools, worth: Floats, gpus: Gpus) -> Bools:
    """Columns of `held` permuted among equal GPUs; worth [gpus, gpus]: what it is worth that column a becomes GPU b."""
    from scipy.optimize import linear_sum_assignment

    found = held.copy()
    kinds = np.unique(np.stack([gpus.region, gpus.node, gpus.slots, gpus.speed]), axis=1, return_inverse=True)[1].ravel()
    if gpus.regions == 1:
        kinds = np.unique(np.stack([gpus.slots, gpus.speed]), axis=1, return_inverse=True)[1].ravel()
    for kind in np.unique(kinds):
        members = np.flatnonzero(kinds == kind)
        a, b = linear_sum_assignment(worth[np.ix_(members, members)] + 1e-9 * np.eye(len(members)), maximize=True)
        found[:, members[b]] = held[:, members[a]]
    return found
