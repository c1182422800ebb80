"""Combine: weighted sum of each token's k expert outputs, added to the residual stream."""

from __future__ import annotations

from typing import Any

import numpy as np

from kernels.cost import ROUTING_WEIGHT_BYTES, ROW_BYTES, Cost
from kernels.cuda.element import narrow, widen
from kernels.cuda.jit import cuda, kernel
from kernels.jit import inline, jit, prange


def work(tokens: int, top_k: int, hidden: int, b: int) -> Cost:
    """k products and k sums for each element of [tokens, hidden], the residual being the first addend.

    Bytes: k expert rows and the residual read, the residual written, row numbers and weights read.
    """
    routes = tokens * top_k * (ROW_BYTES + ROUTING_WEIGHT_BYTES)
    return Cost(2 * tokens * top_k * hidden, b * tokens * hidden * (top_k + 2) + routes)


def reference(rows: np.ndarray, positions: np.ndarray, weights: np.ndarray, hidden: np.ndarray) -> np.ndarray:
    """hidden [tokens, hidden] + sum over j of weights[t, j] * rows[positions[t, j]]."""
    for j in range(positions.shape[1]):
        hidden = hidden + rows[positions[:, j]] * weights[:, j, None]
    return hidden


PARALLEL = 1 << 19
"""Elements of expert rows from which a second thread is worth waking."""


@inline(reorder=True)
def _add(rows, positions, weights, t, j, count, hidden):
    """hidden[t] += weights times expert rows j to j + count; a constant count, so that they are read
    side by side: four streams keep more of memory's latency hidden than one."""
    a, p = np.uintp(positions[t, j]), weights[t, j]
    b, q = np.uintp(positions[t, j + (count > 1)]), weights[t, j + (count > 1)]
    c, r = np.uintp(positions[t, j + 2 * (count > 2)]), weights[t, j + 2 * (count > 2)]
    d, s = np.uintp(positions[t, j + 3 * (count > 2)]), weights[t, j + 3 * (count > 2)]
    for h in range(np.uintp(hidden.shape[1])):
        if count == 4:
            hidden[t, h] += p * rows[a, h] + q * rows[b, h] + r * rows[c, h] + s * rows[d, h]
        elif count == 2:
            hidden[t, h] += p * rows[a, h] + q * rows[b, h]
        else:
            hidden[t, h] += p * rows[a, h]


@jit
def _some(rows, positions, weights, hidden, start, stop):
    top_k = positions.shape[1]
    for t in range(np.uintp(start), np.uintp(stop)):
        fours = top_k // 4 * 4
        for j in range(0, fours, 4):
            _add(rows, positions, weights, t, j, 4, hidden)
        if top_k - fours >= 2:
            _add(rows, positions, weights, t, fours, 2, hidden)
        if top_k % 2:
            _add(rows, positions, weights, t, top_k - 1, 1, hidden)


@jit(parallel=True)
def _parallel(rows, positions, weights, hidden, threads):
    tokens = positions.shape[0]
    for c in prange(threads):
        _some(rows, positions, weights, hidden, tokens * c // threads, tokens * (c + 1) // threads)


def forward(rows: np.ndarray, positions: np.ndarray, weights: np.ndarray, hidden: np.ndarray, threads: int = 1) -> None:
    """The same, in place: rows [tokens * k, hidden], hidden [tokens, hidden], float32."""
    if threads == 1 or rows.size < PARALLEL:
        _some(rows, positions, weights, hidden, 0, len(hidden))
    else:
        _parallel(rows, positions, weights, hidden, threads)


@kernel("element[:,::1], int32[:,::1], float32[:,::1], element[:,::1]")
def _sums(rows, positions, weights, hidden):
    """A block for each token and part of its row; the sum is float32 throughout."""
    t, h = cuda.blockIdx.x, cuda.blockIdx.y * cuda.blockDim.x + cuda.threadIdx.x
    if h < hidden.shape[1]:
        total = widen(hidden[t, h])
        for j in range(positions.shape[1]):
            total += weights[t, j] * widen(rows[positions[t, j], h])
        hidden[t, h] = narrow(hidden, total)


def forward_cuda(rows: Any, positions: Any, weights: Any, hidden: Any, *, stream: Any = 0, threads: int = 256) -> None:
    """`forward` on the GPU, for any element type; weights are float32."""
    tokens, width = hidden.shape
    _sums.launch((tokens, -(-width // threads)), threads, rows, positions, weights, hidden, stream=stream)
