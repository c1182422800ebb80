"""Which GPUs the tokens of a step go to: recorded routing, counted in compiled code."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.errors import UserError
from sim.models import ModelSpec
from sim.placement.recorded import Recorded
from sim.swarm.dice import below

MOST_ROWS = 512
"""Rows of a step that are looked up; of more, so many evenly spaced ones stand for all (their counts are scaled)."""


@dataclass(frozen=True, eq=False, slots=True)
class Counts:
    """Of one step: load [layers, experts] tokens; rows [layers, gpus] (token, expert) pairs; touched [layers, gpus] distinct
    experts; sent [layers, nodes] distinct tokens (a token goes to a node once, however many of its experts are there)."""

    load: NDArray[np.float64]
    rows: NDArray[np.float64]
    touched: NDArray[np.float64]
    sent: NDArray[np.float64]


class Routes:
    """Recorded tokens [tokens, layers, k]. A request reads them from a place drawn for it, round and round; counts of experts
    stand in where only those are known."""

    def __init__(self, recorded: Recorded, model: ModelSpec, seed: int = 0) -> None:
        if recorded.shape != (model.moe_layers, model.experts):
            found = f"{recorded.shape[0]} layers of {recorded.shape[1]} experts"
            raise UserError(f"--trace: has {found}; {model.name} has {model.moe_layers} of {model.experts}")
        self.counts = recorded.windows.sum(axis=0)
        self.experts = recorded.sample.experts if recorded.sample is not None else _drawn(self.counts, model.top_k, seed)
        self.seed = seed
        self._starts: dict[int, int] = {}

    def rows(self, parts: Sequence[tuple[int, int, int]]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Rows of the recording [n] that stand for parts (request, first, count), so many tokens of a request from its token `first`
        on, each thinned to `MOST_ROWS`; and how many tokens each row stands for [n]."""
        start = np.array([self._start(request) + first for request, first, _ in parts])
        count = np.array([count for _, _, count in parts])
        kept = np.minimum(count, MOST_ROWS)
        place = np.arange(kept.sum()) - np.repeat(np.cumsum(kept) - kept, kept)
        at = np.repeat(start, kept) + place * np.repeat(count, kept) // np.repeat(kept, kept)
        return at % len(self.experts), np.repeat(count / kept, kept)

    def _start(self, request: int) -> int:
        """Where a request begins to read."""
        if request not in self._starts:
            self._starts[request] = below(len(self.experts), self.seed, request)
        return self._starts[request]

    def count(self, at: NDArray[np.int64], weight: NDArray[np.float64], owner: NDArray[np.int64], node_of: NDArray[np.int64]) -> Counts:
        """Tokens at rows `at` [n], each standing for `weight` [n] tokens; owner [layers, experts]: the GPU that serves each expert."""
        layers = owner.shape[0]
        rows, touched = np.zeros((layers, len(node_of))), np.zeros((layers, len(node_of)))
        sent = np.zeros((layers, int(node_of.max()) + 1))
        load = np.zeros(owner.shape)
        _kernel()(self.experts, at, weight, owner, node_of, load, rows, touched, sent)
        return Counts(load, rows, touched, sent)


def _drawn(counts: NDArray[np.float64], k: int, seed: int, tokens: int = 4096) -> NDArray[np.int16]:
    """Tokens drawn from expert counts [layers, experts]: k different experts each, by load (Gumbel top-k)."""
    rng = np.random.default_rng(seed)
    score = np.log(np.maximum(counts, 1e-9))[None] + rng.gumbel(size=(tokens, *counts.shape))
    return np.argsort(-score, axis=2)[:, :, :k].astype(np.int16)


@cache
def _kernel() -> Any:
    import numba

    @numba.njit(cache=True)
    def count(experts, at, weight, owner, node_of, load, rows, touched, sent):  # type: ignore[no-untyped-def]
        last = np.full(sent.shape[1], -1)  # the (token, layer) that came to each node last
        for i in range(len(at)):
            w = weight[i]
            for layer in range(owner.shape[0]):
                visit = i * owner.shape[0] + layer
                for slot in range(experts.shape[2]):
                    e = experts[at[i], layer, slot]
                    g = owner[layer, e]
                    rows[layer, g] += w
                    if load[layer, e] == 0:
                        touched[layer, g] += 1
                    load[layer, e] += w
                    node = node_of[g]
                    if last[node] != visit:
                        last[node] = visit
                        sent[layer, node] += w

    return count
