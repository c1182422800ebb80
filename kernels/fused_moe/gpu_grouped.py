"""The persistent kernel for many tokens: tiles of 64 rows by 64 columns.

A tile is a product of 64 rows of activations, wherever they lie, with 64 rows of weights: both are
given as lists of places, so that gate and up columns stand side by side in one product and tokens
are gathered as they are read. The product itself is `kernels.fused_moe.gpu_product`.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from kernels.cuda.element import narrow, widen
from kernels.cuda.jit import cuda, device, kernel
from kernels.cuda.tiles import OPERAND
from kernels.expert_ffn.gpu import silu
from kernels.fused_moe.gpu_product import NOWHERE, RESULT, SIDE, STRIDE, THREADS, product
from kernels.fused_moe.gpu_tickets import begun, done, draw, leave, share, skip, wait_for, wait_for_inputs
from kernels.fused_moe.host import Layer
from kernels.fused_moe.program import BLOCK, CHUNK, JUMP, OP
from kernels.fused_moe.state import (
    COMBINE_COLUMNS,
    DISPATCHED,
    DOWN_COLUMNS,
    EXPERTS,
    FFN,
    GATE_UP_COLUMNS,
    HIDDEN,
    ROWS,
    TOKEN_BLOCKS,
    TOKEN_ROWS,
    TOKENS,
    TOP_K,
    State,
)  # fmt: skip
from kernels.fused_moe.tiles import DISPATCH, DOWN, GATE_UP, ROUTE, Tiles

MOST_EXPERTS = 1024
SCAN = MOST_EXPERTS + 1
"""What the scan over experts in shared memory holds."""


@device
def _route(s, x, gate, logits, ids, weights, counts, x_at, w_at, result, xs, ws, block):
    """Logits of the block's tokens, 64 experts at a time; then their top-k and its histogram."""
    hidden, experts, top_k = s[HIDDEN], s[EXPERTS], s[TOP_K]
    first, stop = block * s[TOKEN_ROWS], min(s[TOKENS], (block + 1) * s[TOKEN_ROWS])
    for left in range(0, experts, SIDE):
        n = cuda.threadIdx.x
        x_at[n] = np.int64(first + n) * hidden if first + n < stop else NOWHERE
        w_at[n] = np.int64(left + n) * hidden if left + n < experts else NOWHERE
        product(x, x_at, gate, w_at, hidden, result, xs, ws)
        for i in range(cuda.threadIdx.x, SIDE * SIDE, THREADS):
            r, c = i // SIDE, i % SIDE
            if first + r < stop and left + c < experts:
                logits[first + r, left + c] = result[r * STRIDE + c]
        cuda.syncthreads()
    t = first + cuda.threadIdx.x
    if t < stop:
        _top_k(logits, ids, weights, t, experts, top_k)
    cuda.syncthreads()
    e = cuda.threadIdx.x
    while e < experts:
        number = 0
        for t in range(first, stop):
            for j in range(top_k):
                number += ids[0, t, j] == e
        counts[block, e] = number
        e += cuda.blockDim.x


@device
def _top_k(logits, ids, weights, t, experts, top_k):
    """One token: insertion into its sorted row of results, then softmax over the chosen."""
    for j in range(top_k):
        ids[0, t, j], weights[0, t, j] = -1, -np.inf
    for e in range(experts):
        v, j = logits[t, e], top_k - 1
        if ids[0, t, j] < 0 or v > weights[0, t, j]:
            while j > 0 and (ids[0, t, j - 1] < 0 or v > weights[0, t, j - 1]):
                ids[0, t, j], weights[0, t, j] = ids[0, t, j - 1], weights[0, t, j - 1]
                j -= 1
            ids[0, t, j], weights[0, t, j] = e, v
    largest, total = weights[0, t, 0], np.float32(0)
    for j in range(top_k):
        weights[0, t, j] = math.exp(weights[0, t, j] - largest)
        total += weights[0, t, j]
    for j in range(top_k):
        weights[0, t, j] = weights[0, t, j] / total


