"""Root mean square normalisation: [tokens, hidden] -> [tokens, hidden].

out[t, h] = x[t, h] / sqrt(mean(x[t]^2) + eps) * weight[h]   (Zhang and Sennrich, arXiv 1910.07467)
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from kernels.cost import Cost
from kernels.cuda.element import narrow, widen
from kernels.cuda.jit import cuda, kernel
from kernels.cuda.warp import block_sum
from kernels.jit import jit


def work(tokens: int, hidden: int, b: int) -> Cost:
    """A row: square, sum, scale and weight are `hidden` each; mean, eps, sqrt and reciprocal 4.

    Bytes: x read, out written, the weight vector read.
    """
    return Cost(tokens * (4 * hidden + 4), b * (2 * tokens * hidden + hidden))


def reference(x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
    """Plain form, in the dtype of its inputs."""
    mean = np.add.reduce(x * x, axis=-1, keepdims=True) / x.shape[-1]
    return x * (1 / np.sqrt(mean + eps)) * weight


@jit
def forward(x, weight, eps, out):
    """out [tokens, hidden] from x [tokens, hidden] and weight [hidden], float32."""
    tokens, hidden = x.shape
    for t in range(tokens):
        row, result = x[t], out[t]
        total = np.float32(0)
        for h in range(hidden):
            total += row[h] * row[h]
        scale = np.float32(1 / np.sqrt(total / np.float32(hidden) + np.float32(eps)))
        for h in range(hidden):
            result[h] = row[h] * scale * weight[h]


@kernel("element[:,::1], element[::1], float32, element[:,::1]")
def _rows(x, weight, eps, out):
    """A block for each token."""
    partial = cuda.shared.array(32, np.float32)
    t, hidden, step = cuda.blockIdx.x, x.shape[1], cuda.blockDim.x
    total, h = np.float32(0), cuda.threadIdx.x
    while h < hidden:
        value = widen(x[t, h])
        total += value * value
        h += step
    scale = np.float32(1) / math.sqrt(block_sum(total, partial) / np.float32(hidden) + eps)
    h = cuda.threadIdx.x
    while h < hidden:
        out[t, h] = narrow(out, widen(x[t, h]) * scale * widen(weight[h]))
        h += step


def forward_cuda(x: Any, weight: Any, eps: float, out: Any, *, stream: Any = 0, threads: int = 256) -> None:
    """`forward` on the GPU, for any element type; out may be x."""
    _rows.launch(x.shape[0], threads, x, weight, eps, out, stream=stream)
