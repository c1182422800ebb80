"""Local search over spans: move one node's span at a time and keep what lets no less through.

What Helix leaves to its solver's own heuristics after a warm start (section 4.4) is done here on the true max-flow. Steps are
counted, not timed, so that the answer does not hang on the computer.
"""

from __future__ import annotations

import numpy as np

from sim.placement.policy import Tell, silent
from sim.placement.spans import Span, SpanProblem, Spans, layer_rates

WEAKEST = 8
"""Layers whose rates break ties: where the flow stays, strengthening the weakest layers opens the way to more."""

_SCALE = 100
_MOST = 2**31 - 1


def polish(problem: SpanProblem, spans: Spans, steps: int, tell: Tell = silent) -> Spans:
    """Spans of no less flow after `steps` random moves, seeded by the problem."""
    rng = np.random.default_rng(problem.seed)
    best: list[Span | None] = list(spans)
    able = [i for i, node in enumerate(problem.nodes) if node.most]
    score = _score(problem, best)
    for step in range(steps):
        i = able[int(rng.integers(len(able)))]
        old, best[i] = best[i], _move(rng, problem, best[i], problem.nodes[i].most)
        new = _score(problem, best)
        if new >= score:
            score = new
        else:
            best[i] = old
        if step % 1000 == 999:
            tell(f"max-flow: {score[0]:.4g} tokens/s after {step + 1} of {steps} moves")
    return tuple(best)


def _move(rng: np.random.Generator, problem: SpanProblem, old: Span | None, most: int) -> Span:
    """Half of the moves keep the longest size, half draw one; half go anywhere, half to the neighbourhood."""
    most = min(most, problem.layers)
    size = most if rng.random() < 0.5 else int(rng.integers(1, most + 1))
    last = problem.layers - size
    if old is None or rng.random() < 0.5:
        start = int(rng.integers(last + 1))
    else:
        start = int(np.clip(old[0] + rng.integers(-4, 5), 0, last))
    return start, start + size


def _score(problem: SpanProblem, spans: list[Span | None]) -> tuple[float, float]:
    weakest = np.sort(layer_rates(problem, tuple(spans)))[:WEAKEST]
    return quick_flow(problem, spans), float(weakest.sum())


def quick_flow(problem: SpanProblem, spans: list[Span | None]) -> float:
    """`spans.max_flow` to a hundredth of a token a second, in scipy's compiled Dinic: twenty times as fast."""
    from scipy.sparse import csgraph, csr_array

    n = len(spans)
    start = np.array([s[0] if s else -1 for s in spans])
    end = np.array([s[1] if s else -1 for s in spans])
    used = np.flatnonzero(end > 0)
    a, b = np.nonzero((start[None, :] <= end[:, None]) & (end[:, None] < end[None, :]) & (end[:, None] > 0))
    first, last = np.flatnonzero(start == 0), np.flatnonzero(end == problem.layers)
    source, sink = np.full(len(first), 2 * n), np.full(len(last), 2 * n + 1)
    rows = np.concatenate([used, a + n, source, last + n])
    columns = np.concatenate([used + n, b, first, sink])
    rates = [problem.nodes[i].rate(int(end[i] - start[i])) for i in used]
    limits = np.concatenate([rates, problem.link[a, b], problem.link[n, first], problem.link[last, n]])
    capacity = np.minimum(limits * _SCALE, _MOST).astype(np.int32)
    graph = csr_array((capacity, (rows, columns)), shape=(2 * n + 2, 2 * n + 2))
    return float(csgraph.maximum_flow(graph, 2 * n, 2 * n + 1).flow_value) / _SCALE
