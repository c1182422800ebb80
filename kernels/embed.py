"""Token embedding: rows of a table [vocab, hidden] -> [tokens, hidden]."""

from __future__ import annotations

from typing import Any

import numpy as np

from kernels.cost import TOKEN_ID_BYTES, Cost
from kernels.cuda.jit import cuda, kernel
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


@kernel("element[:,::1], int64[::1], element[:,::1]")
def _rows(table, ids, out):
    """A block for each token."""
    t, h = cuda.blockIdx.x, cuda.threadIdx.x
    row = ids[t]
    while h < out.shape[1]:
        out[t, h] = table[row, h]
        h += cuda.blockDim.x


def forward_cuda(table: Any, ids: Any, out: Any, *, stream: Any = 0, threads: int = 256) -> None:
    """`forward` on the GPU, for any element type."""
    _rows.launch(out.shape[0], threads, table, ids, out, stream=stream)
