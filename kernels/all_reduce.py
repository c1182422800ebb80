"""All-reduce: the sum of every rank's buffer, in every rank: [ranks, elements] -> the same.

Ring algorithm (Patarasuk and Yuan, JPDC 2009): ranks - 1 steps of reduce-scatter, in each of which
every rank sends one part of `elements / ranks` to its neighbour, who adds it; ranks - 1 steps of
all-gather, in which the finished parts go round. The formulas are of that; here, where all buffers
are in one memory (the ranks of one host, or peers over NVLink), each element is summed where it lies.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from kernels.cost import NOTHING, Cost
from kernels.cuda.element import narrow, widen
from kernels.cuda.jit import cuda, kernel
from kernels.jit import jit


def work(ranks: int, elements: int, b: int) -> Cost:
    """All ranks together: (ranks - 1) elements additions; 2 (ranks - 1) elements sent over links, which
    each rank does a share of. One rank: nothing. `ring_work` is one rank's share."""
    if ranks == 1:
        return NOTHING
    return Cost((ranks - 1) * elements, 2 * (ranks - 1) * elements * b)


def ring_work(ranks: int, elements: int, b: int) -> Cost:
    """One rank: (ranks - 1) / ranks elements additions, twice as many elements sent (and received)."""
    whole = work(ranks, elements, b)
    return Cost(whole.flops / ranks, whole.bytes / ranks)


def reference(buffers: np.ndarray) -> tuple[np.ndarray, int]:
    """The ring, step by step: (buffers [ranks, elements] afterwards, elements sent)."""
    ranks = len(buffers)
    parts = [list(np.array_split(row, ranks)) for row in buffers]
    sent = 0
    for step in range(2 * (ranks - 1)):
        messages = [(r, (r - step) % ranks, parts[r][(r - step) % ranks]) for r in range(ranks)]
        for r, part, message in messages:
            to = parts[(r + 1) % ranks]
            to[part] = to[part] + message if step < ranks - 1 else message
            sent += len(message)
    return np.stack([np.concatenate(row) for row in parts]), sent


@jit
def forward(buffers):
    """Every row of buffers [ranks, elements] float32 becomes their sum, in place."""
    ranks, elements = buffers.shape
    for r in range(1, ranks):
        for i in range(np.uintp(elements)):
            buffers[0, i] += buffers[r, i]
    for r in range(1, ranks):
        for i in range(np.uintp(elements)):
            buffers[r, i] = buffers[0, i]


@kernel("element[:,::1]")
def _sum(buffers):
    """A thread for each element: read from all ranks, summed in float32, written to all ranks."""
    i = cuda.grid(1)
    if i < buffers.shape[1]:
        total = np.float32(0)
        for r in range(buffers.shape[0]):
            total += widen(buffers[r, i])
        for r in range(buffers.shape[0]):
            buffers[r, i] = narrow(buffers, total)


def forward_cuda(buffers: Any, *, stream: Any = 0, threads: int = 256) -> None:
    """`forward` on the GPU for any element type: ranks that share one GPU's memory."""
    _sum.launch(-(-buffers.shape[1] // threads), threads, buffers, stream=stream)
