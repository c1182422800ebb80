"""Dot products of one streamed weight row with one or four rows of activations: the inner loops of
products with few rows, whose time is the time to read the weight once.

Each lane of a warp takes eight elements at a time, two lots of them in flight. Offsets count
elements from the first one of an array; they and `k` are multiples of 8.
"""

from __future__ import annotations

import numpy as np

from kernels.cuda.jit import device
from kernels.cuda.wide import dot8, load8, stream8

LANE, TURN = np.int32(8), np.int32(256)
"""Elements that a lane and a warp take at a time."""


@device
def dot1(x, row, w, start, k, lane):
    """The lane's part of x[row:row+k] . w[start:start+k], both offsets into the flat arrays."""
    total, more = np.float32(0), np.float32(0)
    i = lane * LANE
    while i + TURN < k:
        near, far = stream8(w, start + i), stream8(w, start + i + TURN)
        total += dot8(near, load8(x, row + i))
        more += dot8(far, load8(x, row + i + TURN))
        i += TURN + TURN
    if i < k:
        total += dot8(stream8(w, start + i), load8(x, row + i))
    return total + more


@device(inline="always")
def _four(x, row, one, two, three, i, w8):
    a, b = dot8(w8, load8(x, row + i)), dot8(w8, load8(x, row + one + i))
    return a, b, dot8(w8, load8(x, row + two + i)), dot8(w8, load8(x, row + three + i))


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
