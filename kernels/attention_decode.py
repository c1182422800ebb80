"""Decode attention on the CPU: one new token a sequence over its KV cache; see `attention`."""

from __future__ import annotations

import functools

import numpy as np

from kernels.attention_tiles import ZERO, dots_1x4, dots_2x4, four, mix_1x4, mix_2x4, put, scale, soften
from kernels.jit import inline, jit, prange
from kernels.vecmath import exp

BLOCK = 128
"""KV entries scored at once: K and V of a block stay in L2."""

PEAK, TOTAL, COLUMNS = BLOCK + 4, BLOCK + 5, BLOCK + 16
"""Columns of the scratch: running maximum and sum of a head, and their number."""


def scratch_shape(heads: int, threads: int) -> tuple[int, int]:
    """Shape of the float32 scratch of `forward`."""
    return threads, heads * COLUMNS


@inline(reorder=True)
def _scores(q, s, k, first, stop, heads, group, d, scores):
    """scores[h, t - first] of sequence s; entries outside, so that K streams row by row."""
    by = np.float32(1 / np.sqrt(np.float32(d)))
    for t in range(first, stop, 4):
        rows = four(t, stop - 1)
        for g in range(0, heads, group):
            col = g // group * d
            for h in range(g, g + group - 1, 2):
                a, b = dots_2x4(q, s, h * d, s, (h + 1) * d, k, rows, col, d, by)
                put(scores, h, t - first, a)
                put(scores, h + 1, t - first, b)
            if group % 2:
                h = g + group - 1
                put(scores, h, t - first, dots_1x4(q, s, h * d, k, rows, col, d, by))


@inline(reorder=True)
def _values(scores, v, first, stop, heads, group, d, out, s):
    """out[s] += scores times V of entries [first, stop)."""
    for t in range(first, stop, 4):
        rows = four(t, stop - 1)
        for g in range(0, heads, group):
            col = g // group * d
            for h in range(g, g + group - 1, 2):
                mix_2x4(scores, h, h + 1, t - first, v, rows, col, out, s, h * d, s, (h + 1) * d, d)
            if group % 2:
                h = g + group - 1
                mix_1x4(scores, h, t - first, v, rows, col, out, s, h * d, d)


@inline(reorder=True)
def _absorb(q, s, k, v, entries, heads, group, d, scores, out):
    """The first `entries` rows of a cache page join sequence s's online softmax. A row of `scores` ends
    with the running maximum and sum."""
    for first in range(0, entries, BLOCK):
        stop = min(entries, first + BLOCK)
        _scores(q, s, k, first, stop, heads, group, d, scores)
        for h in range(heads):
            before = scores[h, PEAK]
            peak, total = soften(scores, h, stop - first, before)
            shrink = exp(before - peak)
            scores[h, PEAK], scores[h, TOTAL] = peak, scores[h, TOTAL] * shrink + total
            if shrink != 1:
                scale(out, s, h * d, d, shrink)
        _values(scores, v, first, stop, heads, group, d, out, s)


