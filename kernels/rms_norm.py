"""Root mean square normalisation: [tokens, hidden] -> [tokens, hidden].

out[t, h] = x[t, h] / sqrt(mean(x[t]^2) + eps) * weight[h]   (Zhang and Sennrich, arXiv 1910.07467)
"""

from __future__ import annotations

import numpy as np

from kernels.cost import Cost
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
