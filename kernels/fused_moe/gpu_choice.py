"""The router inside the persistent kernel for few tokens: a tile of its logits, and the experts that every block chooses for itself,
in shared memory."""

from __future__ import annotations

import math

import numpy as np

from kernels.cuda.jit import cuda, device
from kernels.cuda.warp import SIZE, warp_best, warp_sum
from kernels.cuda.words import batch
from kernels.fused_moe.state import EXPERTS, HIDDEN, ROUTE_COLUMNS, TOKENS, TOP_K

_batch = batch(1, 8)
fetch_route, dots_route, route_elements = _batch.fetch, _batch.dots, _batch.elements
ZERO = np.float32(0)


@device(forceinline=True)
def logits_of(s, x, gate, logits, chunk):
    """A warp for each router column of the tile: its logits of all tokens."""
    lane, warp, warps = cuda.threadIdx.x % SIZE, cuda.threadIdx.x // SIZE, cuda.blockDim.x // SIZE
    hidden, stop = s[HIDDEN], min(s[EXPERTS], (chunk + 1) * s[ROUTE_COLUMNS])
    for e in range(chunk * s[ROUTE_COLUMNS] + warp, stop, warps):
        start = np.int64(e) * hidden
        for t in range(s[TOKENS]):
            total, row = ZERO, np.int64(t) * hidden
            for at in range(0, hidden, route_elements(gate)):
                words = fetch_route(gate, start, np.int64(0), at, hidden)
                total += dots_route(gate, words, x, (row,), at, hidden)[0]
            total = warp_sum(total)
            if lane == 0:
                logits[t, e] = total


@device(forceinline=True)
def top_k_of(s, logits, ids, weights):
    """A warp for each token: in round j the best of what comes behind the choice of round j - 1."""
    lane, warp, warps = cuda.threadIdx.x % SIZE, cuda.threadIdx.x // SIZE, cuda.blockDim.x // SIZE
    experts, top_k = s[EXPERTS], s[TOP_K]
    for t in range(warp, s[TOKENS], warps):
        last, last_at, first, mine = np.float32(np.inf), np.int32(-1), ZERO, ZERO
        for j in range(top_k):
            best, at = np.float32(-np.inf), experts
            for e in range(lane, experts, SIZE):
                v = logits[t, e]
                behind = v < last or (v == last and e > last_at)
                if behind and (at == experts or v > best):
                    best, at = v, np.int32(e)
            best, at = warp_best(best, at)
            last, last_at = best, at
            if j == 0:
                first = best
            if lane == j:
                mine = np.float32(math.exp(best - first))
            if lane == 0:
                ids[t * top_k + j] = at
        total = warp_sum(mine)
        if lane < top_k:
            weights[t * top_k + lane] = mine / total


@device(forceinline=True)
def place(s, ids, rows, token_of, counts):
    """Row of each route: how many stand before it in the order of (expert, route). counts: rows of the
    expert whose first route it is, else 0."""
    routes, r = s[TOKENS] * s[TOP_K], cuda.threadIdx.x
    while r < routes:
        mine, before, same, earlier = ids[r], np.int32(0), np.int32(0), np.int32(0)
        for q in range(routes):
            before += ids[q] < mine or (ids[q] == mine and q < r)
            same += ids[q] == mine
            earlier += ids[q] == mine and q < r
        rows[r], token_of[before] = before, r // s[TOP_K]
        counts[r] = same if earlier == 0 else 0
        r += cuda.blockDim.x
    cuda.syncthreads()


@device(forceinline=True)
def fill_table(s, ids, rows, counts, table):
    """One slot for each expert that was chosen: (expert, first row, row behind the last); returns their number."""
    routes, r = s[TOKENS] * s[TOP_K], cuda.threadIdx.x
    while r < routes:
        if counts[r]:
            slot = 0
            for q in range(routes):
                slot += counts[q] > 0 and ids[q] < ids[r]
            table[slot, 0], table[slot, 1], table[slot, 2] = ids[r], rows[r], rows[r] + counts[r]
        r += cuda.blockDim.x
    found = 0
    for q in range(routes):
        found += counts[q] > 0
    cuda.syncthreads()
    return found
