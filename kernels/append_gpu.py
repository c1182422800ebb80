"""K and V of new rows to the pages of a cache on the GPU."""

from __future__ import annotations

from typing import Any

from kernels.cuda.jit import cuda, kernel


@kernel("element[:,::1], int64[::1], int64[::1], int64[:,::1], int32, int32, element[:,:,::1], element[:,:,::1]")
def _append(qkv, offsets, lengths, table, first, width, k_cache, v_cache):
    """A block for each new row: its K and V to their cache rows."""
    i, s, c, page = cuda.blockIdx.x, 0, cuda.threadIdx.x, k_cache.shape[1]
    while offsets[s + 1] <= i:
        s += 1
    t = lengths[s] + i - offsets[s]
    to = table[s, t // page]
    while c < width:
        k_cache[to, t % page, c] = qkv[i, first + c]
        v_cache[to, t % page, c] = qkv[i, first + width + c]
        c += cuda.blockDim.x


def append_cuda(
    qkv: Any, k_cache: Any, v_cache: Any, table: Any, offsets: Any, lengths: Any, *, stream: Any = 0, threads: int = 128
) -> None:
    """K and V of new rows to the cache: row offsets[s] + i of qkv is entry lengths[s] + i of sequence s.

    qkv [rows, (heads + 2 kv_heads) D]; k_cache, v_cache [pages, page, kv_heads D]; table [sequences,
    pages of a sequence], offsets [sequences + 1], lengths [sequences] int64.
    """
    width = k_cache.shape[2]
    first = qkv.shape[1] - 2 * width
    _append.launch(qkv.shape[0], threads, qkv, offsets, lengths, table, first, width, k_cache, v_cache, stream=stream)
