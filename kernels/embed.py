"""Token embedding: rows of a table [vocab, hidden] -> [tokens, hidden]."""

from __future__ import annotations

from kernels.cost import TOKEN_ID_BYTES, Cost


def work(tokens: int, hidden: int, b: int) -> Cost:
    """No arithmetic. Bytes: one table row read and written for each token, the ids read."""
    return Cost(0, 2 * b * tokens * hidden + TOKEN_ID_BYTES * tokens)
