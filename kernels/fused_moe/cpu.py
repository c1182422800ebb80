"""The persistent kernel on the CPU: Numba threads that draw tickets, in fp32.

Progress: tickets are drawn in an order that respects every dependency and each block works through
its own in that order, so the lowest ticket that is not done has all it waits for. One thread alone
drains the list.
"""

from __future__ import annotations

import numpy as np

from kernels.atomics import acquire, clock_ns, fetch_add, fetch_max, give_way
from kernels.fused_moe.program import BLOCK, CHUNK, JUMP, OP
from kernels.fused_moe.state import DISPATCHED, EXITED, GATED, ROUTED, TICKET
from kernels.fused_moe.tiles import COMBINE, DISPATCH, DOWN, GATE_UP, ROUTE
from kernels.gemm import columns
from kernels.jit import inline, jit, prange
from kernels.router import select
from kernels.vecmath import exp

_ONE = np.float32(1)


@jit
def _route(s, st, layer, block, chunk):
    """Logits of a block of tokens for some experts; with all of them at hand, the top-k and its histogram."""
    first, left = block * s.token_rows, chunk * s.route_columns
    stop, right = min(s.tokens, first + s.token_rows), min(s.experts, left + s.route_columns)
    columns(layer.x, first, stop - first, layer.gate, st.logits, first, left, right, left)
    if not s.decode:
        select(st.logits[first:stop], st.ids[0, first:stop], st.weights[0, first:stop])
        counts = st.counts[block]
        counts[:] = 0
        for t in range(first, stop):
            for j in range(s.top_k):
                counts[st.ids[0, t, j]] += 1


@jit
def _fill_table(s, counts, table):
    """Slots of all experts, in their order; returns how many there are. counts [blocks, experts]."""
    found = row = 0
    for e in range(s.experts):
        stop = row
        for b in range(counts.shape[0]):
            stop += counts[b, e]
        while row < stop:
            table[found, 0], table[found, 1] = e, row
            row = min(stop, row + s.rows)
            table[found, 2] = row
            found += 1
    return found


@jit
def _place(s, ids, cursor, positions, token_of, first, stop):
    """Rows of tokens [first, stop); cursor [experts]: the next row of each expert."""
    for t in range(first, stop):
        for j in range(s.top_k):
            e = ids[t, j]
            positions[t, j] = cursor[e]
            token_of[cursor[e]] = t
            cursor[e] += 1


@jit
def _dispatch(s, st, block):
    """Rows of one block of tokens, behind those of the blocks before it; block 0 writes the table too."""
    cursor, before = st.cursor[block], 0
    for e in range(s.experts):
        cursor[e] = before
        for b in range(s.token_blocks):
            before += st.counts[b, e]
            if b < block:
                cursor[e] += st.counts[b, e]
    first = block * s.token_rows
    _place(s, st.ids[0], cursor, st.positions[0], st.token_of[0], first, min(s.tokens, first + s.token_rows))
    if block == 0:
        st.found[0] = _fill_table(s, st.counts, st.table[0])


@jit
def _choose(s, st, p):
    """Decode: top-k, rows and table of all tokens into copy p."""
    ids, cursor = st.ids[p], st.cursor[p]
    select(st.logits, ids, st.weights[p])
    cursor[:] = 0
    for t in range(s.tokens):
        for j in range(s.top_k):
            cursor[ids[t, j]] += 1
    st.found[p] = _fill_table(s, cursor.reshape(1, s.experts), st.table[p])
    before = 0
    for e in range(s.experts):
        before, cursor[e] = before + cursor[e], before
    _place(s, ids, cursor, st.positions[p], st.token_of[p], 0, s.tokens)


@jit
def _gate_up(s, st, layer, p, slot, chunk, panel, out):
    """Columns of gate and up for the rows of a slot, gathered into `panel`; the activation goes to act."""
    e, first, stop = st.table[p, slot]
    left, rows = chunk * s.gate_up_columns, stop - first
    right, size = min(s.ffn, left + s.gate_up_columns), s.ffn * s.hidden
    for r in range(rows):
        panel[r, :] = layer.x[st.token_of[p, first + r]]
    matrix = layer.experts[3 * e * size : (3 * e + 2) * size].reshape(2 * s.ffn, s.hidden)
    columns(panel, 0, rows, matrix, out, 0, left, right, 0)
    columns(panel, 0, rows, matrix, out, 0, s.ffn + left, s.ffn + right, right - left)
    for r in range(rows):
        for f in range(right - left):
            gate = out[r, f]
            st.act[first + r, left + f] = gate / (_ONE + exp(-gate)) * out[r, right - left + f]


