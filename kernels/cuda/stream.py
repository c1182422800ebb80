"""Dot products of one streamed weight row with one or four rows of activations: the inner loops of
products with few rows, whose time is the time to read the weight once.

Each lane of a warp takes eight elements at a time, two lots of them in flight. Offsets count
elements from the first one of an array; they and `k` are multiples of 8.
"""

from __future__ import annotations

import numpy as np

from kernels.cuda.jit import device
from kernels.cuda.wide import load8, stream8

LANE, TURN = np.int32(8), np.int32(256)
"""Elements that a lane and a warp take at a time."""


@device(inline="always")
def _dot8(a, b):
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2] + a[3] * b[3] + a[4] * b[4] + a[5] * b[5] + a[6] * b[6] + a[7] * b[7]


@device
def dot1(x, row, w, start, k, lane):
    """The lane's part of x[row:row+k] . w[start:start+k], both offsets into the flat arrays."""
    total, more = np.float32(0), np.float32(0)
    i = lane * LANE
    while i + TURN < k:
        near, far = stream8(w, start + i), stream8(w, start + i + TURN)
        total += _dot8(near, load8(x, row + i))
        more += _dot8(far, load8(x, row + i + TURN))
        i += TURN + TURN
    if i < k:
        total += _dot8(stream8(w, start + i), load8(x, row + i))
    return total + more


@device(inline="always")
def _four(x, row, one, two, three, i, w8):
    a, b = _dot8(w8, load8(x, row + i)), _dot8(w8, load8(x, row + one + i))
    return a, b, _dot8(w8, load8(x, row + two + i)), _dot8(w8, load8(x, row + three + i))


@device
def dot4(x, row, stride, last, w, start, k, lane):
    """`dot1` of four rows of x, `stride` apart, from offset `row` on; past row `last` that one again."""
    a = b = c = d = np.float32(0)
    one, two, three = stride * min(last, 1), stride * min(last, 2), stride * min(last, 3)
    i = lane * LANE
    while i < k:
        e, f, g, h = _four(x, row, one, two, three, i, stream8(w, start + i))
        a, b, c, d = a + e, b + f, c + g, d + h
        i += TURN
    return a, b, c, d
