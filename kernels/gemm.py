"""Register tiles of x [rows, k] times w [n, k] transposed: the inner loops of `linear` and `expert_ffn`.

Each tile keeps 4 x 4 (or 1 x 4, 1 x 1) sums in vector registers over the whole of k, both operands
being contiguous along k. A block of 4 weight rows is read from memory once and stays in L1 for
all rows of x, which is what few rows (decode) need: weights stream once, at memory speed.
"""

from __future__ import annotations

import numpy as np

from kernels.jit import jit

_ZERO = np.float32(0)


@jit
def tile_4x4(x, w, out, m, n, col):
    """out[m:m+4, col:col+4] = x[m:m+4] @ w[n:n+4].T"""
    x0, x1, x2, x3 = x[m], x[m + 1], x[m + 2], x[m + 3]
    w0, w1, w2, w3 = w[n], w[n + 1], w[n + 2], w[n + 3]
    a00 = a01 = a02 = a03 = a10 = a11 = a12 = a13 = _ZERO
    a20 = a21 = a22 = a23 = a30 = a31 = a32 = a33 = _ZERO
    for k in range(x0.shape[0]):
        p, q, r, s = w0[k], w1[k], w2[k], w3[k]
        a = x0[k]
        a00 += a * p
        a01 += a * q
        a02 += a * r
        a03 += a * s
        a = x1[k]
        a10 += a * p
        a11 += a * q
        a12 += a * r
        a13 += a * s
        a = x2[k]
        a20 += a * p
        a21 += a * q
        a22 += a * r
        a23 += a * s
        a = x3[k]
        a30 += a * p
        a31 += a * q
        a32 += a * r
        a33 += a * s
    o = out[m]
    o[col], o[col + 1], o[col + 2], o[col + 3] = a00, a01, a02, a03
    o = out[m + 1]
    o[col], o[col + 1], o[col + 2], o[col + 3] = a10, a11, a12, a13
    o = out[m + 2]
    o[col], o[col + 1], o[col + 2], o[col + 3] = a20, a21, a22, a23
    o = out[m + 3]
    o[col], o[col + 1], o[col + 2], o[col + 3] = a30, a31, a32, a33


@jit
def tile_1x4(x, w, out, m, n, col):
    """out[m, col:col+4] = x[m] @ w[n:n+4].T"""
    x0 = x[m]
    w0, w1, w2, w3 = w[n], w[n + 1], w[n + 2], w[n + 3]
    a0 = a1 = a2 = a3 = _ZERO
    for k in range(x0.shape[0]):
        a = x0[k]
        a0 += a * w0[k]
        a1 += a * w1[k]
        a2 += a * w2[k]
        a3 += a * w3[k]
    o = out[m]
    o[col], o[col + 1], o[col + 2], o[col + 3] = a0, a1, a2, a3


@jit
def dot(x, w):
    """Sum of x[k] w[k]."""
    a = _ZERO
    for k in range(x.shape[0]):
        a += x[k] * w[k]
    return a


@jit
def columns(x, w, out, start, stop, shift):
    """out[:, n + shift] = x @ w[n] for n in [start, stop)."""
    rows = x.shape[0]
    last = start + (stop - start) // 4 * 4
    for n in range(start, last, 4):
        for m in range(0, rows // 4 * 4, 4):
            tile_4x4(x, w, out, m, n, n + shift)
        for m in range(rows // 4 * 4, rows):
            tile_1x4(x, w, out, m, n, n + shift)
    for n in range(last, stop):
        for m in range(rows):
            out[m, n + shift] = dot(x[m], w[n])


@jit
def part(size, parts, index):
    """First element of part `index` when `size` elements are cut into `parts`, in multiples of 16."""
    blocks = (size + 15) // 16
    return min(size, blocks * index // parts * 16)
