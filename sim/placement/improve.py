"""Runs the search over all layers, a thread for each core, in a number of steps that the size of the problem sets."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from sim.placement.layer import NO_SETS, layer_of
from sim.placement.placement import Bools, Placement
from sim.placement.problem import Floats, Ints, Problem, Sample
from sim.placement.search import anneal
from sim.placement.sets import token_sets

EFFORT_S = 0.25
"""Core-seconds for a problem of `CELLS` experts x GPUs x layers, about; a problem a quarter as large may take twice as long."""
CELLS = 61 * 256 * 144
MOST_S = 8.0
MOST_STEPS = 40_000
STEPS_A_CELL = 300
"""Steps for each expert x GPU of a layer, at most: a small layer is searched to the end long before the time is up."""
STEP_NS, SCENARIO_NS, GPU_NS = 300.0, 12.0, 0.5
"""What a step costs, a scenario in it, a GPU of a scenario: on one 2020s server core."""
PAIRS_NS, FOLLOW_NS, PRODUCT_NS, EXACT = 100.0, 9.0, 2.5, 0.01
"""With tokens: what a step costs more, an expert in it, a factor in a token's chance to miss a GPU; share of steps that look at tokens."""

Sets = Sequence[tuple[Ints, Floats]]


def effort_s(problem: Problem) -> float:
    cells = problem.layers * problem.experts * len(problem.gpus)
    return float(min(MOST_S, EFFORT_S * max(1.0, (CELLS / cells) ** 0.5)))


def steps_for(problem: Problem, seconds: float, scenarios: int, sets: Sets | None) -> int:
    """Steps a layer that about fill `seconds` of a core. Depends on sizes alone, so that the answer never hangs on a clock."""
    cost = STEP_NS + scenarios * (SCENARIO_NS + GPU_NS * len(problem.gpus))
    if sets:
        rows, k = float(np.mean([len(share) for _, share in sets])), sets[0][0].shape[1]
        tokens = 2 * rows * k / problem.experts * 2 * k * PRODUCT_NS
        cost += PAIRS_NS + FOLLOW_NS * problem.experts + EXACT * tokens
    return int(min(MOST_STEPS, STEPS_A_CELL * problem.experts * len(problem.gpus), seconds * 1e9 / cost / problem.layers))


def sampled_sets(problem: Problem, sample: Sample, tokens: int) -> Sets:
    """Token sets of each layer from at most so many tokens, evenly taken."""
    rows = np.unique(np.linspace(0, len(sample) - 1, min(tokens, len(sample))).astype(np.int64))
    taken = Sample(sample.experts[rows], sample.window[rows])
    return [token_sets(taken, layer) for layer in range(problem.layers)]


def improved(
    problem: Problem, start: Bools, loads: Floats, weight: Floats, steps: int, pull: float = 0.0, sets: Sets | None = None,
    unit: Ints | None = None, price: float = 0.0, home: Bools | None = None,
) -> Placement:  # fmt: skip
    """The search of every layer from `start` [layers, experts, gpus]; loads [scenarios, layers, experts], weight [scenarios].

    pull: what a `unit` touched less is worth; price: what a copy costs that `home` lacks (the current placement, else the start).
    """
    if home is None:
        home = problem.current.held if problem.current is not None else start

    def one(layer: int) -> Bools:
        state = layer_of(start[layer], loads[:, layer], weight, problem.gpus.speed, sets[layer] if sets else NO_SETS, unit, home[layer])
        found: Bools = anneal(state, pull, price, steps, (problem.seed * 1_000_003 + layer) % (1 << 32))
        return found

    with ThreadPoolExecutor(min(problem.layers, os.cpu_count() or 1)) as pool:
        return Placement(np.stack(list(pool.map(one, range(problem.layers)))))
