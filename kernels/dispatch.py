"""Dispatch: permute token rows so that each expert's rows are contiguous."""

from __future__ import annotations

from typing import Any

import numpy as np

from kernels.cost import EXPERT_ID_BYTES, ROW_BYTES, Cost
from kernels.cuda.jit import cuda, kernel
from kernels.jit import jit, prange


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


PARALLEL = 1 << 19
"""Elements of permuted rows from which a second thread is worth waking."""


@jit
def place(ids, offsets, positions):
    """Count and scan: ids [tokens, k] int16 -> offsets [experts + 1] int32, positions [tokens, k] int32."""
    tokens, top_k = ids.shape
    offsets[:] = 0
    for t in range(tokens):
        for j in range(top_k):
            offsets[ids[t, j] + 1] += 1
    for e in range(1, offsets.shape[0]):
        offsets[e] += offsets[e - 1]
    for t in range(tokens):
        for j in range(top_k):
            e = ids[t, j]
            positions[t, j] = offsets[e]
            offsets[e] += 1
    for e in range(offsets.shape[0] - 1, 0, -1):  # each entry has become the next one's start
        offsets[e] = offsets[e - 1]
    offsets[0] = 0


@jit
def _copy(x, positions, out, start, stop):
    for t in range(start, stop):
        row = x[t]
        for j in range(positions.shape[1]):
            to = out[positions[t, j]]
            for h in range(x.shape[1]):
                to[h] = row[h]


@jit
def _serial(x, ids, offsets, positions, out):
    place(ids, offsets, positions)
    _copy(x, positions, out, 0, x.shape[0])


@jit(parallel=True)
def _parallel(x, ids, offsets, positions, out, threads):
    tokens = x.shape[0]
    place(ids, offsets, positions)
    for c in prange(threads):
        _copy(x, positions, out, tokens * c // threads, tokens * (c + 1) // threads)


def forward(
    x: np.ndarray, ids: np.ndarray, offsets: np.ndarray, positions: np.ndarray, out: np.ndarray, threads: int = 1
) -> None:
    """`place`, then permute: x [tokens, hidden] -> out [tokens * k, hidden]."""
    if threads == 1 or out.size < PARALLEL:
        _serial(x, ids, offsets, positions, out)
    else:
        _parallel(x, ids, offsets, positions, out, threads)


def permute(x: np.ndarray, positions: np.ndarray, out: np.ndarray) -> None:
    """The second half alone: copies of row t of x [tokens, hidden] to rows positions[t] [k] of `out`, which may have others."""
    _copy(x, positions, out, 0, len(x))


CHUNK = 256
"""Routes that one block counts and places."""


@kernel("int16[::1], int32[:,::1]")
def _count(ids, counts):
    """counts[c, e]: routes of chunk c to expert e. A block for each chunk, a thread for an expert in turn."""
    c, e = cuda.blockIdx.x, cuda.threadIdx.x
    first, stop = c * CHUNK, min((c + 1) * CHUNK, ids.shape[0])
    while e < counts.shape[1]:
        number = 0
        for r in range(first, stop):
            number += ids[r] == e
        counts[c, e] = number
        e += cuda.blockDim.x


@kernel("int32[:,::1], int32[::1]")
def _scan(counts, offsets):
    """Counts become the first row of each chunk's routes to each expert; one block. Each thread sums
    one expert's chunks, then one thread the experts."""
    chunks, experts = counts.shape
    e = cuda.threadIdx.x
    while e < experts:
        total = 0
        for c in range(chunks):
            total += counts[c, e]
        offsets[e + 1] = total
        e += cuda.blockDim.x
    cuda.syncthreads()
    if cuda.threadIdx.x == 0:
        offsets[0] = 0
        for e in range(experts):
            offsets[e + 1] += offsets[e]
    cuda.syncthreads()
    e = cuda.threadIdx.x
    while e < experts:
        first = offsets[e]
        for c in range(chunks):
            number = counts[c, e]
            counts[c, e] = first
            first += number
        e += cuda.blockDim.x


@kernel("int16[::1], int32[:,::1], int32[::1]")
def _place(ids, starts, positions):
    """positions[r] = start of its chunk and expert + routes to the same expert before it in the chunk."""
    c = cuda.blockIdx.x
    first, stop = c * CHUNK, min((c + 1) * CHUNK, ids.shape[0])
    r = first + cuda.threadIdx.x
    while r < stop:
        expert, before = ids[r], 0
        for other in range(first, r):
            before += ids[other] == expert
        positions[r] = starts[c, expert] + before
        r += cuda.blockDim.x


@kernel("element[:,::1], int32[:,::1], element[:,::1]")
def _permute(x, positions, out):
    """A block for each route copies its token's row."""
    t, j, h = cuda.blockIdx.x, cuda.blockIdx.y, cuda.threadIdx.x
    row = positions[t, j]
    while h < x.shape[1]:
        out[row, h] = x[t, h]
        h += cuda.blockDim.x


def counts_shape(tokens: int, top_k: int, experts: int) -> tuple[int, int]:
    """Shape of the int32 scratch `counts` of `forward_cuda`."""
    return -(-tokens * top_k // CHUNK), experts


def forward_cuda(
    x: Any, ids: Any, offsets: Any, positions: Any, out: Any, counts: Any, *, stream: Any = 0, threads: int = CHUNK
) -> None:
    """`forward` on the GPU, for any element type; counts: int32 scratch of `counts_shape`.

    Rows of an expert are in token order, as on the CPU: no atomics decide.
    """
    chunks, flat_ids, flat_positions = counts.shape[0], ids.reshape(-1), positions.reshape(-1)
    _count.launch(chunks, threads, flat_ids, counts, stream=stream)
    _scan.launch(1, threads, counts, offsets, stream=stream)
    _place.launch(chunks, threads, flat_ids, counts, flat_positions, stream=stream)
    _permute.launch(ids.shape, threads, x, positions, out, stream=stream)
