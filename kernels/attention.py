"""Grouped-query attention (Ainslie et al., arXiv 2305.13245): decode over a KV cache, causal prefill."""

from __future__ import annotations

import numpy as np

from kernels.cost import Cost


def _flops(queries: int, pairs: int, heads: int, head_dim: int) -> int:
    """A query-key pair and head: 2 D for q.k, 2 D for p.v, max, subtract, exp and sum. A query and
    head: D to scale q and D to divide the output (the sums are divided once, at the end)."""
    return heads * (pairs * (4 * head_dim + 4) + 2 * queries * head_dim)


def decode_work(sequences: int, context: int, heads: int, kv_heads: int, head_dim: int, b: int) -> Cost:
    """`context`: KV entries read, summed over the sequences, each sequence's new one included.

    Bytes: the caches' K and V entries read (2 context kv_heads head_dim); the QKV row of each
    sequence read, its K and V appended, its output written.
    """
    cache = 2 * context * kv_heads * head_dim
    rows = sequences * head_dim * ((heads + 2 * kv_heads) + 2 * kv_heads + heads)
    return Cost(_flops(sequences, context, heads, head_dim), b * (cache + rows))


def prefill_work(tokens: int, pairs: int, heads: int, kv_heads: int, head_dim: int, b: int) -> Cost:
    """`pairs`: causal query-key pairs, s (s + 1) / 2 summed over the prompts.

    Only the causal half is counted, as published FLOP counts of causal attention do.
    Bytes: the QKV rows read once (blocks of K and V stay in cache), the output written.
    """
    rows = tokens * head_dim * ((heads + 2 * kv_heads) + heads)
    return Cost(_flops(tokens, pairs, heads, head_dim), b * rows)


def reference(q: np.ndarray, k: np.ndarray, v: np.ndarray, heads: int, kv_heads: int, starts: np.ndarray) -> np.ndarray:
    """Query row i sees entries 0 .. starts[i] of one sequence (its own position included).

    q [queries, heads * D]; k, v [entries, kv_heads * D] -> [queries, heads * D].
    """
    head_dim = q.shape[1] // heads
    out = np.empty_like(q)
    for i, last in enumerate(starts):
        for h in range(heads):
            g = h // (heads // kv_heads)
            rows, columns = slice(0, last + 1), slice(g * head_dim, (g + 1) * head_dim)
            query = q[i, h * head_dim : (h + 1) * head_dim] * (1 / np.sqrt(head_dim))
            scores = k[rows, columns] @ query
            p = np.exp(scores - np.maximum.reduce(scores))
            out[i, h * head_dim : (h + 1) * head_dim] = (p @ v[rows, columns]) / np.add.reduce(p)
    return out
