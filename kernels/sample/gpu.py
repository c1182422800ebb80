"""Sampling on the GPU: a block for each sequence."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from kernels.cuda.element import bits_float, widen
from kernels.cuda.jit import cuda, device, kernel
from kernels.cuda.warp import SIZE, block_sum, warp_best, warp_max
from kernels.sample.nucleus import ROUNDS, TOP

_LEAST, _ZERO = np.float32(-np.inf), np.float32(0)


@kernel("element[:,::1], int64[::1]")
def _argmax(logits, out):
    values, places = cuda.shared.array(32, np.float32), cuda.shared.array(32, np.int64)
    s, vocab, v = cuda.blockIdx.x, logits.shape[1], np.int64(cuda.threadIdx.x)
    best, at = _LEAST, np.int64(vocab)
    while v < vocab:
        x = widen(logits[s, v])
        if x > best or at == vocab:
            best, at = x, v
        v += cuda.blockDim.x
    best, at = warp_best(best, at)
    if cuda.threadIdx.x % SIZE == 0:
        values[cuda.threadIdx.x // SIZE], places[cuda.threadIdx.x // SIZE] = best, at
    cuda.syncthreads()
    if cuda.threadIdx.x == 0:
        for w in range(1, cuda.blockDim.x // SIZE):
            if values[w] > best or (values[w] == best and places[w] < at):
                best, at = values[w], places[w]
        out[s] = at


@device
def _largest(logits, s, partial):
    x, v = _LEAST, cuda.threadIdx.x
    while v < logits.shape[1]:
        x = max(x, widen(logits[s, v]))
        v += cuda.blockDim.x
    x = warp_max(x)
    if cuda.threadIdx.x % SIZE == 0:
        partial[cuda.threadIdx.x // SIZE] = x
    cuda.syncthreads()
    for w in range(cuda.blockDim.x // SIZE):
        x = max(x, partial[w])
    cuda.syncthreads()
    return x


@device
def _mass(p, s, least, start, step, stop):
    """Sum of p[s, start:stop:step] where it is at least `least`."""
    total, v = _ZERO, start
    while v < stop:
        if p[s, v] >= least:
            total += p[s, v]
        v += step
    return total


@kernel("element[:,::1], float32, float32, float32[::1], float32[:,::1], int64[::1]")
def _draw(logits, temperature, top_p, uniform, p, out):
    partial = cuda.shared.array(32, np.float32)
    before = cuda.shared.array(1024, np.float32)
    s, vocab, me, threads = cuda.blockIdx.x, logits.shape[1], cuda.threadIdx.x, cuda.blockDim.x
    largest, total, v = _largest(logits, s, partial), _ZERO, me
    while v < vocab:
        p[s, v] = math.exp((widen(logits[s, v]) - largest) / temperature)
        total += p[s, v]
        v += threads
    wanted = block_sum(total, partial) * top_p
    low, high = np.uint32(0), np.uint32(TOP)
    for _ in range(ROUNDS):
        middle = np.uint32((low + high) // np.uint32(2))
        if block_sum(_mass(p, s, bits_float(middle), me, threads, vocab), partial) >= wanted:
            low = middle
        else:
            high = middle
    # The draw is in the order of the tokens: each thread takes a run of them.
    least, run = bits_float(low), (vocab + threads - 1) // threads
    first, stop = me * run, min((me + 1) * run, vocab)
    before[me] = _mass(p, s, least, first, 1, stop)
    cuda.syncthreads()
    if me == 0:
        sum_before = _ZERO
        for other in range(threads):
            mine = before[other]
            before[other] = sum_before
            sum_before += mine
        partial[0] = sum_before * uniform[s]
        out[s] = -1
    cuda.syncthreads()
    _find(p, s, least, first, stop, before[me], partial[0], before[me + 1] if me + 1 < threads else np.float32(np.inf), out)


@device
def _find(p, s, least, first, stop, passed, aim, after, out):
    """The thread whose run of tokens passes the aim writes the token; `after`: the sum at its end. If
    rounding keeps the run from passing, its last token in the nucleus is meant."""
    if passed > aim or after <= aim:
        return
    for v in range(first, stop):
        if p[s, v] >= least:
            out[s] = v
            passed += p[s, v]
            if passed > aim:
                return


def argmax_cuda(logits: Any, out: Any, *, stream: Any = 0, threads: int = 512) -> None:
    """`argmax` on the GPU for logits of any element type."""
    _argmax.launch(logits.shape[0], threads, logits, out, stream=stream)


def draw_cuda(
    logits: Any, temperature: float, top_p: float, uniform: Any, p: Any, out: Any, *, stream: Any = 0, threads: int = 512
) -> None:
    """`draw` on the GPU for logits of any element type; p: float32 scratch [sequences, vocab]."""
    _draw.launch(logits.shape[0], threads, logits, temperature, top_p, uniform, p, out, stream=stream)
