"""Token embedding: rows of a table [vocab, hidden] -> [tokens, hidden]."""

from __future__ import annotations

import numpy as np

from kernels.cost import TOKEN_ID_BYTES, Cost
from kernels.jit import jit


def work(tokens: int, hidden: int, b: int) -> Cost:
    """No arithmetic. Bytes: one table row read and written for each token, the ids read."""
    return Cost(0, 2 * b * tokens * hidden + TOKEN_ID_BYTES * tokens)


def reference(table: np.ndarray, ids: np.ndarray) -> np.ndarray:
    return table[ids]


@jit
def forward(table, ids, out):
    """out [tokens, hidden] = rows `ids` [tokens] int64 of table [vocab, hidden]."""
    for t in range(ids.shape[0]):
        row, to = table[ids[t]], out[t]
        for h in range(to.shape[0]):
            to[h] = row[h]
