"""The rival of `joint` and `affinity`: swaps of two experts by co-activation, with or without regard to load."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from sim.placement import Placement, Problem

Array = NDArray[Any]
STARTS = 4


def coactivation(experts: Array, most: int) -> Array:
    """How often two experts served the same token [layers, experts, experts]."""
    found = np.zeros((experts.shape[1], most, most))
    for layer in range(experts.shape[1]):
        chosen = np.zeros((len(experts), most), np.float32)
        np.put_along_axis(chosen, experts[:, layer].astype(np.int64), 1.0, 1)
        found[layer] = chosen.T @ chosen
        np.fill_diagonal(found[layer], 0.0)
    return found


@numba.njit(cache=True)
def swap_search(together: Any, load: Any, gpus: int, balance: float, where: Any) -> None:
    """The rival: the best swap of two experts until none helps. Maximises the share of co-activated pairs on one GPU
    - balance x the busiest GPU's load over the mean. `where` [experts] is changed in place."""
    experts = len(where)
    busy = np.zeros(gpus)
    for e in range(experts):
        busy[where[e]] += load[e]
    while True:
        best, a, b = 1e-9, -1, -1
        for i in range(experts):
            for j in range(i + 1, experts):
                if where[i] != where[j]:
                    gain = 0.0
                    for e in range(experts):
                        if e != i and e != j:
                            gain += (together[i, e] - together[j, e]) * ((where[e] == where[j]) - (where[e] == where[i]) * 1.0)
                    most = 0.0
                    for g in range(gpus):
                        change = load[j] - load[i] if g == where[i] else (load[i] - load[j] if g == where[j] else 0.0)
                        most = max(most, busy[g] + change)
                    gain -= balance * (most - busy.max())
                    if gain > best:
                        best, a, b = gain, i, j
        if a < 0:
            return
        busy[where[a]] += load[b] - load[a]
        busy[where[b]] += load[a] - load[b]
        where[a], where[b] = where[b], where[a]


def swapped(problem: Problem, balance: float) -> Placement:
    """The swap search of every layer, the best of a few random starts by its own objective."""
    assert problem.sample is not None
    gpus, load_, together = len(problem.gpus), problem.windows.sum(0), coactivation(problem.sample.experts, problem.experts)
    held = np.zeros((problem.layers, problem.experts, gpus), np.bool_)
    for layer in range(problem.layers):
        pairs, share = together[layer] / (together[layer].sum() / 2), load_[layer] / load_[layer].sum() * gpus
        found = []
        for start in range(STARTS):
            where = np.random.default_rng((layer, start)).permutation(np.arange(problem.experts) % gpus)
            swap_search(pairs, share, gpus, balance, where)
            same = where[:, None] == where[None, :]
            worth = (pairs * same).sum() / 2 - balance * np.bincount(where, weights=share, minlength=gpus).max()
            found.append((worth, start, where))
        held[layer, np.arange(problem.experts), max(found, key=lambda f: f[0])[2]] = True
    return Placement(held)
