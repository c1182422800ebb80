"""Products of rows and weights on the cores: by whose code, and on how many threads of the calling one.

They go through our own streaming tiles (`kernels.gemm`) or the BLAS that torch brings, see `streamed_rows`.
"""

from __future__ import annotations

import functools

import numpy as np
import torch

from kernels import linear


def set_threads(count: int) -> None:
    """Number of threads that products and kernels called from this thread may use.

    torch first copies the process-wide count into a thread on that thread's first query, so it is
    asked before it is told; afterwards both counts belong to the calling thread alone. Numba goes
    first: when it starts its pool it tells OpenMP another count.
    """
    import numba

    numba.set_num_threads(min(count, numba.config.NUMBA_NUM_THREADS))
    torch.get_num_threads()
    torch.set_num_threads(count)


def thread_count() -> int:
    """Threads for kernels; 1 where Numba has no OpenMP, its own pool being unsafe under several lanes."""
    return torch.get_num_threads() if has_openmp() else 1


@functools.cache
def has_openmp() -> bool:
    try:
        from numba.np.ufunc import omppool  # noqa: F401
    except ImportError:
        return False
    return True


@functools.cache
def streamed_rows() -> int:
    """Up to as many rows, `kernels.gemm` is used instead of the BLAS.

    Its tiles need 32 vector registers. Measured on a Zen 5 core (GFLOP/s at 1, 8, 64, 2048 rows): with
    AVX-512 18, 63, 149, 152, and MKL 8, 37, 85, 87; compiled for AVX2 16, 39, 60, 56. On
    other AVX-512 processors MKL is assumed to be at its best with many rows.
    """
    import llvmlite.binding as llvm

    if not llvm.get_host_cpu_features().get("avx512f", False):
        return 8
    return 1 << 30 if llvm.get_host_cpu_name().startswith("znver") else 64


def product(x: np.ndarray, weight: np.ndarray, out: np.ndarray) -> None:
    """out [rows, n] = x [rows, k] @ weight [n, k].T"""
    if len(x) <= streamed_rows():
        linear.forward(x, weight, out, thread_count() if weight.size >= 1 << 16 else 1)
    else:
        torch.mm(torch.from_numpy(x), torch.from_numpy(weight).t(), out=torch.from_numpy(out))
