"""Paged weight gather: pages that lie anywhere in an arena, in order, to one contiguous place."""

from __future__ import annotations

from typing import Any

import numpy as np

from kernels.cost import ROW_BYTES, Cost
from kernels.cuda.jit import cuda, kernel
from kernels.jit import jit


def work(pages: int, page_bytes: int) -> Cost:
    """No arithmetic. Bytes: each page read and written, its int32 number read."""
    return Cost(0, pages * (2 * page_bytes + ROW_BYTES))


def reference(arena: np.ndarray, pages: np.ndarray) -> np.ndarray:
    """arena [slots, words], pages [n] -> [n, words]."""
    return arena[pages]


@jit
def forward(arena, pages, out):
    """out [n, words] = rows `pages` [n] int32 of arena [slots, words], both int32 (any bytes)."""
    for p in range(pages.shape[0]):
        at = pages[p]
        for i in range(np.uintp(arena.shape[1])):
            out[p, i] = arena[at, i]


@kernel("int32[:,::1], int32[::1], int32[:,::1]")
def _copy(arena, pages, out):
    """Blocks (x, y): part x of page y; four words of a thread are in flight at once."""
    p, words, step = cuda.blockIdx.y, arena.shape[1], cuda.gridDim.x * cuda.blockDim.x
    i, at = cuda.grid(1), pages[p]
    while i + 3 * step < words:
        a, b, c, d = arena[at, i], arena[at, i + step], arena[at, i + 2 * step], arena[at, i + 3 * step]
        out[p, i], out[p, i + step], out[p, i + 2 * step], out[p, i + 3 * step] = a, b, c, d
        i += 4 * step
    while i < words:
        out[p, i] = arena[at, i]
        i += step


def forward_cuda(arena: Any, pages: Any, out: Any, *, stream: Any = 0, threads: int = 256, parts: int = 16) -> None:
    """`forward` on the GPU; `parts` blocks share a page."""
    _copy.launch((parts, pages.shape[0]), threads, arena, pages, out, stream=stream)
