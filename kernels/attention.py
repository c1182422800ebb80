"""Grouped-query attention (Ainslie et al., arXiv 2305.13245): decode over a KV cache, causal prefill."""

from __future__ import annotations

import numpy as np

from kernels.cost import Cost
from kernels.gemm import dot
from kernels.jit import jit, prange
from kernels.vecmath import exp

BLOCK = 128
"""KV entries scored at once in decode: K and V of a block stay in L2."""

QUERIES = 32
"""Query rows of a prompt that share one pass over its keys in prefill."""


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
    return threads, heads * (BLOCK + 2)


def prefill_scratch(longest: int, threads: int) -> tuple[int, int]:
    """Shape of the float32 scratch of `prefill` for prompts of up to `longest` tokens."""
    return threads, QUERIES * (longest + 3)


@jit
def _dots(q, k0, k1, k2, k3):
    """q . k for four keys."""
    a0 = a1 = a2 = a3 = np.float32(0)
    for i in range(q.shape[0]):
        x = q[i]
        a0 += x * k0[i]
        a1 += x * k1[i]
        a2 += x * k2[i]
        a3 += x * k3[i]
    return a0, a1, a2, a3


@jit
def _mix(p, v0, v1, v2, v3, out):
    """out += p[0] v0 + p[1] v1 + p[2] v2 + p[3] v3."""
    p0, p1, p2, p3 = p[0], p[1], p[2], p[3]
    for i in range(out.shape[0]):
        out[i] += p0 * v0[i] + p1 * v1[i] + p2 * v2[i] + p3 * v3[i]


@jit
def _scores(query, k, first, stop, heads, kv_heads, scores):
    """scores [heads, BLOCK] of entries [first, stop); entries outside, so that a row of K is read at once."""
    d = query.shape[0] // heads
    group = heads // kv_heads
    scale = np.float32(1 / np.sqrt(np.float32(d)))
    even = first + (stop - first) // 4 * 4
    for t in range(first, even, 4):
        k0, k1, k2, k3 = k[t], k[t + 1], k[t + 2], k[t + 3]
        for h in range(heads):
            a, z = h // group * d, (h // group + 1) * d
            s0, s1, s2, s3 = _dots(query[h * d : (h + 1) * d], k0[a:z], k1[a:z], k2[a:z], k3[a:z])
            row = scores[h]
            row[t - first], row[t - first + 1] = s0 * scale, s1 * scale
            row[t - first + 2], row[t - first + 3] = s2 * scale, s3 * scale
    for t in range(even, stop):
        for h in range(heads):
            a, z = h // group * d, (h // group + 1) * d
            scores[h, t - first] = dot(query[h * d : (h + 1) * d], k[t][a:z]) * scale


@jit
def _soften(row, peak):
    """Replace scores by exp(score - max(peak, scores)); return that maximum and the sum."""
    for t in range(row.shape[0]):
        peak = max(peak, row[t])
    total = np.float32(0)
    for t in range(row.shape[0]):
        p = exp(row[t] - peak)
        row[t] = p
        total += p
    return peak, total


