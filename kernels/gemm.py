"""Register tiles of x [rows, k] times w [n, k] transposed: the inner loops of `linear` and `expert_ffn`.

Each tile keeps 4 x 6 (or 2 x 6, 1 x 6) vectors of sums in registers over the whole of k, both
operands being contiguous along k. A block of 6 weight rows is read from memory once and stays in
L1 for all rows of x, which is what few rows (decode) need: weights stream once. 24 sums and their
operands just fit 32 vector registers; 4 x 4 and 8 x 2 measured 15 % slower.

Loops run over unsigned indices, and no slices are taken: Numba wraps signed indices around, which
keeps loops from vectorising, and counts references to slices.
"""

from __future__ import annotations

import numpy as np

from kernels.jit import inline, jit

WIDTH = 6
"""Weight rows of a tile."""

PANEL = 64
"""Rows of x that stay in L2 while the weight passes by."""

_ZERO = np.float32(0)


@inline(reorder=True)
def tile_4x6(x, m, w, n, out, row, col):
    """out[row:row+4, col:col+6] = x[m:m+4] @ w[n:n+6].T"""
    a0 = a1 = a2 = a3 = a4 = a5 = b0 = b1 = b2 = b3 = b4 = b5 = _ZERO
    c0 = c1 = c2 = c3 = c4 = c5 = d0 = d1 = d2 = d3 = d4 = d5 = _ZERO
    for k in range(np.uintp(x.shape[1])):
        p, q, r, s, t, u = w[n, k], w[n + 1, k], w[n + 2, k], w[n + 3, k], w[n + 4, k], w[n + 5, k]
        y = x[m, k]
        a0, a1, a2, a3, a4, a5 = a0 + y * p, a1 + y * q, a2 + y * r, a3 + y * s, a4 + y * t, a5 + y * u
        y = x[m + 1, k]
        b0, b1, b2, b3, b4, b5 = b0 + y * p, b1 + y * q, b2 + y * r, b3 + y * s, b4 + y * t, b5 + y * u
        y = x[m + 2, k]
        c0, c1, c2, c3, c4, c5 = c0 + y * p, c1 + y * q, c2 + y * r, c3 + y * s, c4 + y * t, c5 + y * u
        y = x[m + 3, k]
        d0, d1, d2, d3, d4, d5 = d0 + y * p, d1 + y * q, d2 + y * r, d3 + y * s, d4 + y * t, d5 + y * u
    _store(out, row, col, a0, a1, a2, a3, a4, a5)
    _store(out, row + 1, col, b0, b1, b2, b3, b4, b5)
    _store(out, row + 2, col, c0, c1, c2, c3, c4, c5)
    _store(out, row + 3, col, d0, d1, d2, d3, d4, d5)


@inline(reorder=True)
def tile_2x6(x, m, w, n, out, row, col):
    """out[row:row+2, col:col+6] = x[m:m+2] @ w[n:n+6].T"""
    a0 = a1 = a2 = a3 = a4 = a5 = b0 = b1 = b2 = b3 = b4 = b5 = _ZERO
    for k in range(np.uintp(x.shape[1])):
        p, q, r, s, t, u = w[n, k], w[n + 1, k], w[n + 2, k], w[n + 3, k], w[n + 4, k], w[n + 5, k]
        y = x[m, k]
        a0, a1, a2, a3, a4, a5 = a0 + y * p, a1 + y * q, a2 + y * r, a3 + y * s, a4 + y * t, a5 + y * u
        y = x[m + 1, k]
        b0, b1, b2, b3, b4, b5 = b0 + y * p, b1 + y * q, b2 + y * r, b3 + y * s, b4 + y * t, b5 + y * u
    _store(out, row, col, a0, a1, a2, a3, a4, a5)
    _store(out, row + 1, col, b0, b1, b2, b3, b4, b5)


@inline(reorder=True)
def tile_1x6(x, m, w, n, out, row, col):
    """out[row, col:col+6] = x[m] @ w[n:n+6].T"""
    a0 = a1 = a2 = a3 = a4 = a5 = _ZERO
    for k in range(np.uintp(x.shape[1])):
        y = x[m, k]
        a0, a1, a2 = a0 + y * w[n, k], a1 + y * w[n + 1, k], a2 + y * w[n + 2, k]
        a3, a4, a5 = a3 + y * w[n + 3, k], a4 + y * w[n + 4, k], a5 + y * w[n + 5, k]
    _store(out, row, col, a0, a1, a2, a3, a4, a5)


@inline
def _store(out, row, col, a, b, c, d, e, f):
    out[row, col], out[row, col + 1], out[row, col + 2] = a, b, c
    out[row, col + 3], out[row, col + 4], out[row, col + 5] = d, e, f


@inline(reorder=True)
def dot(x, m, w, n):
    """x[m] . w[n]"""
    a = _ZERO
    for k in range(np.uintp(x.shape[1])):
        a += x[m, k] * w[n, k]
    return a


@jit
def columns(x, first, rows, w, out, row, start, stop, col):
    """out[row:row+rows, col:col+stop-start] = x[first:first+rows] @ w[start:stop].T"""
    for done in range(0, rows, PANEL):
        _panel(x, first + done, min(PANEL, rows - done), w, out, row + done, start, stop, col - start)


@inline
def _panel(x, first, rows, w, out, row, start, stop, shift):
    fours, last = rows // 4 * 4, start + (stop - start) // WIDTH * WIDTH
    for n in range(start, last, WIDTH):
        for m in range(0, fours, 4):
            tile_4x6(x, first + m, w, n, out, row + m, n + shift)
        if rows - fours >= 2:
            tile_2x6(x, first + fours, w, n, out, row + fours, n + shift)
        if rows % 2:
            tile_1x6(x, first + rows - 1, w, n, out, row + rows - 1, n + shift)
    for n in range(last, stop):
        for m in range(rows):
            out[row + m, n + shift] = dot(x, first + m, w, n)


@jit
def part(size, parts, index):
    """First element of part `index` when `size` elements are cut into `parts`, in multiples of a tile."""
    tiles = (size + WIDTH - 1) // WIDTH
    return min(size, tiles * index // parts * WIDTH)
