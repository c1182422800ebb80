"""Sums, maxima and broadcasts among the 32 threads of a warp, and sums over a block.

Every thread of the warp must take part. Compiled, these are shuffles. The simulator has none: there
the threads of a warp are Python threads that leave their values where the others find them.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from kernels.cuda.jit import cuda, device, numba_cuda, primitive, real
from kernels.cuda.simulated import everyone, lane_of

FULL = 0xFFFFFFFF
SIZE = 32

def _compiled(function: Any) -> Any:
    return lambda: numba_cuda().jit(real(function), device=True, inline="always")


@primitive
def warp_sum(x):
    """Sum of the warp's x (float32), in every thread."""
    return np.float32(sum(everyone(x)))


@_compiled
def _warp_sum(x):
    for mask in (16, 8, 4, 2, 1):
        x += cuda.shfl_xor_sync(FULL, x, mask)
    return x


@primitive
def warp_max(x):
    """Maximum of the warp's x, in every thread."""
    return max(everyone(x))


@_compiled
def _warp_max(x):
    for mask in (16, 8, 4, 2, 1):
        x = max(x, cuda.shfl_xor_sync(FULL, x, mask))
    return x


@primitive
def warp_best(x, index):
    """(largest x of the warp, its index): of equal x the lowest index, in every thread."""
    return max(everyone((x, index)), key=lambda pair: (pair[0], -pair[1]))


@_compiled
def _warp_best(x, index):
    for mask in (16, 8, 4, 2, 1):
        other, at = cuda.shfl_xor_sync(FULL, x, mask), cuda.shfl_xor_sync(FULL, index, mask)
        if other > x or (other == x and at < index):
            x, index = other, at
    return x, index


@primitive
def warp_before(x):
    """Sum of x over the lanes below the caller's: an exclusive prefix sum."""
    return type(x)(sum(everyone(x)[: lane_of()]))


@_compiled
def _warp_before(x):
    total = x
    for distance in (1, 2, 4, 8, 16):
        below = cuda.shfl_up_sync(FULL, total, distance)
        if cuda.laneid >= distance:
            total += below
    return total - x


@primitive
def warp_value(x, lane):
    """Lane `lane`'s x, in every thread."""
    return everyone(x)[lane]


@_compiled
def _warp_value(x, lane):
    return cuda.shfl_sync(FULL, x, lane)


@primitive
def sync_warp():
    """Wait for the warp's threads; what they wrote to shared memory is seen."""
    everyone(None)


@_compiled
def _sync_warp():
    cuda.syncwarp()


sync_warp.compiled(_sync_warp)
warp_sum.compiled(_warp_sum)
warp_max.compiled(_warp_max)
warp_best.compiled(_warp_best)
warp_before.compiled(_warp_before)
warp_value.compiled(_warp_value)


@device
def block_sum(x, partial):
    """Sum of the block's x (float32) in every thread; partial: shared float32 [32]. The block is a
    whole number of warps, all of whose threads take part."""
    x = warp_sum(x)
    if cuda.threadIdx.x % SIZE == 0:
        partial[cuda.threadIdx.x // SIZE] = x
    cuda.syncthreads()
    total = np.float32(0)
    for w in range(cuda.blockDim.x // SIZE):
        total += partial[w]
    cuda.syncthreads()  # partial may be used again
    return total
