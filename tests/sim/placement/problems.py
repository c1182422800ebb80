"""Problems for the tests of placement: drawn, and small enough to check by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from hypothesis import strategies as st

from sim.placement import Gpus, Problem, Sample


@st.composite
def problems(draw: st.DrawFn, tokens: bool | None = None, most_experts: int = 12, most_gpus: int = 6) -> Problem:
    """Unequal GPUs on nodes in regions, unequal slots, some of them none; one or several windows, with or without tokens."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    layers, experts, gpus = draw(st.integers(1, 3)), draw(st.integers(2, most_experts)), draw(st.integers(1, most_gpus))
    slots = rng.integers(0, experts + 1, gpus)
    short = experts - int(np.minimum(slots, experts).sum())
    if short > 0:
        slots[int(rng.integers(gpus))] = experts
    nodes = np.sort(rng.integers(0, draw(st.integers(1, 3)), gpus))
    nodes = np.unique(nodes, return_inverse=True)[1]
    regions = nodes // 2
    speed = rng.choice([1.0, 0.5, 0.75], gpus) if draw(st.booleans()) else np.ones(gpus)
    fleet = Gpus(tuple(f"g{g}" for g in range(gpus)), nodes, regions, speed, slots)
    windows = np.floor(np.exp(rng.normal(3, draw(st.sampled_from((0.0, 1.0, 2.0))), (draw(st.integers(1, 3)), layers, experts))))
    if draw(st.booleans()):
        windows[:, :, 0] = 0
    sample = None
    if tokens or (tokens is None and draw(st.booleans())):
        k = min(experts, 3)
        chosen = np.argsort(rng.random((30, layers, experts)), axis=2)[:, :, :k].astype(np.int16)
        sample = Sample(chosen, np.arange(30, dtype=np.int64) * len(windows) // 30)
    return Problem(windows, fleet, sample, seed=draw(st.integers(0, 3)))


@st.composite
def whole_layer_problems(draw: st.DrawFn) -> Problem:
    """As `problems`, few and small, with one GPU that holds every expert of every layer: its node can have whole layers."""
    drawn = draw(problems(tokens=False))
    slots = drawn.gpus.slots.copy()
    slots[draw(st.integers(0, len(slots) - 1))] = drawn.experts
    return replace(drawn, gpus=replace(drawn.gpus, slots=slots))


def clustered(layers: int = 2, groups: int = 4, size: int = 4, tokens: int = 400, seed: int = 0) -> Sample:
    """Tokens that choose two experts of one group, the groups scattered over the expert numbers, another way in each layer."""
    rng = np.random.default_rng(seed)
    member = np.stack([rng.permutation(groups * size).reshape(groups, size) for _ in range(layers)])
    group = rng.integers(0, groups, tokens)
    two = np.argsort(rng.random((tokens, size)), axis=1)[:, :2]
    chosen = np.stack([member[layer][group[:, None], two] for layer in range(layers)], axis=1)
    return Sample(chosen.astype(np.int16), np.zeros(tokens, np.int64))


def counted(sample: Sample, experts: int) -> np.ndarray:
    """Counts of a sample as one window [1, layers, experts]."""
    layers = sample.experts.shape[1]
    return np.stack([np.bincount(sample.experts[:, i].ravel(), minlength=experts) for i in range(layers)])[None].astype(float)
