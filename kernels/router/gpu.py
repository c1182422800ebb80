"""Routers on the GPU: a warp for each token, a lane for each 32nd expert, k rounds of the warp's maximum."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from kernels.cuda.element import widen
from kernels.cuda.jit import cuda, device, kernel
from kernels.cuda.warp import SIZE, warp_best, warp_max, warp_sum
from kernels.router.rule import RENORMALISED, Rule

_LEAST = np.float32(-np.inf)
_ALL = np.uint32(0xFFFFFFFF)


@device
def _score(logits, t, e, sigmoid):
    x = widen(logits[t, e])
    return np.float32(1) / (np.float32(1) + math.exp(-x)) if sigmoid else x


@device
def _wanted(logits, bias, t, e, sigmoid):
    return _score(logits, t, e, sigmoid) + bias[e] if sigmoid else _score(logits, t, e, sigmoid)


@device
def _kept_groups(logits, bias, t, lane, sigmoid, groups, kept):
    """The `kept` best groups as bits; a lane for each group."""
    size, first, second = logits.shape[1] // groups, _LEAST, _LEAST
    if lane < groups:
        for e in range(lane * size, (lane + 1) * size):
            x = _wanted(logits, bias, t, e, sigmoid)
            if x > first:
                first, second = x, first
            elif x > second:
                second = x
    worth, bits = first + second if sigmoid else first, np.uint32(0)
    for _ in range(kept):
        _, g = warp_best(worth, lane)
        bits |= np.uint32(1) << np.uint32(g)
        if g == lane:
            worth = _LEAST
    return bits


@device
def _after(x, e, last, at):
    """Whether expert e with worth x comes after expert `at` with worth `last` in the order of choice."""
    return x < last or (x == last and e > at)


@device
def _next(logits, bias, t, lane, sigmoid, groups, bits, last, at):
    """The best expert after (last, at), by the whole warp."""
    experts = logits.shape[1]
    best, found, size = _LEAST, np.int32(experts), experts // groups
    e = lane
    while e < experts:
        if (bits >> np.uint32(e // size)) & np.uint32(1):
            x = _wanted(logits, bias, t, e, sigmoid)
            if _after(x, e, last, at) and (found == experts or x > best):
                best, found = x, np.int32(e)
        e += SIZE
    return warp_best(best, found)


@device
def _total(logits, t, lane, largest):
    """Sum of exp(logit - largest) over all experts."""
    total, e = np.float32(0), lane
    while e < logits.shape[1]:
        total += math.exp(widen(logits[t, e]) - largest)
        e += SIZE
    return warp_sum(total)


@kernel("element[:,::1], float32[::1], boolean, boolean, int32, int32, float32, int16[:,::1], float32[:,::1]")
def _choose(logits, bias, sigmoid, renormalise, groups, kept, scale, ids, weights):
    """A warp for each token; lane j keeps the j-th choice (k is at most 32)."""
    lane = np.int32(cuda.threadIdx.x % SIZE)
    t = cuda.blockIdx.x * (cuda.blockDim.x // SIZE) + cuda.threadIdx.x // SIZE
    if t >= logits.shape[0]:
        return
    bits = _ALL
    if groups > 1:
        bits = _kept_groups(logits, bias, t, lane, sigmoid, groups, kept)
    last, at, top_k = np.float32(np.inf), np.int32(-1), ids.shape[1]
    largest, mine, score = np.float32(0), np.int32(0), np.float32(0)
    for j in range(top_k):
        last, at = _next(logits, bias, t, lane, sigmoid, groups, bits, last, at)
        if j == 0:
            largest = last
        if lane == j:
            mine, score = at, _score(logits, t, at, sigmoid)
    if not sigmoid:
        if not renormalise:
            largest = _largest(logits, t, lane)
        score = math.exp(score - largest)
    if lane >= top_k:
        score = np.float32(0)
    total = np.float32(1)
    if renormalise:
        total = warp_sum(score)
    elif not sigmoid:
        total = _total(logits, t, lane, largest)
    if lane < top_k:
        ids[t, lane], weights[t, lane] = mine, score * scale / total


@device
def _largest(logits, t, lane):
    x, e = _LEAST, lane
    while e < logits.shape[1]:
        x = max(x, widen(logits[t, e]))
        e += SIZE
    return warp_max(x)


@kernel("element[:,::1], int16[:,::1], float32[:,::1]")
def _weigh(logits, ids, weights):
    """A thread for each token."""
    t, top_k = cuda.grid(1), ids.shape[1]
    if t >= ids.shape[0]:
        return
    largest, total = _LEAST, np.float32(0)
    for j in range(top_k):
        largest = max(largest, widen(logits[t, ids[t, j]]))
    for j in range(top_k):
        total += math.exp(widen(logits[t, ids[t, j]]) - largest)
    for j in range(top_k):
        weights[t, j] = math.exp(widen(logits[t, ids[t, j]]) - largest) / total


def choose_cuda(logits: Any, bias: Any, rule: Rule, ids: Any, weights: Any, *, stream: Any = 0, threads: int = 128) -> None:
    """`choose` on the GPU for logits of any element type; k and the groups are at most 32."""
    grid = -(-logits.shape[0] * SIZE // threads)
    sigmoid, renormalise, groups, kept, scale = rule
    _choose.launch(grid, threads, logits, bias, sigmoid, renormalise, groups, kept, scale, ids, weights, stream=stream)


def select_cuda(logits: Any, ids: Any, weights: Any, *, stream: Any = 0, threads: int = 128) -> None:
    """`select` on the GPU for logits of any element type; k is at most 32."""
    choose_cuda(logits, weights.reshape(-1), RENORMALISED, ids, weights, stream=stream, threads=threads)  # no bias is read


def weigh_cuda(logits: Any, ids: Any, weights: Any, *, stream: Any = 0, threads: int = 128) -> None:
    """`weigh` on the GPU for logits of any element type."""
    _weigh.launch(-(-logits.shape[0] // threads), threads, logits, ids, weights, stream=stream)
