"""Grouped-query attention (Ainslie et al., arXiv 2305.13245): decode over a KV cache, causal prefill."""

from __future__ import annotations

import numpy as np

from kernels.cost import Cost
from kernels.jit import inline, jit, prange
from kernels.vecmath import exp

BLOCK = 128
"""KV entries scored at once in decode: K and V of a block stay in L2."""

PEAK, TOTAL, COLUMNS = BLOCK + 4, BLOCK + 5, BLOCK + 16
"""Columns of decode's scratch: running maximum and sum of a head, and their number."""

QUERIES = 32
"""Query rows of a prompt that share one pass over its keys in prefill."""

_ZERO = np.float32(0)


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


def decode_scratch(heads: int, threads: int) -> tuple[int, int]:
    """Shape of the float32 scratch of `decode`."""
    return threads, heads * COLUMNS


def prefill_scratch(longest: int, threads: int) -> tuple[int, int]:
    """Shape of the float32 scratch of `prefill` for prompts of up to `longest` tokens."""
    return threads, QUERIES * (longest + 4)


@inline(reorder=True)
def _dots_2x4(q, row0, col0, row1, col1, k, rows, col, d, scale):
    """Scaled dot products of two query heads with four keys."""
    col0, col1, col, (t0, t1, t2, t3) = np.uintp(col0), np.uintp(col1), np.uintp(col), rows
    a0 = a1 = a2 = a3 = b0 = b1 = b2 = b3 = _ZERO
    for i in range(np.uintp(d)):
        w, x, y, z = k[t0, col + i], k[t1, col + i], k[t2, col + i], k[t3, col + i]
        a, b = q[row0, col0 + i], q[row1, col1 + i]
        a0, a1, a2, a3 = a0 + a * w, a1 + a * x, a2 + a * y, a3 + a * z
        b0, b1, b2, b3 = b0 + b * w, b1 + b * x, b2 + b * y, b3 + b * z
    return (a0 * scale, a1 * scale, a2 * scale, a3 * scale), (b0 * scale, b1 * scale, b2 * scale, b3 * scale)


@inline(reorder=True)
def _dots_1x4(q, row, col0, k, rows, col, d, scale):
    col0, col, (t0, t1, t2, t3) = np.uintp(col0), np.uintp(col), rows
    a0 = a1 = a2 = a3 = _ZERO
    for i in range(np.uintp(d)):
        a = q[row, col0 + i]
        a0, a1, a2, a3 = a0 + a * k[t0, col + i], a1 + a * k[t1, col + i], a2 + a * k[t2, col + i], a3 + a * k[t3, col + i]
    return a0 * scale, a1 * scale, a2 * scale, a3 * scale


@inline(reorder=True)
def _mix_2x4(p, from0, from1, at, v, rows, col, out, row0, col0, row1, col1, d):
    """Two query heads' outputs += p[from, at:at+4] times four values."""
    col0, col1, col, (t0, t1, t2, t3) = np.uintp(col0), np.uintp(col1), np.uintp(col), rows
    p0, p1, p2, p3 = p[from0, at], p[from0, at + 1], p[from0, at + 2], p[from0, at + 3]
    r0, r1, r2, r3 = p[from1, at], p[from1, at + 1], p[from1, at + 2], p[from1, at + 3]
    for i in range(np.uintp(d)):
        w, x, y, z = v[t0, col + i], v[t1, col + i], v[t2, col + i], v[t3, col + i]
        out[row0, col0 + i] += p0 * w + p1 * x + p2 * y + p3 * z
        out[row1, col1 + i] += r0 * w + r1 * x + r2 * y + r3 * z


@inline(reorder=True)
def _mix_1x4(p, from0, at, v, rows, col, out, row0, col0, d):
    col0, col, (t0, t1, t2, t3) = np.uintp(col0), np.uintp(col), rows
    p0, p1, p2, p3 = p[from0, at], p[from0, at + 1], p[from0, at + 2], p[from0, at + 3]
    for i in range(np.uintp(d)):
        out[row0, col0 + i] += p0 * v[t0, col + i] + p1 * v[t1, col + i] + p2 * v[t2, col + i] + p3 * v[t3, col + i]


@inline
def _put(scores, row, at, values):
    scores[row, at], scores[row, at + 1], scores[row, at + 2], scores[row, at + 3] = values


@inline
def _four(t, last):
    """Rows t to t + 3; past `last`, that one again: its scores are zeroed before they are used."""
    return t, min(t + 1, last), min(t + 2, last), min(t + 3, last)


