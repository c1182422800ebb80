"""Rotary position embedding, in place: [tokens, heads * head_dim] (Su et al., arXiv 2104.09864)."""

from __future__ import annotations

from kernels.cost import Cost


def work(tokens: int, heads: int, head_dim: int, b: int) -> Cost:
    """`heads` counts every head that is rotated: query and key heads.

    A pair of elements takes 4 products and 2 sums: 3 head_dim for each head and token.
    Bytes: rows read and written, one row [head_dim] of cosines and sines for each token.
    """
    return Cost(3 * tokens * heads * head_dim, b * (2 * tokens * heads * head_dim + tokens * head_dim))