@jit
def _some(qkv, k_cache, v_cache, table, begins, lengths, heads, kv_heads, scratch, out, start, step):
    """Sequences start, start + step, ...: append K and V, then attend. Entry t of a sequence is row
    begins[s] + t of its pages. Common head sizes are constants of their loops."""
    page, width, group = k_cache.shape[1], k_cache.shape[2], heads // kv_heads
    d = width // kv_heads
    scores = scratch.reshape(heads, COLUMNS)
    for s in range(start, qkv.shape[0], step):
        end = begins[s] + lengths[s] + 1
        cell, at = table[s, (end - 1) // page], (end - 1) % page
        for i in range(np.uintp(width)):
            k_cache[cell, at, i] = qkv[s, np.uintp(heads * d) + i]
            v_cache[cell, at, i] = qkv[s, np.uintp(heads * d + width) + i]
        for h in range(heads):
            scores[h, PEAK], scores[h, TOTAL] = -np.inf, ZERO
        for i in range(np.uintp(heads * d)):
            out[s, i] = ZERO
        for p in range(begins[s] // page, (end - 1) // page + 1):
            cell, skipped = table[s, p], max(begins[s] - p * page, 0)
            entries = min(page, end - p * page) - skipped
            k, v = k_cache[cell, skipped : skipped + entries], v_cache[cell, skipped : skipped + entries]
            if d == 64:
                _absorb(qkv, s, k, v, entries, heads, group, 64, scores, out)
            elif d == 128:
                _absorb(qkv, s, k, v, entries, heads, group, 128, scores, out)
            else:
                _absorb(qkv, s, k, v, entries, heads, group, d, scores, out)
        for h in range(heads):
            scale(out, s, h * d, d, 1 / scores[h, TOTAL])


@jit(parallel=True)
def _parallel(qkv, k_cache, v_cache, table, begins, lengths, heads, kv_heads, scratch, out):
    threads = scratch.shape[0]
    for c in prange(threads):
        _some(qkv, k_cache, v_cache, table, begins, lengths, heads, kv_heads, scratch[c], out, c, threads)


def _attend(qkv, k_cache, v_cache, table, begins, lengths, heads, kv_heads, scratch, out):
    if scratch.shape[0] == 1:
        _some(qkv, k_cache, v_cache, table, begins, lengths, heads, kv_heads, scratch[0], out, 0, 1)
    else:
        _parallel(qkv, k_cache, v_cache, table, begins, lengths, heads, kv_heads, scratch, out)


@functools.lru_cache(maxsize=64)
def _zeros(sequences: int) -> np.ndarray:
    """[sequences, 1], read only by those who share it: every sequence in page 0, or from row 0 on."""
    return np.zeros((sequences, 1), np.int64)


def paged(
    qkv: np.ndarray, k_cache: np.ndarray, v_cache: np.ndarray, table: np.ndarray, lengths: np.ndarray, heads: int, kv_heads: int,
    scratch: np.ndarray, out: np.ndarray,
) -> None:  # fmt: skip
    """Append each sequence's new K and V to its cache, then attend over it.

    qkv [sequences, (heads + 2 kv_heads) D] after RoPE; k_cache, v_cache [pages, page, kv_heads D],
    C-contiguous; table [sequences, pages of a sequence] int64: entry t of sequence s is in page
    table[s, t // page]; lengths [sequences] int64, before the append; scratch of `scratch_shape`, one
    row a thread; out [sequences, heads D].
    """
    _attend(qkv, k_cache, v_cache, table, _zeros(len(qkv))[:, 0], lengths, heads, kv_heads, scratch, out)


def forward(
    qkv: np.ndarray, k_cache: np.ndarray, v_cache: np.ndarray, slots: np.ndarray, lengths: np.ndarray, heads: int, kv_heads: int,
    scratch: np.ndarray, out: np.ndarray,
) -> None:  # fmt: skip
    """`paged` where a sequence lies in one piece, from row slots[s] * max_len of the cache on.

    k_cache, v_cache [slots, max_len, kv_heads D], slots [sequences] int64. Rows are addressed through:
    with max_len 1 a sequence may begin at any row and have any length that the cache has room for.
    """
    rows = (1, -1, k_cache.shape[2])
    begins = slots if k_cache.shape[1] == 1 else slots * k_cache.shape[1]
    _attend(qkv, k_cache.reshape(rows), v_cache.reshape(rows), _zeros(len(qkv)), begins, lengths, heads, kv_heads, scratch, out)


@jit
def append(qkv, k_cache, v_cache, slots, offsets, lengths):
    """Copy K and V of whole prompts: rows offsets[s] to offsets[s + 1] of qkv go to the cache rows of
    slots[s] from lengths[s] on."""
    width = k_cache.shape[2]
    for s in range(slots.shape[0]):
        slot, shift = slots[s], lengths[s] - offsets[s]
        for t in range(offsets[s], offsets[s + 1]):
            row = qkv[t]
            k_cache[slot, t + shift, :] = row[row.shape[0] - 2 * width : row.shape[0] - width]
            v_cache[slot, t + shift, :] = row[row.shape[0] - width :]
