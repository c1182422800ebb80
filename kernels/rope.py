"""Rotary position embedding, in place: [tokens, heads * head_dim] (Su et al., arXiv 2104.09864)."""

from __future__ import annotations

from typing import Any

import numpy as np

from kernels.cost import Cost
from kernels.cuda.element import narrow, widen
from kernels.cuda.jit import cuda, kernel
from kernels.jit import jit


def work(tokens: int, heads: int, head_dim: int, b: int) -> Cost:
    """`heads` counts every head that is rotated: query and key heads.

    A pair of elements takes 4 products and 2 sums: 3 head_dim for each head and token.
    Bytes: rows read and written, one row [head_dim] of cosines and sines for each token.
    """
    return Cost(3 * tokens * heads * head_dim, b * (2 * tokens * heads * head_dim + tokens * head_dim))


def table(theta: float, head_dim: int, positions: int) -> np.ndarray:
    """Cosines and sines [positions, head_dim], the cosines in the first half of a row.

    Angles are rounded to float32 before the cosine, as transformers does: at large positions that
    differs from exact angles by more than the rounding of everything else.
    """
    inverse = (1.0 / theta ** (np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)).astype(np.float32)
    angles = np.arange(positions, dtype=np.float32)[:, None] * inverse
    return np.concatenate([np.cos(angles), np.sin(angles)], axis=1)


def reference(x: np.ndarray, positions: np.ndarray, cos_sin: np.ndarray, heads: int) -> np.ndarray:
    """x [tokens, heads * head_dim] rotated: element i of a head pairs with i + head_dim / 2."""
    head_dim = x.shape[1] // heads
    a, b = np.split(x.reshape(len(x), heads, head_dim), 2, axis=-1)
    cos, sin = np.split(cos_sin[positions][:, None].astype(x.dtype), 2, axis=-1)
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).reshape(x.shape)


@jit
def forward(rows, positions, cos_sin, heads):
    """Rotate the first `heads` heads of each row of `rows` in place (query and key heads of QKV rows).

    positions [tokens] int64, cos_sin [positions, head_dim] of `table`.
    """
    head_dim = cos_sin.shape[1]
    half = head_dim // 2
    for t in range(rows.shape[0]):
        row, angle = rows[t], cos_sin[positions[t]]
        for h in range(heads):
            low = row[h * head_dim : h * head_dim + half]
            high = row[h * head_dim + half : (h + 1) * head_dim]
            for i in range(half):
                a, b, cos, sin = low[i], high[i], angle[i], angle[half + i]
                low[i] = a * cos - b * sin
                high[i] = b * cos + a * sin


@kernel("element[:,::1], int64[::1], float32[:,::1], int32")
def _rotate(rows, positions, cos_sin, heads):
    """A block for each token, a thread for each pair of elements in turn."""
    t, half = cuda.blockIdx.x, cos_sin.shape[1] // 2
    position, i = positions[t], cuda.threadIdx.x
    while i < heads * half:
        low = i // half * 2 * half + i % half
        a, b = widen(rows[t, low]), widen(rows[t, low + half])
        cos, sin = cos_sin[position, i % half], cos_sin[position, half + i % half]
        rows[t, low] = narrow(rows, a * cos - b * sin)
        rows[t, low + half] = narrow(rows, b * cos + a * sin)
        i += cuda.blockDim.x


def forward_cuda(rows: Any, positions: Any, cos_sin: Any, heads: int, *, stream: Any = 0, threads: int = 256) -> None:
    """`forward` on the GPU, for any element type; cos_sin is float32."""
    _rotate.launch(rows.shape[0], threads, rows, positions, cos_sin, heads, stream=stream)
