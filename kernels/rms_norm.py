"""Root mean square normalisation: [tokens, hidden] -> [tokens, hidden].

out[t, h] = x[t, h] / sqrt(mean(x[t]^2) + eps) * weight[h]   (Zhang and Sennrich, arXiv 1910.07467)
"""

from __future__ import annotations

from kernels.cost import Cost


def work(tokens: int, hidden: int, b: int) -> Cost:
    """A row: square, sum, scale and weight are `hidden` each; mean, eps, sqrt and reciprocal 4.

    Bytes: x read, out written, the weight vector read.
    """
    return Cost(tokens * (4 * hidden + 4), b * (2 * tokens * hidden + hidden))
