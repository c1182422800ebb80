"""Dispatch: permute token rows so that each expert's rows are contiguous."""

from __future__ import annotations

import numpy as np

from kernels.cost import EXPERT_ID_BYTES, ROW_BYTES, Cost
from kernels.jit import jit


def work(tokens: int, top_k: int, hidden: int, b: int) -> Cost:
    """No arithmetic. Bytes: each token row read once and written k times; expert ids read for the
    count and again for the permutation, the row of each copy written for combine."""
    routes = tokens * top_k * (2 * EXPERT_ID_BYTES + ROW_BYTES)
    return Cost(0, b * tokens * hidden * (1 + top_k) + routes)


def reference(x: np.ndarray, ids: np.ndarray, experts: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Offsets [experts + 1], positions [tokens, k] and the permuted rows [tokens * k, hidden].

    Expert e owns rows offsets[e] to offsets[e + 1], in token order; copy j of token t is row
    positions[t, j].
    """
    offsets = np.concatenate([[0], np.cumsum(np.bincount(ids.ravel(), minlength=experts))])
    order = np.argsort(ids.ravel(), kind="stable")
    positions = np.empty(ids.size, np.int32)
    positions[order] = np.arange(ids.size)
    return offsets, positions.reshape(ids.shape), x[order // ids.shape[1]]


@jit
def forward(x, ids, offsets, positions, out):
    """Count, scan, permute: x [tokens, hidden], ids [tokens, k] int16 -> offsets [experts + 1] int32,
    positions [tokens, k] int32, out [tokens * k, hidden]."""
    tokens, top_k = ids.shape
    hidden = x.shape[1]
    offsets[:] = 0
    for t in range(tokens):
        for j in range(top_k):
            offsets[ids[t, j] + 1] += 1
    for e in range(1, offsets.shape[0]):
        offsets[e] += offsets[e - 1]
    for t in range(tokens):
        row = x[t]
        for j in range(top_k):
            e = ids[t, j]
            position = offsets[e]
            offsets[e] = position + 1
            positions[t, j] = position
            to = out[position]
            for h in range(hidden):
                to[h] = row[h]
    for e in range(offsets.shape[0] - 1, 0, -1):  # each entry has become the next one's start
        offsets[e] = offsets[e - 1]
    offsets[0] = 0
