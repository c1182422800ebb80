"""Attention on the GPU, one kernel for decode and prefill: new rows of sequences over paged K and V.

A block serves 8 query rows of one sequence that share a key/value head (the heads of its group, and
in prefill several positions). Each warp takes 32 keys at a time: for the scores a lane has a key to
itself, for the weighted sum 16 bytes of a value row, so that K and V are read once by 16-byte loads
and probabilities change hands in shared memory. Softmax is online, per warp; warps, and the blocks
that split a long context, are merged at the end (flash-decoding).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from kernels.append_gpu import append_cuda
from kernels.cuda.element import narrow, widen
from kernels.cuda.jit import cuda, device, kernel
from kernels.cuda.warp import SIZE, sync_warp, warp_max, warp_sum
from kernels.cuda.wide import dot8, load8

ROWS, WARPS = 8, 4
THREADS = WARPS * SIZE
WIDEST = 256
"""Largest head dimension."""

_QUERIES, _PROBABILITIES, _STATISTICS = (ROWS, WIDEST), (THREADS, ROWS), (2, WARPS, ROWS)
_SUMS = (ROWS, 8)
_LEAST, _ZERO = np.float32(-np.inf), np.float32(0)
PEAK, TOTAL = 0, 1


@device
def _find_rows(offsets, tile, rows):
    """(sequence, first query) of tile number `tile` when each sequence's queries are cut into tiles of
    `rows`; (sequences, 0) past the last tile."""
    sequences = offsets.shape[0] - 1
    for s in range(sequences):
        tiles = (offsets[s + 1] - offsets[s] + rows - 1) // rows
        if tile < tiles:
            return s, np.int64(tile) * rows
        tile -= tiles
    return sequences, np.int64(0)


@device
def _cell(table, s, t, page, scale):
    """Row of the cache that holds entry t of sequence s."""
    return table[s, t // page] * scale + t % page


@device
def _load_queries(q, first, count, head, chunk, heads_each, group, d, qs):
    """qs[r] = scaled query row r of the block, zero where there is none. A row's position is r // heads_each."""
    by = np.float32(1) / math.sqrt(np.float32(d))
    i = cuda.threadIdx.x
    while i < ROWS * d:
        r, c = i // d, i % d
        h, at = chunk * heads_each + r % heads_each, r // heads_each
        value = _ZERO
        if h < group and at < count and at < ROWS // heads_each:
            value = widen(q[first + at, (head * group + h) * d + c]) * by
        qs[r, c] = value
        i += THREADS


@device
def _score(qs, keys, row, d, scores):
    """scores[r] = qs[r] . the d elements of keys from `row` on."""
    for r in range(ROWS):
        scores[r] = _ZERO
    for c in range(0, d, 8):
        k = load8(keys, row + c)
        for r in range(ROWS):
            scores[r] += dot8(k, load8(qs, r * WIDEST + c))


@device
def _soften(scores, t, limit, heads_each, p, me, peaks, totals, sums):
    """Probabilities of key t to shared row `me` of p; running maxima, sums and outputs are rescaled.
    Row r sees keys below limit + r // heads_each."""
    for r in range(ROWS):
        score = scores[r] if t < limit + r // heads_each else _LEAST
        peak = max(peaks[r], warp_max(score))
        shrink = math.exp(peaks[r] - peak) if peak > _LEAST else _ZERO
        probability = math.exp(score - peak) if score > _LEAST else _ZERO
        peaks[r], totals[r] = peak, totals[r] * shrink + probability
        p[me, r] = probability
        for j in range(8):
            sums[r, j] *= shrink


@device
def _weigh(p, base, values, cells, stride, column, d, lane, sums):
    """sums[r] += p of the warp's 32 keys times the lane's eight columns of their value rows."""
    lanes = d // 8
    together = SIZE // lanes
    if lane >= together * lanes:
        return
    for turn in range(0, SIZE, together):
        at = turn + lane // lanes
        if at < SIZE:
            v = load8(values, cells[base + at] * stride + column + lane % lanes * 8)
            for r in range(ROWS):
                probability = p[base + at, r]
                for j in range(8):
                    sums[r, j] += probability * v[j]


