"""Matrix product with a weight stored [n, k]: x [rows, k] -> [rows, n]."""

from __future__ import annotations

import numpy as np

from kernels.cost import NOTHING, Cost
from kernels.gemm import columns, part
from kernels.jit import jit, prange
from kernels.linear.gpu import forward_cuda

__all__ = ["forward", "forward_cuda", "reference", "work"]


def work(rows: int, k: int, n: int, b: int) -> Cost:
    """2 rows k n FLOPs (a multiply and an add each).

    Bytes: the weight [n, k] and x [rows, k] read, out [rows, n] written. Without rows: nothing.
    """
    if not rows:
        return NOTHING
    return Cost(2 * rows * k * n, b * (rows * k + k * n + rows * n))


def reference(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """x [rows, k], weight [n, k] -> [rows, n]."""
    return x @ weight.T


@jit
def _serial(x, weight, out):
    columns(x, 0, x.shape[0], weight, out, 0, 0, weight.shape[0], 0)


@jit(parallel=True)
def _parallel(x, weight, out, threads):
    size = weight.shape[0]
    for c in prange(threads):
        start, stop = part(size, threads, c), part(size, threads, c + 1)
        columns(x, 0, x.shape[0], weight, out, 0, start, stop, start)


def forward(x: np.ndarray, weight: np.ndarray, out: np.ndarray, threads: int = 1) -> None:
    """out [rows, n] = x [rows, k] @ weight [n, k].T, float32; meant for few rows (see `gemm`)."""
    if threads == 1:
        _serial(x, weight, out)
    else:
        _parallel(x, weight, out, threads)
