"""Prefill attention on the CPU: causal, over whole prompts; see `attention`."""

from __future__ import annotations

import numpy as np

from kernels.attention_tiles import ZERO, dots_1x4, dots_2x4, four, mix_1x4, mix_2x4, put, scale, soften
from kernels.jit import inline, jit, prange

QUERIES = 32
"""Query rows of a prompt that share one pass over its keys."""


def scratch_shape(longest: int, threads: int) -> tuple[int, int]:
    """Shape of the float32 scratch of `forward` for prompts of up to `longest` tokens."""
    return threads, QUERIES * (longest + 4)


@inline(reorder=True)
def _scores(qkv, begin, first, stop, q_col, k_col, d, scores):
    """scores[i - first, t - begin] of query rows [first, stop) and the keys from `begin` up to them."""
    by = np.float32(1 / np.sqrt(np.float32(d)))
    for t in range(begin, stop, 4):
        rows = four(t, stop - 1)
        for i in range(max(first, t), stop - 1, 2):
            a, b = dots_2x4(qkv, i, q_col, i + 1, q_col, qkv, rows, k_col, d, by)
            put(scores, i - first, t - begin, a)
            put(scores, i + 1 - first, t - begin, b)
        if (stop - max(first, t)) % 2:
            put(scores, stop - 1 - first, t - begin, dots_1x4(qkv, stop - 1, q_col, qkv, rows, k_col, d, by))


@inline(reorder=True)
def _block(qkv, begin, first, stop, q_col, k_col, v_col, d, scores, out):
    """Query rows [first, stop) of one head over the rows of its prompt, which starts at row `begin`."""
    _scores(qkv, begin, first, stop, q_col, k_col, d, scores)
    for i in range(first, stop):
        _, total = soften(scores, i - first, i + 1 - begin, np.float32(-np.inf))
        scale(scores, i - first, 0, i + 1 - begin, 1 / total)
        for j in range(np.uintp(d)):
            out[i, np.uintp(q_col) + j] = ZERO
    for t in range(begin, stop, 4):
        rows = four(t, stop - 1)
        for i in range(max(first, t), stop - 1, 2):
            mix_2x4(scores, i - first, i + 1 - first, t - begin, qkv, rows, v_col, out, i, q_col, i + 1, q_col, d)
        if (stop - max(first, t)) % 2:
            mix_1x4(scores, stop - 1 - first, t - begin, qkv, rows, v_col, out, stop - 1, q_col, d)


@jit
def _some(qkv, offsets, heads, kv_heads, scratch, out, start, step):
    """Blocks start, start + step, ... of all (prompt, block of queries)."""
    d = out.shape[1] // heads
    scores = scratch.reshape(QUERIES, scratch.shape[0] // QUERIES)
    number = 0
    for s in range(offsets.shape[0] - 1):
        begin = offsets[s]
        for first in range(begin, offsets[s + 1], QUERIES):
            number += 1
            if number % step != start:
                continue
            stop = min(first + QUERIES, offsets[s + 1])
            for h in range(heads):
                g = heads + h // (heads // kv_heads)
                if d == 64:
                    _block(qkv, begin, first, stop, h * 64, g * 64, (g + kv_heads) * 64, 64, scores, out)
                elif d == 128:
                    _block(qkv, begin, first, stop, h * 128, g * 128, (g + kv_heads) * 128, 128, scores, out)
                else:
                    _block(qkv, begin, first, stop, h * d, g * d, (g + kv_heads) * d, d, scores, out)


@jit(parallel=True)
def _parallel(qkv, offsets, heads, kv_heads, scratch, out):
    threads = scratch.shape[0]
    for c in prange(threads):
        _some(qkv, offsets, heads, kv_heads, scratch[c], out, c, threads)


def forward(qkv: np.ndarray, offsets: np.ndarray, heads: int, kv_heads: int, scratch: np.ndarray, out: np.ndarray) -> None:
    """Causal attention of whole prompts, one after another in the rows of qkv.

    qkv [tokens, (heads + 2 kv_heads) D] after RoPE; offsets [prompts + 1] int64; scratch of
    `scratch_shape`, one row a thread; out [tokens, heads D].
    """
    if scratch.shape[0] == 1:
        _some(qkv, offsets, heads, kv_heads, scratch[0], out, 0, 1)
    else:
        _parallel(qkv, offsets, heads, kv_heads, scratch, out)
