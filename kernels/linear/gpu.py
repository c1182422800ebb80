"""Matrix product on the GPU: a warp for each weight row while rows are few, register tiles above."""

from __future__ import annotations

from typing import Any

import numpy as np

from kernels.cuda.element import narrow
from kernels.cuda.jit import cuda, kernel
from kernels.cuda.stream import dot1, dot4
from kernels.cuda.tiles import BLOCK, COLUMNS, OPERAND, ROWS, SUMS, multiply, store
from kernels.cuda.warp import SIZE, warp_sum

FEW = 8
"""Up to as many rows, the weight is streamed once for each four of them."""


@kernel("element[:,::1], element[:,::1], element[:,::1]", hot=True)
def _stream(x, weight, out):
    """A warp for each row of the weight; k is a multiple of 8."""
    warps = cuda.blockDim.x // SIZE
    lane, n = cuda.threadIdx.x % SIZE, cuda.blockIdx.x * warps + cuda.threadIdx.x // SIZE
    rows, k = x.shape[0], x.shape[1]
    if n >= weight.shape[0]:
        return
    if rows == 1:
        total = warp_sum(dot1(x, 0, weight, n * k, k, lane))
        if lane == 0:
            out[0, n] = narrow(out, total)
        return
    for row in range(0, rows, 4):
        a, b, c, d = dot4(x, row * k, k, min(3, rows - 1 - row), weight, n * k, k, lane)
        a, b, c, d = warp_sum(a), warp_sum(b), warp_sum(c), warp_sum(d)
        if lane == 0:
            out[row, n] = narrow(out, a)
            if row + 1 < rows:
                out[row + 1, n] = narrow(out, b)
            if row + 2 < rows:
                out[row + 2, n] = narrow(out, c)
            if row + 3 < rows:
                out[row + 3, n] = narrow(out, d)


@kernel("element[::1], element[::1], int32, element[:,::1]", hot=True)
def _tiles(x, weight, k, out):
    """A block for each tile of the output; x and weight are flat."""
    xs = cuda.shared.array(OPERAND, np.float32)
    ws = cuda.shared.array(OPERAND, np.float32)
    sums = cuda.local.array(SUMS, np.float32)
    row, col, (rows, n) = cuda.blockIdx.y * ROWS, cuda.blockIdx.x * COLUMNS, out.shape
    multiply(x, row, rows, weight, np.int64(0), col, n, k, xs, ws, sums)
    store(sums, out, row, rows, col, n)


def forward_cuda(x: Any, weight: Any, out: Any, *, stream: Any = 0, threads: int = 128) -> None:
    """out [rows, n] = x [rows, k] @ weight [n, k].T on the GPU, for any element type, sums in float32."""
    (rows, k), n = x.shape, weight.shape[0]
    if rows <= FEW and k % 8 == 0:
        _stream.launch(-(-n * SIZE // threads), threads, x, weight, out, stream=stream)
    else:
        _tiles.launch((-(-n // COLUMNS), -(-rows // ROWS)), BLOCK, x.reshape(-1), weight.reshape(-1), k, out, stream=stream)
