"""Combine: weighted sum of each token's k expert outputs, added to the residual stream."""

from __future__ import annotations

from kernels.cost import ROUTING_WEIGHT_BYTES, ROW_BYTES, Cost


def work(tokens: int, top_k: int, hidden: int, b: int) -> Cost:
    """k products and k sums for each element of [tokens, hidden], the residual being the first addend.

    Bytes: k expert rows and the residual read, the residual written, row numbers and weights read.
    """
    routes = tokens * top_k * (ROW_BYTES + ROUTING_WEIGHT_BYTES)
    return Cost(2 * tokens * top_k * hidden, b * tokens * hidden * (top_k + 2) + routes)
