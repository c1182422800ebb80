"""The persistent kernel for few tokens: weights stream through warps, each byte read once.

What bounds it is memory, so loads are always in flight: a warp holds 4 to 6 KiB of weights in
registers and issues the next as soon as it has used them, four blocks a multiprocessor cover each other's
waits, and the first weights of a down tile fly while its activations are awaited: the experts, not
the activations, decide the addresses. Every block chooses the experts for itself in shared memory.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from kernels.cuda.element import narrow, widen
from kernels.cuda.jit import cuda, device, kernel
from kernels.cuda.warp import SIZE, warp_sum
from kernels.cuda.words import batch
from kernels.expert_ffn.gpu import silu
from kernels.fused_moe.gpu_choice import fill_table, logits_of, place, top_k_of
from kernels.fused_moe.gpu_tickets import begun, done, draw, leave, share, skip, wait_for, wait_for_inputs
from kernels.fused_moe.host import Layer
from kernels.fused_moe.program import BLOCK, CHUNK, JUMP, OP
from kernels.fused_moe.state import (
    COMBINE_COLUMNS,
    DOWN_COLUMNS,
    FFN,
    GATE_UP_COLUMNS,
    HIDDEN,
    ROUTE_TILES,
    ROUTED,
    TOKENS,
    TOP_K,
    State,
)  # fmt: skip
from kernels.fused_moe.tiles import DOWN, GATE_UP, ROUTE, Tiles

THREADS = 128
ROUTES = 256
"""Most tokens x k: what a block chooses lives in shared memory."""

_gate_up_batch, _down_batch = batch(2, 4), batch(4, 3)
fetch_gate_up, dots_gate_up, gate_up_elements = _gate_up_batch.fetch, _gate_up_batch.dots, _gate_up_batch.elements
fetch_down, dots_down, down_elements = _down_batch.fetch, _down_batch.dots, _down_batch.elements
DOWN_ROWS = _down_batch.rows
ZERO = np.float32(0)


@device(forceinline=True)
def _gate_up(s, x, experts, token_of, act, e, first, stop, chunk):
    """A warp for each column of the tile: its gate and up rows at once, two tokens at a time."""
    lane, warp, warps = cuda.threadIdx.x % SIZE, cuda.threadIdx.x // SIZE, cuda.blockDim.x // SIZE
    hidden, ffn = s[HIDDEN], s[FFN]
    f, right = chunk * s[GATE_UP_COLUMNS] + warp, min(ffn, (chunk + 1) * s[GATE_UP_COLUMNS])
    stride, base, step = np.int64(ffn) * hidden, np.int64(e) * 3 * ffn * hidden, gate_up_elements(experts)
    row, at = first, np.int32(0)
    words = fetch_gate_up(experts, base + np.int64(f) * hidden, stride, at, hidden if f < right else 0)
    g = u = (ZERO, ZERO)
    while f < right:
        a = np.int64(token_of[row]) * hidden
        if row + 1 == stop:
            p = dots_gate_up(experts, words, x, (a,), at, hidden)
            g, u = (g[0] + p[0], ZERO), (u[0] + p[1], ZERO)
        else:
            q = dots_gate_up(experts, words, x, (a, np.int64(token_of[row + 1]) * hidden), at, hidden)
            g, u = (g[0] + q[0], g[1] + q[1]), (u[0] + q[2], u[1] + q[3])
        here, now, at = f, row, at + step
        if at >= hidden:
            at, row = np.int32(0), row + 2
            if row >= stop:
                row, f = first, f + warps
        words = fetch_gate_up(experts, base + np.int64(f) * hidden, stride, at, hidden if f < right else 0)
        if at == 0:
            _activate(act, now, here, lane, g[0], u[0])
            if now + 1 < stop:
                _activate(act, now + 1, here, lane, g[1], u[1])
            g = u = (ZERO, ZERO)


@device(inline="always")
def _activate(act, row, column, lane, gate, up):
    """Sum up the lanes' parts and store silu(gate) * up."""
    gate, up = warp_sum(gate), warp_sum(up)
    if lane == 0:
        act[row, column] = narrow(act, silu(gate) * up)


@device(forceinline=True)
def _down(s, experts, act, y, e, first, stop, chunk, counters, slot, ticket, stamps):
    """A warp for each four columns of the tile. The first weights fly while the block waits for act."""
    lane, warp, warps = cuda.threadIdx.x % SIZE, cuda.threadIdx.x // SIZE, cuda.blockDim.x // SIZE
    hidden, ffn = s[HIDDEN], s[FFN]
    h, right = chunk * s[DOWN_COLUMNS] + warp * DOWN_ROWS, min(hidden, (chunk + 1) * s[DOWN_COLUMNS])
    base, step = (np.int64(e) * 3 + 2) * ffn * hidden, down_elements(experts)
    row, at = first, np.int32(0)
    words = _fetch_down(experts, base, h, right, at, ffn)
    wait_for_inputs(s, counters, DOWN, slot, chunk, 0)
    begun(ticket, stamps)
    one = two = (ZERO, ZERO, ZERO, ZERO)
    while h < right:
        a = np.int64(row) * ffn
        if row + 1 == stop:
            p = dots_down(experts, words, act, (a,), at, ffn)
            one = (one[0] + p[0], one[1] + p[1], one[2] + p[2], one[3] + p[3])
        else:
            q = dots_down(experts, words, act, (a, a + ffn), at, ffn)
            one = (one[0] + q[0], one[1] + q[2], one[2] + q[4], one[3] + q[6])
            two = (two[0] + q[1], two[1] + q[3], two[2] + q[5], two[3] + q[7])
        here, now, at = h, row, at + step
        if at >= ffn:
            at, row = np.int32(0), row + 2
            if row >= stop:
                row, h = first, h + warps * DOWN_ROWS
        words = _fetch_down(experts, base, h, right, at, ffn)
        if at == 0:
            _put(y, now, here, right, lane, one)
            if now + 1 < stop:
                _put(y, now + 1, here, right, lane, two)
            one = two = (ZERO, ZERO, ZERO, ZERO)


