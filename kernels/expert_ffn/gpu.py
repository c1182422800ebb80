"""Expert FFNs on the GPU, grouped: one launch serves every expert, whatever the router chose.

The host does not know how many rows each expert has (asking would wait for the router), so grids
are upper bounds: surplus blocks see in `offsets` that they have nothing to do. With few tokens the
weights stream through warps (GEMV); with many, 64 x 64 register tiles are used.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from kernels.cuda.element import narrow, widen
from kernels.cuda.jit import cuda, device, kernel
from kernels.cuda.stream import dot1, dot4
from kernels.cuda.tiles import BLOCK, COLUMNS, OPERAND, ROWS, SUMS, multiply, store
from kernels.cuda.warp import SIZE, warp_sum

FEW = 64
"""Up to as many rows (tokens x k) in all, the weights stream through warps."""


@device(inline="always")
def silu(x):
    return x / (np.float32(1) + math.exp(-x))


@device
def _put4(out, row, rows, col, a, b, c, d):
    out[row, col] = narrow(out, a)
    if rows > 1:
        out[row + 1, col] = narrow(out, b)
    if rows > 2:
        out[row + 2, col] = narrow(out, c)
    if rows > 3:
        out[row + 3, col] = narrow(out, d)


@kernel("element[:,::1], int32[::1], element[::1], int32, element[:,::1]", hot=True)
def _expand_few(x, offsets, weights, first, act):
    """A warp for each expert and column f of act: silu(gate_f . x) * (up_f . x) for the expert's rows."""
    hidden, ffn, lane = x.shape[1], act.shape[1], cuda.threadIdx.x % SIZE
    f, e = cuda.blockIdx.x * (cuda.blockDim.x // SIZE) + cuda.threadIdx.x // SIZE, cuda.blockIdx.y
    begin, stop = offsets[first + e], offsets[first + e + 1]
    if f >= ffn or begin == stop:
        return
    gate = (np.int64(e) * 3 * ffn + f) * hidden
    up = gate + np.int64(ffn) * hidden
    if stop - begin == 1:
        row = np.int64(begin) * hidden
        g, u = warp_sum(dot1(x, row, weights, gate, hidden, lane)), warp_sum(dot1(x, row, weights, up, hidden, lane))
        if lane == 0:
            act[begin, f] = narrow(act, silu(g) * u)
        return
    for row in range(begin, stop, 4):
        last, at = min(3, stop - 1 - row), np.int64(row) * hidden
        a, b, c, d = dot4(x, at, hidden, last, weights, gate, hidden, lane)
        p, q, r, s = dot4(x, at, hidden, last, weights, up, hidden, lane)
        a, b, c, d = silu(warp_sum(a)), silu(warp_sum(b)), silu(warp_sum(c)), silu(warp_sum(d))
        p, q, r, s = warp_sum(p), warp_sum(q), warp_sum(r), warp_sum(s)
        if lane == 0:
            _put4(act, row, last + 1, f, a * p, b * q, c * r, d * s)


@kernel("element[:,::1], int32[::1], element[::1], int32, element[:,::1]", hot=True)
def _contract_few(act, offsets, weights, first, out):
    """A warp for each expert and column h of out: down_h . act for the expert's rows."""
    ffn, hidden, lane = act.shape[1], out.shape[1], cuda.threadIdx.x % SIZE
    h, e = cuda.blockIdx.x * (cuda.blockDim.x // SIZE) + cuda.threadIdx.x // SIZE, cuda.blockIdx.y
    begin, stop = offsets[first + e], offsets[first + e + 1]
    if h >= hidden or begin == stop:
        return
    down = (np.int64(e) * 3 + 2) * ffn * hidden + np.int64(h) * ffn
    if stop - begin == 1:
        total = warp_sum(dot1(act, np.int64(begin) * ffn, weights, down, ffn, lane))
        if lane == 0:
            out[begin, h] = narrow(out, total)
        return
    for row in range(begin, stop, 4):
        last = min(3, stop - 1 - row)
        a, b, c, d = dot4(act, np.int64(row) * ffn, ffn, last, weights, down, ffn, lane)
        a, b, c, d = warp_sum(a), warp_sum(b), warp_sum(c), warp_sum(d)
        if lane == 0:
            _put4(out, row, last + 1, h, a, b, c, d)


@device
def find_rows(offsets, first, experts, tile):
    """(expert, first row) of row tile number `tile` of the experts from `first` on, each expert's
    rows being cut into tiles of ROWS; (experts, 0) past the last tile."""
    for e in range(experts):
        tiles = (offsets[first + e + 1] - offsets[first + e] + ROWS - 1) // ROWS
        if tile < tiles:
            return e, offsets[first + e] + tile * ROWS
        tile -= tiles
    return experts, np.int32(0)


@kernel("element[::1], int32[::1], element[::1], int32, int32, int32, int32, int32, element[:,::1]", hot=True)
def _tiles(x, offsets, weights, first, experts, k, size, skip, out):
    """A block for each row tile and 64 columns of out = x @ w.T, w [columns, k] being at `skip` in the
    `size` elements of an expert; x is flat."""
    xs = cuda.shared.array(OPERAND, np.float32)
    ws = cuda.shared.array(OPERAND, np.float32)
    sums = cuda.local.array(SUMS, np.float32)
    e, row = find_rows(offsets, first, experts, cuda.blockIdx.y)
    if e < experts:
        stop, col, n = offsets[first + e + 1], cuda.blockIdx.x * COLUMNS, out.shape[1]
        multiply(x, row, stop, weights, np.int64(e) * size + skip, col, n, k, xs, ws, sums)
        store(sums, out, row, stop, col, n)


@kernel("element[:,::1], int32[::1], int32, int32, element[:,::1]")
def _activate(gate_up, offsets, first, experts, act):
    """A block for each row: silu(gate) * up; rows of other experts than these are left alone."""
    row, f, ffn = cuda.blockIdx.x, cuda.threadIdx.x, act.shape[1]
    if row < offsets[first] or row >= offsets[first + experts]:
        return
    while f < ffn:
        act[row, f] = narrow(act, silu(widen(gate_up[row, f])) * widen(gate_up[row, ffn + f]))
        f += cuda.blockDim.x


def grouped_cuda(
    x: Any, offsets: Any, weights: Any, first: int, gate_up: Any, act: Any, out: Any, *,
    stream: Any = 0, threads: int = 128, few: int = FEW,
) -> None:  # fmt: skip
    """`grouped` on the GPU, for any element type, sums in float32; gate_up is used for more than `few`
    rows. hidden and ffn must be multiples of 8 for the streaming form, tiles are used otherwise."""
    (rows, hidden), ffn = x.shape, act.shape[1]
    size = 3 * hidden * ffn
    experts = weights.shape[0] // size
    if not experts:
        return
    if rows <= few and hidden % 8 == ffn % 8 == 0:
        warps = threads // SIZE
        _expand_few.launch((-(-ffn // warps), experts), threads, x, offsets, weights, first, act, stream=stream)
        _contract_few.launch((-(-hidden // warps), experts), threads, act, offsets, weights, first, out, stream=stream)
        return
    tiles = rows // ROWS + min(experts, rows)
    wide, narrow_grid = (-(-2 * ffn // COLUMNS), tiles), (-(-hidden // COLUMNS), tiles)
    shape, down = (first, experts), 2 * ffn * hidden
    _tiles.launch(wide, BLOCK, x.reshape(-1), offsets, weights, *shape, hidden, size, 0, gate_up, stream=stream)
    _activate.launch(rows, threads, gate_up, offsets, *shape, act, stream=stream)
    _tiles.launch(narrow_grid, BLOCK, act.reshape(-1), offsets, weights, *shape, ffn, size, down, out, stream=stream)