@kernel(
    "element[:,::1], element[::1], element[::1], int64[::1], int64[::1], int64[:,::1], int32, int64, int64, "
    "int32, int32, int32, int32, int32, int32, float32[:,:,:,::1], element[:,::1]",
    hot=True,
)
def _attend(
    q, keys, values, offsets, lengths, table, page, scale, stride, key_column, value_column, heads, kv_heads, d, splits, partial, out
):  # fmt: skip
    """Grid: tiles of queries; key/value heads and chunks of their groups; splits of the context."""
    qs = cuda.shared.array(_QUERIES, np.float32, 16)
    p = cuda.shared.array(_PROBABILITIES, np.float32, 16)
    cells = cuda.shared.array(THREADS, np.int64)
    statistics = cuda.shared.array(_STATISTICS, np.float32)
    scores = cuda.local.array(ROWS, np.float32)
    peaks = cuda.local.array(ROWS, np.float32)
    totals = cuda.local.array(ROWS, np.float32)
    sums = cuda.local.array(_SUMS, np.float32)
    group = heads // kv_heads
    heads_each = min(group, ROWS)
    head, chunk = cuda.blockIdx.y % kv_heads, cuda.blockIdx.y // kv_heads
    each = ROWS // heads_each
    s, begin = _find_rows(offsets, cuda.blockIdx.x, each)
    if s == offsets.shape[0] - 1:
        return
    first, count = offsets[s] + begin, min(offsets[s + 1] - offsets[s] - begin, each)
    _load_queries(q, first, count, head, chunk, heads_each, group, d, qs)
    for r in range(ROWS):
        peaks[r], totals[r] = _LEAST, _ZERO
        for j in range(8):
            sums[r, j] = _ZERO
    cuda.syncthreads()
    limit = lengths[s] + begin + 1  # keys that row 0 sees, its own included
    stop = limit + count - 1
    turns = (stop + SIZE - 1) // SIZE
    own, last = turns * cuda.blockIdx.z // splits, turns * (cuda.blockIdx.z + 1) // splits
    lane, warp = cuda.threadIdx.x % SIZE, cuda.threadIdx.x // SIZE
    for turn in range(own + warp, last, WARPS):
        t = turn * SIZE + lane
        cell = _cell(table, s, min(t, stop - 1), page, scale)
        cells[cuda.threadIdx.x] = cell
        _score(qs, keys, cell * stride + key_column + head * d, d, scores)
        _soften(scores, t, limit, heads_each, p, cuda.threadIdx.x, peaks, totals, sums)
        sync_warp()
        _weigh(p, warp * SIZE, values, cells, stride, value_column + head * d, d, lane, sums)
        sync_warp()
    _note_warp(statistics, warp, lane, peaks, totals)
    cuda.syncthreads()
    _merge_warps(statistics, sums, lane, warp, d, qs)
    _store(statistics, qs, first, count, head, chunk, heads_each, group, d, splits, partial, out)


@device
def _note_warp(statistics, warp, lane, peaks, totals):
    for r in range(ROWS):
        total = warp_sum(totals[r])
        if lane == 0:
            statistics[PEAK, warp, r], statistics[TOTAL, warp, r] = peaks[r], total


@device
def _store(statistics, sums, first, count, head, chunk, heads_each, group, d, splits, partial, out):
    """The block's rows to the output, or with their maximum and sum to the split's part of the scratch."""
    i = cuda.threadIdx.x
    while i < ROWS * d:
        r, c = i // d, i % d
        h, at = chunk * heads_each + r % heads_each, r // heads_each
        if h < group and at < count:
            peak, total = _whole(statistics, r)
            if splits == 1:
                out[first + at, (head * group + h) * d + c] = narrow(out, sums[r, c] / total)
            else:
                mine = partial[first + at, head * group + h, cuda.blockIdx.z]
                mine[c] = sums[r, c]
                if c == 0:
                    mine[d], mine[d + 1] = peak, total
        i += THREADS


@device
def _whole(statistics, r):
    """Maximum and sum of row r over the block's warps."""
    peak, total = _LEAST, _ZERO
    for w in range(WARPS):
        peak = max(peak, statistics[PEAK, w, r])
    for w in range(WARPS):
        if statistics[PEAK, w, r] > _LEAST:
            total += statistics[TOTAL, w, r] * math.exp(statistics[PEAK, w, r] - peak)
    return peak, total