@jit
def _values(scores, v, first, stop, heads, kv_heads, out):
    """out [heads * D] += scores [heads, BLOCK] times V of entries [first, stop)."""
    d = out.shape[0] // heads
    group = heads // kv_heads
    even = first + (stop - first) // 4 * 4
    for t in range(first, even, 4):
        v0, v1, v2, v3 = v[t], v[t + 1], v[t + 2], v[t + 3]
        for h in range(heads):
            a, z = h // group * d, (h // group + 1) * d
            _mix(scores[h][t - first :], v0[a:z], v1[a:z], v2[a:z], v3[a:z], out[h * d : (h + 1) * d])
    for t in range(even, stop):
        for h in range(heads):
            p, row, to = scores[h, t - first], v[t][h // group * d : (h // group + 1) * d], out[h * d : (h + 1) * d]
            for i in range(d):
                to[i] += p * row[i]


@jit
def _decode_one(query, k, v, entries, heads, kv_heads, scratch, out):
    """One sequence, one new query [heads * D] over its first `entries` cache rows; online softmax over blocks."""
    d = query.shape[0] // heads
    scores = scratch[: heads * BLOCK].reshape(heads, BLOCK)
    peaks, totals = scratch[heads * BLOCK : heads * (BLOCK + 1)], scratch[heads * (BLOCK + 1) :]
    peaks[:] = -np.inf
    totals[:] = 0
    out[:] = 0
    for first in range(0, entries, BLOCK):
        stop = min(entries, first + BLOCK)
        _scores(query, k, first, stop, heads, kv_heads, scores)
        for h in range(heads):
            peak, total = _soften(scores[h][: stop - first], peaks[h])
            shrink = exp(peaks[h] - peak)
            peaks[h], totals[h] = peak, totals[h] * shrink + total
            to = out[h * d : (h + 1) * d]
            for i in range(d):
                to[i] *= shrink
        _values(scores, v, first, stop, heads, kv_heads, out)
    for h in range(heads):
        to, part = out[h * d : (h + 1) * d], np.float32(1) / totals[h]
        for i in range(d):
            to[i] *= part


@jit
def _decode_some(qkv, k_cache, v_cache, slots, lengths, heads, kv_heads, scratch, out, start, step):
    """Sequences start, start + step, ...: append K and V, then attend."""
    width = k_cache.shape[2]
    for s in range(start, qkv.shape[0], step):
        row, slot, length = qkv[s], slots[s], lengths[s]
        k_cache[slot, length, :] = row[row.shape[0] - 2 * width : row.shape[0] - width]
        v_cache[slot, length, :] = row[row.shape[0] - width :]
        _decode_one(row[: row.shape[0] - 2 * width], k_cache[slot], v_cache[slot], length + 1, heads, kv_heads, scratch, out[s])


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


@jit
def _prefill_block(qkv, begin, first, stop, head, kv_head, heads, d, scratch, out):
    """Query rows [first, stop) of one head over the rows of its prompt, which starts at row `begin`."""
    scale = np.float32(1 / np.sqrt(np.float32(d)))
    q0, k0, v0 = head * d, (heads + kv_head) * d, qkv.shape[1] - (qkv.shape[1] // d - heads) // 2 * d + kv_head * d
    longest = scratch.shape[0] // QUERIES
    scores = scratch.reshape(QUERIES, longest)
    for t in range(begin, stop, 4):
        a, b = qkv[t][k0 : k0 + d], qkv[min(t + 1, stop - 1)][k0 : k0 + d]
        c, e = qkv[min(t + 2, stop - 1)][k0 : k0 + d], qkv[min(t + 3, stop - 1)][k0 : k0 + d]
        for i in range(max(first, t), stop):
            s0, s1, s2, s3 = _dots(qkv[i][q0 : q0 + d], a, b, c, e)
            row = scores[i - first]
            row[t - begin], row[t - begin + 1] = s0 * scale, s1 * scale
            row[t - begin + 2], row[t - begin + 3] = s2 * scale, s3 * scale
    for i in range(first, stop):
        to, row = out[i][q0 : q0 + d], scores[i - first]
        entries = i + 1 - begin
        _, total = _soften(row[:entries], np.float32(-np.inf))
        for t in range(entries):
            row[t] /= total
        row[entries : entries + 3] = 0  # the last four keys may reach past the diagonal
        to[:] = 0
    for t in range(begin, stop, 4):
        a, b = qkv[t][v0 : v0 + d], qkv[min(t + 1, stop - 1)][v0 : v0 + d]
        c, e = qkv[min(t + 2, stop - 1)][v0 : v0 + d], qkv[min(t + 3, stop - 1)][v0 : v0 + d]
        for i in range(max(first, t), stop):
            _mix(scores[i - first][t - begin :], a, b, c, e, out[i][q0 : q0 + d])


@jit
def _prefill_some(qkv, offsets, heads, kv_heads, scratch, out, start, step):
    """Blocks start, start + step, ... of all (prompt, block of queries)."""
    d = out.shape[1] // heads
    number = 0
    for s in range(offsets.shape[0] - 1):
        for first in range(offsets[s], offsets[s + 1], QUERIES):
            if number % step == start:
                stop = min(first + QUERIES, offsets[s + 1])
                for h in range(heads):
                    _prefill_block(qkv, offsets[s], first, stop, h, h // (heads // kv_heads), heads, d, scratch, out)
            number += 1


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
