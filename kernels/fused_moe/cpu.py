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
from kernels.jit import inline, jit
from kernels.router.cpu import select_some
from kernels.vecmath import exp

_ONE = np.float32(1)


@jit
def _route(s, x, gate, logits, ids, weights, counts, block, chunk):
    """Logits of a block of tokens for some experts; with all of them at hand, the top-k and its histogram."""
    first, left = block * s.token_rows, chunk * s.route_columns
    stop, right = min(s.tokens, first + s.token_rows), min(s.experts, left + s.route_columns)
    columns(x, first, stop - first, gate, logits, first, left, right, left)
    if not s.decode:
        select_some(logits, ids, weights, first, stop)
        counts[block, :] = 0
        for t in range(first, stop):
            for j in range(s.top_k):
                counts[block, ids[t, j]] += 1


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
def _dispatch(s, ids, counts, cursors, positions, token_of, slots, found, block):
    """Rows of one block of tokens, behind those of the blocks before it; block 0 writes the table too."""
    cursor, before = cursors[block], 0
    for e in range(s.experts):
        cursor[e] = before
        for b in range(s.token_blocks):
            before += counts[b, e]
            if b < block:
                cursor[e] += counts[b, e]
    first = block * s.token_rows
    _place(s, ids, cursor, positions, token_of, first, min(s.tokens, first + s.token_rows))
    if block == 0:
        found[0] = _fill_table(s, counts, slots)


@jit
def _choose(s, logits, ids, weights, cursor, positions, token_of, slots):
    """Decode: top-k, rows and table of all tokens, in one block's own copies. Returns the number of slots."""
    select_some(logits, ids, weights, 0, len(logits))
    cursor[:] = 0
    for t in range(s.tokens):
        for j in range(s.top_k):
            cursor[ids[t, j]] += 1
    found = _fill_table(s, cursor.reshape(1, s.experts), slots)
    before = 0
    for e in range(s.experts):
        before, cursor[e] = before + cursor[e], before
    _place(s, ids, cursor, positions, token_of, 0, s.tokens)
    return found


@jit
def _gate_up(s, x, experts, slots, token_of, act, slot, chunk, panel, out):
    """Columns of gate and up for the rows of a slot, gathered into `panel`; the activation goes to act."""
    e, first, stop = slots[slot]
    left, rows = chunk * s.gate_up_columns, stop - first
    right, size = min(s.ffn, left + s.gate_up_columns), s.ffn * s.hidden
    for r in range(rows):
        t = token_of[first + r]
        for h in range(s.hidden):
            panel[r, h] = x[t, h]
    matrix = experts[3 * e * size : (3 * e + 2) * size].reshape(2 * s.ffn, s.hidden)
    columns(panel, 0, rows, matrix, out, 0, left, right, 0)
    columns(panel, 0, rows, matrix, out, 0, s.ffn + left, s.ffn + right, right - left)
    for r in range(rows):
        for f in range(right - left):
            gate = out[r, f]
            act[first + r, left + f] = gate / (_ONE + exp(-gate)) * out[r, right - left + f]


@jit
def _down(s, experts, slots, act, y, slot, chunk):
    e, first, stop = slots[slot]
    left, size = chunk * s.down_columns, s.ffn * s.hidden
    matrix = experts[(3 * e + 2) * size : (3 * e + 3) * size].reshape(s.hidden, s.ffn)
    columns(act, first, stop - first, matrix, y, first, left, min(s.hidden, left + s.down_columns), left)


@jit
def _combine(s, y, ids, weights, positions, residual, out, chosen, shares, block, chunk):
    """out = residual + weighted rows; the first chunk also hands out what was chosen."""
    first, left = block * s.token_rows, chunk * s.combine_columns
    right = min(s.hidden, left + s.combine_columns)
    for t in range(first, min(s.tokens, first + s.token_rows)):
        to = out[t]
        for h in range(left, right):
            to[h] = residual[t, h]
        for j in range(s.top_k):
            row, weight = y[positions[t, j]], weights[t, j]
            for h in range(left, right):
                to[h] += weight * row[h]
            if chunk == 0:
                chosen[t, j], shares[t, j] = ids[t, j], weight


@jit
def _wait(counters, counter, target):
    while acquire(counters, counter) < target:
        give_way()


@inline
def _wait_for_routing(s, st):
    if s.decode:
        _wait(st.counters, ROUTED, s.route_tiles)
    else:
        _wait(st.counters, DISPATCHED, s.token_blocks)


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
        _wait(st.counters, ROUTED, s.route_tiles)
    elif op == DOWN:
        _wait(st.counters, GATED + block, s.gate_up_chunks)
    elif op == COMBINE:
        left, right = chunk * s.combine_columns, min(s.hidden, (chunk + 1) * s.combine_columns)
        parts = (right - left + s.down_columns - 1) // s.down_columns
        _wait(st.counters, GATED + s.slots + chunk, st.found[p] * parts)


@jit
def run_block(s, st, layer, program, number, blocks, panel, out):
    """One block: draw, wait, run, stamp, count, until the list is drained. The last to leave resets the counters.

    panel [rows, hidden], out [rows, 2 gate-up columns]: scratch of this block.
    """
    p, chosen = number if s.decode else 0, False
    ids, weights, positions = st.ids[p], st.weights[p], st.positions[p]
    token_of, slots = st.token_of[p], st.table[p]
    ticket = fetch_add(st.counters, TICKET, 1)
    while ticket < program.shape[0]:
        op, block, chunk = program[ticket, OP], program[ticket, BLOCK], program[ticket, CHUNK]
        if op > DISPATCH:
            _wait_for_routing(s, st)
        if op > DISPATCH and s.decode and not chosen:
            st.found[p] = _choose(s, st.logits, ids, weights, st.cursor[p], positions, token_of, slots)
            chosen = True
        if (op == GATE_UP or op == DOWN) and block >= st.found[p]:
            _skip(st, number, ticket, program[ticket, JUMP])
        else:
            _wait_for_inputs(s, st, p, op, block, chunk)
            st.stamps[ticket, 0] = clock_ns()
            if op == ROUTE:
                _route(s, layer.x, layer.gate, st.logits, ids, weights, st.counts, block, chunk)
            elif op == DISPATCH:
                _dispatch(s, ids, st.counts, st.cursor, positions, token_of, slots, st.found, block)
            elif op == GATE_UP:
                _gate_up(s, layer.x, layer.experts, slots, token_of, st.act, block, chunk, panel, out)
            elif op == DOWN:
                _down(s, layer.experts, slots, st.act, st.y, block, chunk)
            else:
                _combine(s, st.y, ids, weights, positions, layer.residual, layer.out, layer.ids, layer.weights, block, chunk)
            end = clock_ns()
            st.stamps[ticket, 1], st.ran_on[ticket] = end, number
            _done(s, st, op, block, chunk, end)
        ticket = fetch_add(st.counters, TICKET, 1)
    if fetch_add(st.counters, EXITED, 1) == blocks - 1:
        st.counters[:] = 0
        st.known[0] = 0
