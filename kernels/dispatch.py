"""Dispatch: permute token rows so that each expert's rows are contiguous."""

from __future__ import annotations

from kernels.cost import EXPERT_ID_BYTES, ROW_BYTES, Cost


def work(tokens: int, top_k: int, hidden: int, b: int) -> Cost:
    """No arithmetic. Bytes: each token row read once and written k times; expert ids read for the
    count and again for the permutation, the row of each copy written for combine."""
    routes = tokens * top_k * (2 * EXPERT_ID_BYTES + ROW_BYTES)
    return Cost(0, b * tokens * hidden * (1 + top_k) + routes)