@device
def _dispatch(s, ids, positions, token_of, counts, cursor, table, found, rows, slots, block):
    """Rows of one block of tokens, behind those of the blocks before it; a thread for an expert in turn.

    rows, slots: shared [experts + 1], first row and first slot of each expert. Block 0 writes the table.
    """
    experts, blocks, top_k, tile = s[EXPERTS], s[TOKEN_BLOCKS], s[TOP_K], s[ROWS]
    e = cuda.threadIdx.x
    while e < experts:
        total = before = 0
        for b in range(blocks):
            total += counts[b, e]
            before += counts[b, e] if b < block else 0
        rows[e], cursor[block, e] = total, before
        e += cuda.blockDim.x
    cuda.syncthreads()
    if cuda.threadIdx.x == 0:
        row = slot = 0
        for e in range(experts):
            total = rows[e]
            rows[e], slots[e] = row, slot
            row, slot = row + total, slot + (total + tile - 1) // tile
        rows[experts], slots[experts] = row, slot
    cuda.syncthreads()
    e, first, stop = cuda.threadIdx.x, block * s[TOKEN_ROWS], min(s[TOKENS], (block + 1) * s[TOKEN_ROWS])
    while e < experts:
        at = rows[e] + cursor[block, e]
        for t in range(first, stop):
            for j in range(top_k):
                if ids[0, t, j] == e:
                    positions[0, t, j], token_of[0, at] = at, t
                    at += 1
        for n in range(slots[e + 1] - slots[e] if block == 0 else 0):
            slot, row = slots[e] + n, rows[e] + n * tile
            table[0, slot, 0], table[0, slot, 1], table[0, slot, 2] = e, row, min(rows[e + 1], row + tile)
        e += cuda.blockDim.x
    if block == 0 and cuda.threadIdx.x == 0:
        found[0] = slots[experts]