@device
def _merge_warps(statistics, sums, lane, warp, d, to):
    """to[r] = all lanes' sums of row r, relative to the block's maximum; one warp and part after another."""
    lanes = d // 8
    together = SIZE // lanes
    for turn in range(WARPS * together):
        if turn == warp * together + lane // lanes:
            column = lane % lanes * 8
            for r in range(ROWS):
                peak, _ = _whole(statistics, r)
                shrink = _ZERO
                if statistics[PEAK, warp, r] > _LEAST:
                    shrink = math.exp(statistics[PEAK, warp, r] - peak)
                for j in range(8):
                    before = to[r, column + j] if turn else _ZERO
                    to[r, column + j] = before + sums[r, j] * shrink
        cuda.syncthreads()


@kernel("float32[:,:,:,::1], int32, element[:,::1]")
def _merge(partial, d, out):
    """A block for each query and head: the splits' sums, each relative to its own maximum, become the output."""
    i, h, splits, c = cuda.blockIdx.x, cuda.blockIdx.y, partial.shape[2], cuda.threadIdx.x
    peak = _LEAST
    for z in range(splits):
        peak = max(peak, partial[i, h, z, d])
    while c < d:
        total, value = _ZERO, _ZERO
        for z in range(splits):
            if partial[i, h, z, d] > _LEAST:
                factor = math.exp(partial[i, h, z, d] - peak)
                total += partial[i, h, z, d + 1] * factor
                value += partial[i, h, z, c] * factor
        out[i, h * d + c] = narrow(out, value / total)
        c += cuda.blockDim.x


def scratch_shape_cuda(queries: int, heads: int, head_dim: int, splits: int) -> tuple[int, int, int, int]:
    """Shape of the float32 scratch of `decode_cuda` and `prefill_cuda`."""
    return (queries, heads, splits, head_dim + 2) if splits > 1 else (1, 1, 1, 1)


def _launch(q: Any, kv: tuple[Any, ...], shape: tuple[int, int, int, int], scratch: Any, out: Any, stream: Any) -> None:
    sequences, heads, kv_heads, d = shape
    assert d % 8 == 0 and d <= WIDEST, f"head dimension {d}: a multiple of 8 up to {WIDEST} is served"
    splits, group = scratch.shape[2], heads // kv_heads
    each = ROWS // min(group, ROWS)
    queries = q.shape[0]
    tiles = queries if each == 1 or queries == sequences else queries // each + sequences
    grid = (tiles, kv_heads * -(-group // ROWS), splits)
    _attend.launch(grid, THREADS, q, *kv, heads, kv_heads, d, splits, scratch, out, stream=stream)
    if splits > 1:
        _merge.launch((queries, heads), min(128, -(-d // SIZE) * SIZE), scratch, d, out, stream=stream)


def decode_cuda(
    qkv: Any, k_cache: Any, v_cache: Any, table: Any, offsets: Any, lengths: Any, heads: int, kv_heads: int, scratch: Any, out: Any, *,
    stream: Any = 0,
) -> None:  # fmt: skip
    """Append, then attend: rows offsets[s] to offsets[s + 1] of qkv are the entries of sequence s from
    lengths[s] on, and see all entries up to themselves. Decode has one row a sequence; more are a
    chunk of a prompt. Arguments of `append_cuda`; scratch of `scratch_shape_cuda`, whose `splits`
    blocks share each context; out [rows, heads D]. D is a multiple of 8, at most 256.
    """
    append_cuda(qkv, k_cache, v_cache, table, offsets, lengths, stream=stream)
    page, width = k_cache.shape[1:]
    kv = k_cache.reshape(-1), v_cache.reshape(-1), offsets, lengths, table, page, page, width, 0, 0
    _launch(qkv, kv, (table.shape[0], heads, kv_heads, width // kv_heads), scratch, out, stream)


def prefill_cuda(qkv: Any, offsets: Any, zeros: Any, heads: int, kv_heads: int, scratch: Any, out: Any, *, stream: Any = 0) -> None:
    """Causal attention of whole prompts over their own rows: prompt s is rows offsets[s] to offsets[s + 1].

    zeros [prompts] int64: entries before the prompt. The rest as in `decode_cuda`.
    """
    width = qkv.shape[1]
    d = width // (heads + 2 * kv_heads)
    # A "page" that no prompt outgrows: entry t of prompt s is row offsets[s] + t.
    table = offsets[:-1].reshape(-1, 1)
    kv = qkv.reshape(-1), qkv.reshape(-1), offsets, zeros, table, 1 << 30, 1, width, heads * d, (heads + kv_heads) * d
    _launch(qkv, kv, (table.shape[0], heads, kv_heads, d), scratch, out, stream)
