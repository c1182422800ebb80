"""The product that tiles of the grouped form are made of: result [64, 64] = rows of x times rows of w.

In fp32 it runs on CUDA cores, by the register tiles of `kernels.cuda.tiles`; narrower elements go to
tensor cores, through the CUDA C++ of `kernels/cuda/mma.cu`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from kernels.cuda import mma
from kernels.cuda.jit import cuda, device, numba_cuda, primitive, real
from kernels.cuda.tiles import BLOCK, PAD, STEP, SUMS, accumulate
from kernels.cuda.tiles import SIDE as EACH
from kernels.cuda.wide import element

THREADS = BLOCK
SIDE = 64
STRIDE = SIDE + PAD
"""Elements between rows of the result: the pad keeps them in different banks."""

RESULT = 5120
"""Elements of the result's memory, 20 KiB: on tensor cores, operands on their way stand there first."""

NOWHERE = -1
"""In place of where a row begins: it is taken as zero."""


@device(inline="always")
def _fetch(source, at, base, k, to):
    """to[c, r] = source[at[r] + base + c], zero where the row is nowhere or ends before."""
    for i in range(SIDE * STEP // THREADS):
        n = cuda.threadIdx.x + i * THREADS
        r, c = n // STEP, n % STEP
        value = np.float32(0)
        if at[r] >= 0 and base + c < k:
            value = element(source, at[r] + base + c)
        to[c, r] = value


@primitive
def product(x, x_at, w, w_at, k, result, xs, ws):
    """result[r * STRIDE + c] = x[x_at[r] : ... + k] . w[w_at[c] : ... + k] for all 64 x 64; x and w are taken as flat.

    x_at, w_at: shared int64 [64], NOWHERE for a row of zeros; result: shared float32 [RESULT], 16-byte aligned. All
    threads of the block call it, and see the result when it returns. This is the form in fp32; xs, ws:
    shared float32, as OPERAND.
    """
    sums = cuda.local.array(SUMS, np.float32)
    y, z = cuda.threadIdx.x // EACH, cuda.threadIdx.x % EACH
    for i in range(EACH):
        for j in range(EACH):
            sums[i, j] = np.float32(0)
    cuda.syncthreads()
    for base in range(0, k, STEP):
        _fetch(x, x_at, base, k, xs)
        _fetch(w, w_at, base, k, ws)
        cuda.syncthreads()
        accumulate(xs, ws, sums)
        cuda.syncthreads()
    for i in range(EACH):
        for j in range(EACH):
            result[(y + i * EACH) * STRIDE + z + j * EACH] = sums[i, j]
    cuda.syncthreads()


@product.compiled
def _product() -> Any:
    from numba.cuda import types
    from numba.cuda.extending import overload

    module = numba_cuda()
    cores = module.jit(real(product.py_func), device=True)
    half, bfloat = mma.declared("product_fp16"), mma.declared("product_bf16")
    pointer = mma.pointer()

    def tile(x, x_at, w, w_at, k, result, xs, ws):
        raise NotImplementedError

    @overload(tile)
    def typed(x, x_at, w, w_at, k, result, xs, ws):
        if x.dtype == types.float32:
            return lambda x, x_at, w, w_at, k, result, xs, ws: cores(x, x_at, w, w_at, k, result, xs, ws)
        linked = half if x.dtype == types.float16 else bfloat

        def on_tensor_cores(x, x_at, w, w_at, k, result, xs, ws):
            linked(pointer(x), pointer(x_at), pointer(w), pointer(w_at), k, pointer(result))

        return on_tensor_cores

    return tile