@device
def _gate_up(s, x, experts, token_of, act, x_at, w_at, result, xs, ws, e, first, stop, chunk):
    """Columns of gate in the left half of the product, those of up in the right; then the activation."""
    hidden, ffn, n, half = s[HIDDEN], s[FFN], cuda.threadIdx.x, SIDE // 2
    left, right = chunk * s[GATE_UP_COLUMNS], min(ffn, (chunk + 1) * s[GATE_UP_COLUMNS])
    f = left + n % half
    x_at[n] = np.int64(token_of[0, first + n]) * hidden if first + n < stop else NOWHERE
    w_at[n] = (np.int64(3 * e + n // half) * ffn + f) * hidden if f < right else NOWHERE
    product(x, x_at, experts, w_at, hidden, result, xs, ws)
    for i in range(n, SIDE * half, THREADS):
        r, c = i // half, i % half
        if first + r < stop and left + c < right:
            act[first + r, left + c] = narrow(act, silu(result[r * STRIDE + c]) * result[r * STRIDE + half + c])


@device
def _down(s, experts, act, y, x_at, w_at, result, xs, ws, e, first, stop, chunk):
    hidden, ffn, n = s[HIDDEN], s[FFN], cuda.threadIdx.x
    left, right = chunk * s[DOWN_COLUMNS], min(hidden, (chunk + 1) * s[DOWN_COLUMNS])
    x_at[n] = np.int64(first + n) * ffn if first + n < stop else NOWHERE
    w_at[n] = np.int64(3 * e + 2) * ffn * hidden + np.int64(left + n) * ffn if left + n < right else NOWHERE
    product(act, x_at, experts, w_at, ffn, result, xs, ws)
    for i in range(n, SIDE * SIDE, THREADS):
        r, c = i // SIDE, i % SIDE
        if first + r < stop and left + c < right:
            y[first + r, left + c] = narrow(y, result[r * STRIDE + c])


@device
def _combine(s, y, ids, weights, positions, residual, out, chosen, shares, block, chunk):
    top_k, first, stop = s[TOP_K], block * s[TOKEN_ROWS], min(s[TOKENS], (block + 1) * s[TOKEN_ROWS])
    left, right = chunk * s[COMBINE_COLUMNS], min(s[HIDDEN], (chunk + 1) * s[COMBINE_COLUMNS])
    for t in range(first, stop):
        h = left + cuda.threadIdx.x
        while h < right:
            total = widen(residual[t, h])
            for j in range(top_k):
                total += weights[0, t, j] * widen(y[positions[0, t, j], h])
            out[t, h] = narrow(out, total)
            h += cuda.blockDim.x
        if chunk == 0 and cuda.threadIdx.x < top_k:
            chosen[t, cuda.threadIdx.x], shares[t, cuda.threadIdx.x] = ids[0, t, cuda.threadIdx.x], weights[0, t, cuda.threadIdx.x]


@kernel(
    "int32[::1], int32[:,::1], element[:,::1], element[:,::1], element[::1], element[:,::1], element[:,::1], int16[:,::1], float32[:,::1],"
    " float32[:,::1], int16[:,:,::1], float32[:,:,::1], int32[:,:,::1], int32[:,::1], int32[:,::1], int32[:,::1], int32[:,:,::1],"
    " int32[::1], element[:,::1], element[:,::1], int32[::1], int64[::1], int64[:,::1], int32[::1]",
    hot=True, launch_bounds=(THREADS, 4),
)  # fmt: skip
def grouped(
    s, program, x, gate, experts, residual, out, chosen, shares,
    logits, ids, weights, positions, token_of, cursor, counts, table,
    found, act, y, counters, known, stamps, ran_on,
):  # fmt: skip
    """Draw tickets until the list is drained. Arguments: `kernels.fused_moe.host.Layer` and `state.State`."""
    ticket = cuda.shared.array(1, np.int32)
    drawn = cuda.shared.array(1, np.int32)
    x_at = cuda.shared.array(SIDE, np.int64)
    w_at = cuda.shared.array(SIDE, np.int64)
    result = cuda.shared.array(RESULT, np.float32, alignment=16)
    xs = cuda.shared.array(OPERAND, np.float32)
    ws = cuda.shared.array(OPERAND, np.float32)
    rows = cuda.shared.array(SCAN, np.int32)
    slots = cuda.shared.array(SCAN, np.int32)
    i = share(ticket, draw(counters))
    while i < program.shape[0]:
        op, block, chunk = program[i, OP], program[i, BLOCK], program[i, CHUNK]
        following = draw(counters)
        if op > DISPATCH:
            wait_for(counters, DISPATCHED, s[TOKEN_BLOCKS])
        if (op == GATE_UP or op == DOWN) and block >= found[0]:
            skip(i, program[i, JUMP], drawn, counters, known, stamps, ran_on)
        else:
            wait_for_inputs(s, counters, op, block, chunk, found[0] if op > DOWN else 0)
            begun(i, stamps)
            if op == ROUTE:
                _route(s, x, gate, logits, ids, weights, counts, x_at, w_at, result, xs, ws, block)
            elif op == DISPATCH:
                _dispatch(s, ids, positions, token_of, counts, cursor, table, found, rows, slots, block)
            elif op == GATE_UP:
                e, first, stop = table[0, block, 0], table[0, block, 1], table[0, block, 2]
                _gate_up(s, x, experts, token_of, act, x_at, w_at, result, xs, ws, e, first, stop, chunk)
            elif op == DOWN:
                e, first, stop = table[0, block, 0], table[0, block, 1], table[0, block, 2]
                _down(s, experts, act, y, x_at, w_at, result, xs, ws, e, first, stop, chunk)
            else:
                _combine(s, y, ids, weights, positions, residual, out, chosen, shares, block, chunk)
            done(s, program, i, counters, known, stamps, ran_on)
        i = share(ticket, following)
    leave(counters, known)


def check(tiles: Tiles) -> None:
    """Raises ValueError for sizes that this form does not do."""
    t = tiles.tiling
    if max(t.tokens, t.rows, t.down, 2 * t.gate_up) > SIDE or tiles.shape.experts > MOST_EXPERTS or tiles.shape.top_k > THREADS:
        raise ValueError(f"tiles are {SIDE} rows by {SIDE} columns (gate and up side by side), experts {MOST_EXPERTS} at most: {tiles}")


def launch(blocks: int, threads: int, s: Any, program: Any, layer: Layer, state: State, stream: Any) -> None:
    """One launch of THREADS threads a block. s: `Sizes` as int32 on the device."""
    grouped.launch(blocks, threads, s, program, *layer, *state, stream=stream)