@jit
def _down(s, st, layer, p, slot, chunk):
    e, first, stop = st.table[p, slot]
    left, size = chunk * s.down_columns, s.ffn * s.hidden
    matrix = layer.experts[(3 * e + 2) * size : (3 * e + 3) * size].reshape(s.hidden, s.ffn)
    columns(st.act, first, stop - first, matrix, st.y, first, left, min(s.hidden, left + s.down_columns), left)


@jit
def _combine(s, st, layer, p, block, chunk):
    """out = residual + weighted rows; in the decode form also hands out the choice, which is copy 0's."""
    first, left = block * s.token_rows, chunk * s.combine_columns
    right = min(s.hidden, left + s.combine_columns)
    for t in range(first, min(s.tokens, first + s.token_rows)):
        to = layer.out[t]
        for h in range(left, right):
            to[h] = layer.residual[t, h]
        for j in range(s.top_k):
            row, weight = st.y[st.positions[p, t, j]], st.weights[p, t, j]
            for h in range(left, right):
                to[h] += weight * row[h]
            if chunk == 0:
                layer.ids[t, j], layer.weights[t, j] = st.ids[p, t, j], weight


@jit
def _wait(st, counter, target):
    while acquire(st.counters, counter) < target:
        give_way()


@inline
def _wait_for_routing(s, st):
    if s.decode:
        _wait(st, ROUTED, s.route_tiles)
    else:
        _wait(st, DISPATCHED, s.token_blocks)


@jit
def _skip(st, block, ticket, jump):
    """Stamp a surplus ticket, and those behind it that nobody has drawn yet."""
    drawn = fetch_max(st.counters, TICKET, jump)
    known = acquire(st.known, 0)
    for i in range(ticket, jump):
        if i == ticket or i >= drawn:
            st.stamps[i, 0] = st.stamps[i, 1] = known
            st.ran_on[i] = ~block


@jit
def _run(s, st, layer, p, op, block, chunk, panel, out):
    if op == ROUTE:
        _route(s, st, layer, block, chunk)
    elif op == DISPATCH:
        _dispatch(s, st, block)
    elif op == GATE_UP:
        _gate_up(s, st, layer, p, block, chunk, panel, out)
    elif op == DOWN:
        _down(s, st, layer, p, block, chunk)
    else:
        _combine(s, st, layer, p, block, chunk)


@jit
def _done(s, st, op, block, chunk, end):
    """Count a tile as done where its dependents look."""
    if op == ROUTE or op == DISPATCH:
        fetch_max(st.known, 0, end)
        fetch_add(st.counters, ROUTED if op == ROUTE else DISPATCHED, 1)
    elif op == GATE_UP:
        fetch_add(st.counters, GATED + block, 1)
    elif op == DOWN:
        fetch_add(st.counters, GATED + s.slots + chunk * s.down_columns // s.combine_columns, 1)


@jit
def _wait_for_inputs(s, st, p, op, block, chunk):
    if op == DISPATCH:
        _wait(st, ROUTED, s.route_tiles)
    elif op == DOWN:
        _wait(st, GATED + block, s.gate_up_chunks)
    elif op == COMBINE:
        left, right = chunk * s.combine_columns, min(s.hidden, (chunk + 1) * s.combine_columns)
        parts = (right - left + s.down_columns - 1) // s.down_columns
        _wait(st, GATED + s.slots + chunk, st.found[p] * parts)


@jit
def _block(s, st, layer, program, number, blocks, panel, out):
    """One block: draw, wait, run, stamp, count, until the list is drained. The last to leave resets the counters."""
    p, chosen = number if s.decode else 0, False
    ticket = fetch_add(st.counters, TICKET, 1)
    while ticket < program.shape[0]:
        op, block, chunk = program[ticket, OP], program[ticket, BLOCK], program[ticket, CHUNK]
        if op > DISPATCH:
            _wait_for_routing(s, st)
        if op > DISPATCH and s.decode and not chosen:
            _choose(s, st, p)
            chosen = True
        if (op == GATE_UP or op == DOWN) and block >= st.found[p]:
            _skip(st, number, ticket, program[ticket, JUMP])
        else:
            _wait_for_inputs(s, st, p, op, block, chunk)
            st.stamps[ticket, 0] = clock_ns()
            _run(s, st, layer, p, op, block, chunk, panel, out)
            end = clock_ns()
            st.stamps[ticket, 1], st.ran_on[ticket] = end, number
            _done(s, st, op, block, chunk, end)
        ticket = fetch_add(st.counters, TICKET, 1)
    if fetch_add(st.counters, EXITED, 1) == blocks - 1:
        st.counters[:] = 0
        st.known[0] = 0


@jit(parallel=True)
def blocks_in_parallel(s, st, layer, program, panels, outs):
    """One block for each row of `panels` [blocks, rows, hidden] and `outs` [blocks, rows, 2 columns]."""
    blocks = panels.shape[0]
    for b in prange(blocks):
        _block(s, st, layer, program, np.int64(b), blocks, panels[b], outs[b])