@inline(reorder=True)
def _soften(scores, row, count, peak):
    """Replace scores[row, :count] by exp(score - max(peak, scores)) and the next 3 by 0.

    Returns that maximum and the sum.
    """
    for t in range(np.uintp(count)):
        peak = max(peak, scores[row, t])
    total = _ZERO
    for t in range(np.uintp(count)):
        p = exp(scores[row, t] - peak)
        scores[row, t] = p
        total += p
    for t in range(count, count + 3):
        scores[row, t] = _ZERO
    return peak, total


@inline(reorder=True)
def _scale(out, row, col, d, factor):
    col = np.uintp(col)
    for i in range(np.uintp(d)):
        out[row, col + i] *= factor


@inline(reorder=True)
def _scores(q, s, k, first, stop, heads, group, d, scores):
    """scores[h, t - first] of sequence s; entries outside, so that K streams row by row."""
    scale = np.float32(1 / np.sqrt(np.float32(d)))
    for t in range(first, stop, 4):
        rows = _four(t, stop - 1)
        for g in range(0, heads, group):
            col = g // group * d
            for h in range(g, g + group - 1, 2):
                a, b = _dots_2x4(q, s, h * d, s, (h + 1) * d, k, rows, col, d, scale)
                _put(scores, h, t - first, a)
                _put(scores, h + 1, t - first, b)
            if group % 2:
                h = g + group - 1
                _put(scores, h, t - first, _dots_1x4(q, s, h * d, k, rows, col, d, scale))


@inline(reorder=True)
def _values(scores, v, first, stop, heads, group, d, out, s):
    """out[s] += scores times V of entries [first, stop)."""
    for t in range(first, stop, 4):
        rows = _four(t, stop - 1)
        for g in range(0, heads, group):
            col = g // group * d
            for h in range(g, g + group - 1, 2):
                _mix_2x4(scores, h, h + 1, t - first, v, rows, col, out, s, h * d, s, (h + 1) * d, d)
            if group % 2:
                h = g + group - 1
                _mix_1x4(scores, h, t - first, v, rows, col, out, s, h * d, d)


@inline(reorder=True)
def _decode_one(q, s, k, v, entries, heads, group, d, scores, out):
    """Sequence s over its first `entries` cache rows: online softmax over blocks. A row of `scores`
    ends with the running maximum and sum."""
    for h in range(heads):
        scores[h, PEAK], scores[h, TOTAL] = -np.inf, _ZERO
    for i in range(np.uintp(heads * d)):
        out[s, i] = _ZERO
    for first in range(0, entries, BLOCK):
        stop = min(entries, first + BLOCK)
        _scores(q, s, k, first, stop, heads, group, d, scores)
        for h in range(heads):
            before = scores[h, PEAK]
            peak, total = _soften(scores, h, stop - first, before)
            shrink = exp(before - peak)
            scores[h, PEAK], scores[h, TOTAL] = peak, scores[h, TOTAL] * shrink + total
            if shrink != 1:
                _scale(out, s, h * d, d, shrink)
        _values(scores, v, first, stop, heads, group, d, out, s)
    for h in range(heads):
        _scale(out, s, h * d, d, 1 / scores[h, TOTAL])


@jit
def _decode_some(qkv, k_cache, v_cache, slots, lengths, heads, kv_heads, scratch, out, start, step):
    """Sequences start, start + step, ...: append K and V, then attend. Common head sizes are
    constants of their loops."""
    width, group = k_cache.shape[2], heads // kv_heads
    d = width // kv_heads
    scores = scratch.reshape(heads, COLUMNS)
    for s in range(start, qkv.shape[0], step):
        k, v, length = k_cache[slots[s]], v_cache[slots[s]], lengths[s]
        for i in range(np.uintp(width)):
            k[length, i] = qkv[s, np.uintp(heads * d) + i]
            v[length, i] = qkv[s, np.uintp(heads * d + width) + i]
        if d == 64:
            _decode_one(qkv, s, k, v, length + 1, heads, group, 64, scores, out)
        elif d == 128:
            _decode_one(qkv, s, k, v, length + 1, heads, group, 128, scores, out)
        else:
            _decode_one(qkv, s, k, v, length + 1, heads, group, d, scores, out)


@jit(parallel=True)
def _decode_parallel(qkv, k_cache, v_cache, slots, lengths, heads, kv_heads, scratch, out):
    threads = scratch.shape[0]
    for c in prange(threads):
        _decode_some(qkv, k_cache, v_cache, slots, lengths, heads, kv_heads, scratch[c], out, c, threads)


