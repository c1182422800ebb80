"""Expert FFNs on the CPU: weights stream through register tiles once for all rows of an expert."""

from __future__ import annotations

import numpy as np

from kernels.gemm import columns, part
from kernels.jit import inline, jit, prange
from kernels.vecmath import exp


@inline(reorder=True)
def _activate(gate_up, out, row, rows, start, stop):
    """Rows [row, row + rows), columns [start, stop) of out."""
    ffn = np.uintp(out.shape[1])
    for r in range(row, row + rows):
        for f in range(np.uintp(start), np.uintp(stop)):
            gate = gate_up[r, f]
            out[r, f] = gate / (np.float32(1) + exp(-gate)) * gate_up[r, ffn + f]


@jit
def swiglu(gate_up, out):
    """out [rows, ffn] = silu(gate) * up of gate_up [rows, 2 ffn]."""
    _activate(gate_up, out, 0, out.shape[0], 0, out.shape[1])


@jit
def _expand(x, offsets, weights, first, gate_up, out, start, stop):
    """Gate, up and activation of columns [start, stop) for the experts whose weights are in
    `weights` [experts, 3 ffn, hidden] (flat), the first of them being expert `first`."""
    hidden, ffn = x.shape[1], out.shape[1]
    size = 3 * ffn * hidden
    for e in range(weights.shape[0] // size):
        row, rows = offsets[first + e], offsets[first + e + 1] - offsets[first + e]
        if rows == 0:
            continue
        matrix = weights[e * size : e * size + 2 * ffn * hidden].reshape(2 * ffn, hidden)
        columns(x, row, rows, matrix, gate_up, row, start, stop, start)
        columns(x, row, rows, matrix, gate_up, row, ffn + start, ffn + stop, ffn + start)
        _activate(gate_up, out, row, rows, start, stop)


@jit
def _contract(act, offsets, weights, first, out, start, stop):
    """Down projection, columns [start, stop) of out [rows, hidden]."""
    ffn, hidden = act.shape[1], out.shape[1]
    size = 3 * ffn * hidden
    for e in range(weights.shape[0] // size):
        row, rows = offsets[first + e], offsets[first + e + 1] - offsets[first + e]
        if rows == 0:
            continue
        matrix = weights[e * size + 2 * ffn * hidden : (e + 1) * size].reshape(hidden, ffn)
        columns(act, row, rows, matrix, out, row, start, stop, start)


@jit
def _serial(x, offsets, weights, first, gate_up, act, out):
    _expand(x, offsets, weights, first, gate_up, act, 0, act.shape[1])
    _contract(act, offsets, weights, first, out, 0, out.shape[1])


@jit(parallel=True)
def _parallel(x, offsets, weights, first, gate_up, act, out, threads):
    ffn, hidden = act.shape[1], out.shape[1]
    for c in prange(threads):
        _expand(x, offsets, weights, first, gate_up, act, part(ffn, threads, c), part(ffn, threads, c + 1))
    for c in prange(threads):
        _contract(act, offsets, weights, first, out, part(hidden, threads, c), part(hidden, threads, c + 1))


def grouped(
    x: np.ndarray, offsets: np.ndarray, weights: np.ndarray, first: int,
    gate_up: np.ndarray, act: np.ndarray, out: np.ndarray, threads: int = 1,
) -> None:  # fmt: skip
    """FFNs of consecutive experts, each over its own rows; meant for few rows an expert (see `gemm`).

    x [rows, hidden] in `dispatch` order with `offsets` [experts + 1]; weights: flat, for each expert
    gate [ffn, hidden], up [ffn, hidden], down [hidden, ffn]; `first`: number of the expert whose
    weights come first. Scratch gate_up [rows, 2 ffn], act [rows, ffn]; out [rows, hidden] may be x.
    """
    if threads == 1:
        _serial(x, offsets, weights, first, gate_up, act, out)
    else:
        _parallel(x, offsets, weights, first, gate_up, act, out, threads)
