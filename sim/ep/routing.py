"""How many rows each rank sends to each expert: from a recorded routing trace, or drawn.

Counts are [ranks, experts]. A row is a (token, expert) pair; a token goes to k different experts.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sim.ep.layer import MoELayer
from sim.errors import UserError

Counts = NDArray[np.int64]


def drawn(layer: MoELayer, tokens: Sequence[int], seed: int = 0, skew: float = 0.0) -> Counts:
    """Each token picks k experts without replacement; expert of popularity rank i has odds (i + 1)^-skew (Zipf), and the seed says
    which experts are popular. skew 0: uniform.

    Gumbel's trick: the k largest of log-odds plus Gumbel noise. O(tokens x experts), a rank at a time.
    """
    if skew < 0 or not np.isfinite(skew):
        raise UserError(f"skew: is {skew}; 0 (uniform) or more is needed")
    odds = -skew * np.log(np.arange(1, layer.experts + 1))
    odds = odds[np.random.default_rng((seed, 0)).permutation(layer.experts)].astype(np.float32)
    counts = np.zeros((len(tokens), layer.experts), np.int64)
    for rank, n in enumerate(tokens):
        rng = np.random.default_rng((seed, 1, rank))
        noise = rng.standard_exponential((n, layer.experts), np.float32)
        score = odds - np.log(np.maximum(noise, np.finfo(np.float32).tiny))  # single precision draws 0 now and then
        chosen = np.argpartition(score, layer.experts - layer.top_k, axis=1)[:, layer.experts - layer.top_k :]
        counts[rank] = np.bincount(chosen.reshape(-1), minlength=layer.experts)
    return counts


def even(layer: MoELayer, tokens: Sequence[int]) -> Counts:
    """As equal as whole rows allow: of each rank, and over all ranks."""
    rows = np.array(tokens) * layer.top_k
    begin = np.cumsum(rows) - rows
    place = (np.arange(layer.experts) - begin[:, None]) % layer.experts
    return np.asarray(rows[:, None] // layer.experts + (place < rows[:, None] % layer.experts), np.int64)


def recorded(layer: MoELayer, tokens: Sequence[int], path: Path, at: int | None = None) -> tuple[Counts, bool]:
    """Rows of layer `at` of a routing trace (None: the middle one), dealt out to the ranks in the order recorded; from the beginning
    again where the trace has fewer. Returns the counts, and whether it had fewer.

    Raises UserError for a trace of another shape, `traces.errors.TraceError` for a file that is none.
    """
    from traces.routing import read_routing

    routing = read_routing(path)
    shape = routing.shape
    for name, found, needed in (("k", shape.k, layer.top_k), ("experts", shape.experts, layer.experts)):
        if found != needed:
            raise UserError(f"--trace {path}: metadata {name}: is {found}; a trace of this layer has {needed}")
    layers = np.unique(routing.layer)
    if not len(layers):
        raise UserError(f"--trace {path}: holds no rows; a trace of a whole run is needed")
    chosen = int(layers[len(layers) // 2]) if at is None else at
    experts = routing.experts[routing.layer == chosen]
    if not len(experts):
        raise UserError(f"--trace {path}: has no rows of layer {chosen}; it has {', '.join(map(str, layers.tolist()))}")
    begin = np.cumsum([0, *tokens])
    counts = np.zeros((len(tokens), layer.experts), np.int64)
    for rank, n in enumerate(tokens):
        rows = np.arange(begin[rank], begin[rank] + n) % len(experts)
        counts[rank] = np.bincount(experts[rows].reshape(-1), minlength=layer.experts)
    return counts, bool(begin[-1] > len(experts))


def limited(counts: Counts, capacity: Sequence[int]) -> Counts:
    """Rows beyond what an expert takes from a rank, capacity [ranks], are dropped."""
    return np.asarray(np.minimum(counts, np.array(capacity)[:, None]), np.int64)


def part(counts: Counts, chunk: int, chunks: int) -> Counts:
    """Rows of one chunk; the chunks' sum is `counts`."""
    return np.asarray(counts * (chunk + 1) // chunks - counts * chunk // chunks, np.int64)