def decode(
    qkv: np.ndarray, k_cache: np.ndarray, v_cache: np.ndarray, slots: np.ndarray, lengths: np.ndarray, heads: int, kv_heads: int,
    scratch: np.ndarray, out: np.ndarray,
) -> None:  # fmt: skip
    """Append each sequence's new K and V to its cache, then attend over it.

    qkv [sequences, (heads + 2 kv_heads) D] after RoPE; k_cache, v_cache [slots, max_len, kv_heads D],
    C-contiguous; slots, lengths [sequences] int64, lengths before the append; scratch of
    `decode_scratch`, one row a thread; out [sequences, heads D].
    """
    if scratch.shape[0] == 1:
        _decode_some(qkv, k_cache, v_cache, slots, lengths, heads, kv_heads, scratch[0], out, 0, 1)
    else:
        _decode_parallel(qkv, k_cache, v_cache, slots, lengths, heads, kv_heads, scratch, out)


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


@inline(reorder=True)
def _prefill_scores(qkv, begin, first, stop, q_col, k_col, d, scores):
    """scores[i - first, t - begin] of query rows [first, stop) and the keys from `begin` up to them."""
    scale = np.float32(1 / np.sqrt(np.float32(d)))
    for t in range(begin, stop, 4):
        rows = _four(t, stop - 1)
        for i in range(max(first, t), stop - 1, 2):
            a, b = _dots_2x4(qkv, i, q_col, i + 1, q_col, qkv, rows, k_col, d, scale)
            _put(scores, i - first, t - begin, a)
            _put(scores, i + 1 - first, t - begin, b)
        if (stop - max(first, t)) % 2:
            _put(scores, stop - 1 - first, t - begin, _dots_1x4(qkv, stop - 1, q_col, qkv, rows, k_col, d, scale))


@inline(reorder=True)
def _prefill_block(qkv, begin, first, stop, q_col, k_col, v_col, d, scores, out):
    """Query rows [first, stop) of one head over the rows of its prompt, which starts at row `begin`."""
    _prefill_scores(qkv, begin, first, stop, q_col, k_col, d, scores)
    for i in range(first, stop):
        _, total = _soften(scores, i - first, i + 1 - begin, np.float32(-np.inf))
        _scale(scores, i - first, 0, i + 1 - begin, 1 / total)
        for j in range(np.uintp(d)):
            out[i, np.uintp(q_col) + j] = _ZERO
    for t in range(begin, stop, 4):
        rows = _four(t, stop - 1)
        for i in range(max(first, t), stop - 1, 2):
            _mix_2x4(scores, i - first, i + 1 - first, t - begin, qkv, rows, v_col, out, i, q_col, i + 1, q_col, d)
        if (stop - max(first, t)) % 2:
            _mix_1x4(scores, stop - 1 - first, t - begin, qkv, rows, v_col, out, stop - 1, q_col, d)


@jit
def _prefill_some(qkv, offsets, heads, kv_heads, scratch, out, start, step):
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
                    _prefill_block(qkv, begin, first, stop, h * 64, g * 64, (g + kv_heads) * 64, 64, scores, out)
                elif d == 128:
                    _prefill_block(qkv, begin, first, stop, h * 128, g * 128, (g + kv_heads) * 128, 128, scores, out)
                else:
                    _prefill_block(qkv, begin, first, stop, h * d, g * d, (g + kv_heads) * d, d, scores, out)


@jit(parallel=True)
def _prefill_parallel(qkv, offsets, heads, kv_heads, scratch, out):
    threads = scratch.shape[0]
    for c in prange(threads):
        _prefill_some(qkv, offsets, heads, kv_heads, scratch[c], out, c, threads)


def prefill(qkv: np.ndarray, offsets: np.ndarray, heads: int, kv_heads: int, scratch: np.ndarray, out: np.ndarray) -> None:
    """Causal attention of whole prompts, one after another in the rows of qkv.

    qkv [tokens, (heads + 2 kv_heads) D] after RoPE; offsets [prompts + 1] int64; scratch of
    `prefill_scratch`, one row a thread; out [tokens, heads D].
    """
    if scratch.shape[0] == 1:
        _prefill_some(qkv, offsets, heads, kv_heads, scratch[0], out, 0, 1)
    else:
        _prefill_parallel(qkv, offsets, heads, kv_heads, scratch, out)
