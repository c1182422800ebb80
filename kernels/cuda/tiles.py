"""Register tiles of x [rows, k] times w [n, k] transposed on CUDA cores: 64 x 64 outputs a block.

64 threads keep 8 x 8 sums each, so that 16 values from shared memory feed 64 products; both
operands pass through shared memory 16 columns at a time, as float32 whatever their element type.
"""

from __future__ import annotations

import numpy as np

from kernels.cuda.element import narrow, widen
from kernels.cuda.jit import cuda, device

ROWS = COLUMNS = BLOCK = 64
STEP = 16
PAD = 4
SIDE = 8
"""Rows and columns of a thread's sums, 8 apart: thread (i, j) has rows i, i + 8, ..."""

OPERAND, SUMS = (STEP, ROWS + PAD), (SIDE, SIDE)
"""Shapes of the shared float32 arrays xs and ws, and of the local one, of `multiply`."""


@device(inline="always")
def _fetch(source, first, stop, start, k, base, to):
    """to[c, r] = source[first + r, base + c], zero outside; row r of the source begins at start + r k."""
    for i in range(ROWS * STEP // BLOCK):
        at = cuda.threadIdx.x + i * BLOCK
        r, c = at // STEP, at % STEP
        value = np.float32(0)
        if first + r < stop and base + c < k:
            value = widen(source[start + np.int64(first + r) * k + base + c])
        to[c, r] = value


@device(inline="always")
def accumulate(xs, ws, sums):
    """sums += the thread's part of the product of both operands in shared memory."""
    y, z = cuda.threadIdx.x // SIDE, cuda.threadIdx.x % SIDE
    for c in range(STEP):
        for i in range(SIDE):
            a = xs[c, y + i * SIDE]
            for j in range(SIDE):
                sums[i, j] += a * ws[c, z + j * SIDE]


@device(inline="always")
def multiply(x, row, row_stop, w, start, col, col_stop, k, xs, ws, sums):
    """sums[i, j] = x[row + ...] . w[col + ...] of the thread's 8 x 8 outputs.

    x and w are flat; row r of x begins at r k, row n of w at start + n k. sums: local float32 [8, 8].
    """
    for i in range(SIDE):
        for j in range(SIDE):
            sums[i, j] = np.float32(0)
    for base in range(0, k, STEP):
        _fetch(x, row, row_stop, np.int64(0), k, base, xs)
        _fetch(w, col, col_stop, start, k, base, ws)
        cuda.syncthreads()
        accumulate(xs, ws, sums)
        cuda.syncthreads()


@device(inline="always")
def store(sums, out, row, row_stop, col, col_stop):
    """Write the thread's sums to rows row + ... below row_stop, columns col + ... below col_stop."""
    y, z = cuda.threadIdx.x // SIDE, cuda.threadIdx.x % SIDE
    for i in range(SIDE):
        for j in range(SIDE):
            r, c = row + y + i * SIDE, col + z + j * SIDE
            if r < row_stop and c < col_stop:
                out[r, c] = narrow(out, sums[i, j])