@device(inline="always")
def _fetch_down(experts, base, h, right, at, ffn):
    """Four rows from h on; rows behind the tile are those of the next tile, and behind the matrix none."""
    return fetch_down(experts, base + np.int64(h) * ffn, np.int64(ffn), at, ffn if h < right else 0)


@device(inline="always")
def _put(y, row, h, right, lane, sums):
    a, b, c, d = warp_sum(sums[0]), warp_sum(sums[1]), warp_sum(sums[2]), warp_sum(sums[3])
    if lane == 0:
        y[row, h] = narrow(y, a)
        if h + 1 < right:
            y[row, h + 1] = narrow(y, b)
        if h + 2 < right:
            y[row, h + 2] = narrow(y, c)
        if h + 3 < right:
            y[row, h + 3] = narrow(y, d)


@device(forceinline=True)
def _combine(s, y, ids, weights, rows, residual, out, chosen, shares, chunk):
    top_k, right = s[TOP_K], min(s[HIDDEN], (chunk + 1) * s[COMBINE_COLUMNS])
    h = chunk * s[COMBINE_COLUMNS] + cuda.threadIdx.x
    while h < right:
        for t in range(s[TOKENS]):
            total = widen(residual[t, h])
            for j in range(top_k):
                total += weights[t * top_k + j] * widen(y[rows[t * top_k + j], h])
            out[t, h] = narrow(out, total)
        h += cuda.blockDim.x
    if chunk == 0:
        r = cuda.threadIdx.x
        while r < s[TOKENS] * top_k:
            chosen[r // top_k, r % top_k], shares[r // top_k, r % top_k] = ids[r], weights[r]
            r += cuda.blockDim.x


@kernel(
    "int32[::1], int32[:,::1], element[:,::1], element[:,::1], element[::1], element[:,::1], element[:,::1], int16[:,::1], float32[:,::1],"
    " float32[:,::1], element[:,::1], element[:,::1], int32[::1], int64[::1], int64[:,::1], int32[::1]",
    hot=True, launch_bounds=(THREADS, 4),
)  # fmt: skip
def decode(
    s, program, x, gate, experts, residual, out, chosen, shares,
    logits, act, y, counters, known, stamps, ran_on,
):  # fmt: skip
    """Draw tickets until the list is drained. Arguments: `kernels.fused_moe.host.Layer` and `state.State`."""
    ticket = cuda.shared.array(1, np.int32)
    drawn = cuda.shared.array(1, np.int32)
    ids = cuda.shared.array(ROUTES, np.int32)
    weights = cuda.shared.array(ROUTES, np.float32)
    rows = cuda.shared.array(ROUTES, np.int32)
    token_of = cuda.shared.array(ROUTES, np.int32)
    counts = cuda.shared.array(ROUTES, np.int32)
    table = cuda.shared.array((ROUTES, 3), np.int32)
    found = -1
    i = share(ticket, draw(counters))
    while i < program.shape[0]:
        op, block, chunk = program[i, OP], program[i, BLOCK], program[i, CHUNK]
        following = draw(counters)
        if op != ROUTE and found < 0:
            wait_for(counters, ROUTED, s[ROUTE_TILES])
            top_k_of(s, logits, ids, weights)
            cuda.syncthreads()
            place(s, ids, rows, token_of, counts)
            found = fill_table(s, ids, rows, counts, table)
        if (op == GATE_UP or op == DOWN) and block >= found:
            skip(i, program[i, JUMP], drawn, counters, known, stamps, ran_on)
        else:
            if op > DOWN:
                wait_for_inputs(s, counters, op, block, chunk, found)
            if op != DOWN:
                begun(i, stamps)
            if op == ROUTE:
                logits_of(s, x, gate, logits, chunk)
            elif op == GATE_UP:
                _gate_up(s, x, experts, token_of, act, table[block, 0], table[block, 1], table[block, 2], chunk)
            elif op == DOWN:
                _down(s, experts, act, y, table[block, 0], table[block, 1], table[block, 2], chunk, counters, block, i, stamps)
            else:
                _combine(s, y, ids, weights, rows, residual, out, chosen, shares, chunk)
            done(s, program, i, counters, known, stamps, ran_on)
        i = share(ticket, following)
    leave(counters, known)


def check(tiles: Tiles) -> None:
    """Raises ValueError for sizes that this form does not do."""
    shape, tiling = tiles.shape, tiles.tiling
    if shape.hidden % 8 or shape.ffn % 8 or tiling.down % DOWN_ROWS:
        raise ValueError(f"hidden and ffn must be multiples of 8, down columns of {DOWN_ROWS}: {shape}, {tiling}")
    if tiling.rows < shape.tokens or shape.routes > ROUTES or shape.top_k > SIZE:
        raise ValueError(f"the decode form has one slot an expert, {ROUTES} routes and {SIZE} experts a token at most: {shape}, {tiling}")


def launch(blocks: int, threads: int, s: Any, program: Any, layer: Layer, state: State, stream: Any) -> None:
    """One launch. s: `Sizes` as int32 on the device."""
    decode.launch(
        blocks, threads, s, program, layer.x, layer.gate, layer.experts, layer.residual, layer.out, layer.ids, layer.weights,
        state.logits, state.act, state.y, state.counters, state.known, state.stamps, state.ran_on, stream=stream,
    )  # fmt: skip
