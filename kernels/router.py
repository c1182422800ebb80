"""Router: logits [tokens, experts] -> top-k expert ids and weights [tokens, k]."""

from __future__ import annotations

from kernels import linear
from kernels.cost import EXPERT_ID_BYTES, ROUTING_WEIGHT_BYTES, Cost


def select_work(tokens: int, experts: int, top_k: int, b: int) -> Cost:
    """Top-k of logits and softmax over the chosen: k rounds of `experts` comparisons, then
    subtract, exp, sum and divide of k numbers. Bytes: logits read, ids and weights written."""
    chosen = tokens * top_k * (EXPERT_ID_BYTES + ROUTING_WEIGHT_BYTES)
    return Cost(tokens * (top_k * experts + 4 * top_k), b * tokens * experts + chosen)


def work(tokens: int, hidden: int, experts: int, top_k: int, b: int) -> Cost:
    """The gate's matrix product [tokens, hidden] x [hidden, experts], then the selection."""
    return linear.work(tokens, hidden, experts, b) + select_work(tokens, experts, top_k, b)
