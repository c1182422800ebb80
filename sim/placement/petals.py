"""Petals: every server takes the window of blocks that is served worst, and moves when that helps enough.

Source: bigscience-workshop/petals 22afba6, server/block_selection.py: a newcomer chooses the window whose sorted
throughputs are lexicographically smallest; a server moves if the swarm's weakest block now has less than 0.75 of
what it would have once everybody had moved greedily, and never if that would break the chain.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sim.placement.policy import Tell, silent
from sim.placement.problem import Floats
from sim.placement.spans import Span, SpanNode, SpanProblem, Spans, WholeLayers, covered, end_to_end, layer_rates

EPS = 1e-3
"""A move must better the order by more than this share, against endless exchanges."""


@dataclass(frozen=True)
class Petals(WholeLayers):
    """`balance_quality`: rebalance where the weakest block has less than this share of the reachable; `rounds`: at most so many."""

    balance_quality: float = 0.75
    rounds: int = 20

    def spans(self, problem: SpanProblem, tell: Tell = silent) -> Spans:
        """Servers join in a seeded order, then look in the same order, again and again, whether to move. Where blocks are
        left that nobody serves, which a swarm would wait out, spans are laid end to end instead."""
        order = np.random.default_rng(problem.seed).permutation(len(problem.nodes)).tolist()
        spans: list[Span | None] = [None] * len(problem.nodes)
        for i in order:
            spans[i] = choose(problem.nodes[i], layer_rates(problem, tuple(spans)))
        for _ in range(self.rounds):
            moved = [i for i in order if self._moves(problem, spans, i)]
            if not moved:
                break
        found = tuple(spans)
        return found if covered(problem, found).all() else end_to_end(problem)

    def _moves(self, problem: SpanProblem, spans: list[Span | None], i: int) -> bool:
        """Server i moves, in place, if it should."""
        before = layer_rates(problem, tuple(spans))
        without = spans.copy()
        without[i] = None
        rest = layer_rates(problem, tuple(without))
        wanted = choose(problem.nodes[i], rest)
        if wanted is None or wanted == spans[i] or (rest.min() == 0 and before.min() > 0):
            return False  # it serves some block alone
        reachable = settled(problem, without, i, wanted)
        if reachable < before.min() or (before.min() > 0 and before.min() / reachable >= self.balance_quality - EPS):
            return False
        if reachable <= before.min():
            return False
        spans[i] = wanted
        return True


def choose(node: SpanNode, rates: Floats) -> Span | None:
    """The window of the node's size whose sorted rates are lexicographically smallest; the first of equal ones."""
    size = min(node.most, len(rates))
    if size == 0:
        return None
    return min(((s, s + size) for s in range(len(rates) - size + 1)), key=lambda w: (np.sort(rates[w[0] : w[1]]).tolist(), w[0]))


def settled(problem: SpanProblem, spans: list[Span | None], mover: int, wanted: Span, rounds: int = 10) -> float:
    """The weakest block's rate once the mover has moved and everybody else has followed greedily, to a fixed point."""
    spans = spans.copy()
    spans[mover] = wanted
    for _ in range(rounds):
        still = True
        for i, node in enumerate(problem.nodes):
            old = spans[i]
            spans[i] = None
            spans[i] = choose(node, layer_rates(problem, tuple(spans)))
            still = still and spans[i] == old
        if still:
            break
    return float(layer_rates(problem, tuple(spans)).min())
