"""SWARM: equal pipeline stages, peers that move to the stage that holds the rest back, and stochastic wiring.

Source: SWARM parallelism (ICML'23, arXiv 2301.11913), sections 3.1 (stochastic wiring, Algorithm 1) and 3.2 (adaptive
rebalancing); yandex-research/swarm f66855f. Each stage has as many layers as the weakest peer holds, as in
Helix's comparison.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sim.placement.policy import Tell, silent
from sim.placement.spans import Span, SpanProblem, Spans, WholeLayers, covered, end_to_end


@dataclass(frozen=True)
class Swarm(WholeLayers):
    """`rounds`: rebalancing periods, in each of which one peer may move."""

    rounds: int = 1000

    def spans(self, problem: SpanProblem, tell: Tell = silent) -> Spans:
        """Peers are dealt to stages in a seeded order; then, period by period, the weakest peer of the stage with the most
        rate moves to the one with the least, as long as that lifts the least. Where peers are fewer than stages, spans are
        laid end to end."""
        stages = cut(problem)
        able = [i for i, node in enumerate(problem.nodes) if node.most >= stages[0][1]]
        if len(able) < len(stages):
            return end_to_end(problem)
        order = np.random.default_rng(problem.seed).permutation(able).tolist()
        stage = {i: k % len(stages) for k, i in enumerate(order)}
        for _ in range(self.rounds):
            if not _rebalance(problem, stages, stage):
                break
        found = tuple(stages[stage[i]] if i in stage else None for i in range(len(problem.nodes)))
        return found if covered(problem, found).all() else end_to_end(problem)


def cut(problem: SpanProblem) -> list[Span]:
    """Stages of as many layers as the weakest useful peer holds, as equal as they can be, longer ones first."""
    size = min(node.most for node in problem.nodes if node.most)
    count = -(-problem.layers // size)
    edges = np.cumsum([0, *(len(part) for part in np.array_split(np.arange(problem.layers), count))]).tolist()
    return list(zip(edges, edges[1:], strict=False))


def _rebalance(problem: SpanProblem, stages: Sequence[Span], stage: dict[int, int]) -> bool:
    """One peer goes from the stage with the most rate to the one with the least. False: nobody's move would help."""

    def rate(i: int, s: int) -> float:
        return problem.nodes[i].rate(stages[s][1] - stages[s][0])

    totals = [0.0] * len(stages)
    for i, s in stage.items():
        totals[s] += rate(i, s)
    worst = min(range(len(stages)), key=lambda s: (totals[s], s))
    for best in sorted(range(len(stages)), key=lambda s: (-totals[s], s)):
        for i in sorted((i for i, s in stage.items() if s == best), key=lambda i: (rate(i, best), i)):
            if totals[best] - rate(i, best) > totals[worst]:
                stage[i] = worst
                return True
    return False


class Wiring:
    """Stochastic wiring: the next peer of a stage is the one whose accumulated expected time is least.

    expected_s: exponential moving average of the seconds that each peer took for a unit of work.
    """

    def __init__(self, expected_s: Sequence[float], smoothing: float = 0.1) -> None:
        self.expected_s = list(expected_s)
        self.smoothing = smoothing
        self._heap = [(0.0, i) for i in range(len(expected_s))]

    def choose(self, work: float = 1.0) -> int:
        """The peer that the next `work` goes to."""
        spent, i = self._heap[0]
        heapq.heapreplace(self._heap, (spent + work * self.expected_s[i], i))
        return i

    def took(self, peer: int, seconds: float, work: float = 1.0) -> None:
        """A peer has done its work in that time."""
        self.expected_s[peer] += self.smoothing * (seconds / work - self.expected_s[peer])
