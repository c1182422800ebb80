"""Inner loops of attention on the CPU: two query heads or rows by four keys or values at a time.

Arrays come whole, with unsigned row and column numbers, for the reasons that `gemm` gives. Callers
pass the head dimension as a constant where they can, so that LLVM unrolls the loops over it.
"""

from __future__ import annotations

import numpy as np

from kernels.jit import inline
from kernels.vecmath import exp

ZERO = np.float32(0)


@inline(reorder=True)
def dots_2x4(q, row0, col0, row1, col1, k, rows, col, d, scale):
    """Scaled dot products of two query heads with four keys."""
    col0, col1, col, (t0, t1, t2, t3) = np.uintp(col0), np.uintp(col1), np.uintp(col), rows
    a0 = a1 = a2 = a3 = b0 = b1 = b2 = b3 = ZERO
    for i in range(np.uintp(d)):
        w, x, y, z = k[t0, col + i], k[t1, col + i], k[t2, col + i], k[t3, col + i]
        a, b = q[row0, col0 + i], q[row1, col1 + i]
        a0, a1, a2, a3 = a0 + a * w, a1 + a * x, a2 + a * y, a3 + a * z
        b0, b1, b2, b3 = b0 + b * w, b1 + b * x, b2 + b * y, b3 + b * z
    return (a0 * scale, a1 * scale, a2 * scale, a3 * scale), (b0 * scale, b1 * scale, b2 * scale, b3 * scale)


@inline(reorder=True)
def dots_1x4(q, row, col0, k, rows, col, d, scale):
    col0, col, (t0, t1, t2, t3) = np.uintp(col0), np.uintp(col), rows
    a0 = a1 = a2 = a3 = ZERO
    for i in range(np.uintp(d)):
        a = q[row, col0 + i]
        a0, a1, a2, a3 = a0 + a * k[t0, col + i], a1 + a * k[t1, col + i], a2 + a * k[t2, col + i], a3 + a * k[t3, col + i]
    return a0 * scale, a1 * scale, a2 * scale, a3 * scale


@inline(reorder=True)
def mix_2x4(p, from0, from1, at, v, rows, col, out, row0, col0, row1, col1, d):
    """Two query heads' outputs += p[from, at:at+4] times four values."""
    col0, col1, col, (t0, t1, t2, t3) = np.uintp(col0), np.uintp(col1), np.uintp(col), rows
    p0, p1, p2, p3 = p[from0, at], p[from0, at + 1], p[from0, at + 2], p[from0, at + 3]
    r0, r1, r2, r3 = p[from1, at], p[from1, at + 1], p[from1, at + 2], p[from1, at + 3]
    for i in range(np.uintp(d)):
        w, x, y, z = v[t0, col + i], v[t1, col + i], v[t2, col + i], v[t3, col + i]
        out[row0, col0 + i] += p0 * w + p1 * x + p2 * y + p3 * z
        out[row1, col1 + i] += r0 * w + r1 * x + r2 * y + r3 * z


@inline(reorder=True)
def mix_1x4(p, from0, at, v, rows, col, out, row0, col0, d):
    col0, col, (t0, t1, t2, t3) = np.uintp(col0), np.uintp(col), rows
    p0, p1, p2, p3 = p[from0, at], p[from0, at + 1], p[from0, at + 2], p[from0, at + 3]
    for i in range(np.uintp(d)):
        out[row0, col0 + i] += p0 * v[t0, col + i] + p1 * v[t1, col + i] + p2 * v[t2, col + i] + p3 * v[t3, col + i]


@inline
def put(scores, row, at, values):
    scores[row, at], scores[row, at + 1], scores[row, at + 2], scores[row, at + 3] = values


@inline
def four(t, last):
    """Rows t to t + 3; past `last`, that one again: its scores are zeroed before they are used."""
    return t, min(t + 1, last), min(t + 2, last), min(t + 3, last)


@inline(reorder=True)
def soften(scores, row, count, peak):
    """Replace scores[row, :count] by exp(score - max(peak, scores)) and the next 3 by 0.

    Returns that maximum and the sum.
    """
    for t in range(np.uintp(count)):
        peak = max(peak, scores[row, t])
    total = ZERO
    for t in range(np.uintp(count)):
        p = exp(scores[row, t] - peak)
        scores[row, t] = p
        total += p
    for t in range(count, count + 3):
        scores[row, t] = ZERO
    return peak, total


@inline(reorder=True)
def scale(out, row, col, d, factor):
    col = np.uintp(col)
    for i in range(np.uintp(d)):
        out[row, col + i] *= factor
