"""Routers on the CPU: k rounds over the experts, each for the largest key below the last one.

A key is 64 bits, the logit's bits in an order of unsigned integers above, the complement of the
expert's number below: all keys differ, and of equal logits the lower expert is the larger. What
lies below `last` is then a single unsigned minimum, since everything else wraps around to the top;
that vectorises where a masked floating-point maximum does not.
"""

from __future__ import annotations

import numpy as np

from kernels.jit import inline, jit, prange
from kernels.router.rule import Rule
from kernels.vecmath import exp

_ZERO, _ONE, _SIGN_BIT, _HALF = np.uint64(0), np.uint64(1), np.uint64(31), np.uint64(32)
_SIGN, _REST, _LOWER = np.uint64(0x80000000), np.uint64(0x7FFFFFFF), np.uint64(0xFFFFFFFF)
_NOTHING = np.float32(0)

PARALLEL = 1 << 17
"""Logits from which a second thread is worth waking."""


@inline(reorder=True)
def below(values, t, count, last):
    """The largest key of values[t, :count] below key `last`; `last` 0 stands for above all."""
    least, top = ~_ZERO, last - _ONE
    for e in range(np.uintp(count)):
        bits = np.uint64(np.float32(values[t, e]).view(np.uint32))
        flip = ((_ZERO - (bits >> _SIGN_BIT)) & _REST) | _SIGN
        key = ((bits ^ flip) << _HALF) | (_LOWER - np.uint64(e))
        least = min(least, top - key)
    return top - least


@inline
def number(key):
    """The column that a key came from."""
    return _LOWER - (key & _LOWER)


@inline(reorder=True)
def _softmax_of_chosen(weights, t, top_k):
    """weights[t] = softmax of what it holds, the largest first."""
    largest, total = weights[t, 0], _NOTHING
    for j in range(np.uintp(top_k)):
        weights[t, j] = exp(weights[t, j] - largest)
        total += weights[t, j]
    for j in range(np.uintp(top_k)):
        weights[t, j] /= total


@jit
def select_some(logits, ids, weights, start, stop):
    """`select` of rows [start, stop), for compiled callers."""
    experts, top_k = logits.shape[1], ids.shape[1]
    for t in range(np.uintp(start), np.uintp(stop)):
        key = _ZERO
        for j in range(np.uintp(top_k)):
            key = below(logits, t, experts, key)
            e = number(key)
            ids[t, j], weights[t, j] = e, logits[t, e]
        _softmax_of_chosen(weights, t, top_k)


@jit(parallel=True)
def _select_parallel(logits, ids, weights, threads):
    tokens = logits.shape[0]
    for c in prange(threads):
        select_some(logits, ids, weights, tokens * c // threads, tokens * (c + 1) // threads)


def select(logits: np.ndarray, ids: np.ndarray, weights: np.ndarray, threads: int = 1) -> None:
    """ids [tokens, k] int16 and weights [tokens, k] from logits [tokens, experts], float32: softmax
    over the chosen."""
    if threads == 1 or logits.size < PARALLEL:
        select_some(logits, ids, weights, 0, len(logits))
    else:
        _select_parallel(logits, ids, weights, threads)


@inline(reorder=True)
def _sigmoids(logits, bias, t, scores, wanted):
    for e in range(np.uintp(logits.shape[1])):
        score = np.float32(1) / (np.float32(1) + exp(-logits[t, e]))
        scores[0, e], wanted[0, e] = score, score + bias[e]


@inline
def _drop_groups(wanted, best, sigmoid, groups, kept):
    """Set wanted[0] to -inf outside the `kept` best of its groups; best: scratch [1, >= groups]."""
    size = wanted.shape[1] // groups
    for g in range(groups):
        first, second = -np.float32(np.inf), -np.float32(np.inf)
        for e in range(g * size, (g + 1) * size):
            value = wanted[0, e]
            if value > first:
                first, second = value, first
            elif value > second:
                second = value
        best[0, g] = first + second if sigmoid else first
    key = _ZERO
    for _ in range(kept):
        key = below(best, 0, groups, key)
        best[0, number(key)] = np.inf  # its key is now above `key`: not found again
    for g in range(groups):
        if best[0, g] != np.inf:
            for e in range(g * size, (g + 1) * size):
                wanted[0, e] = -np.inf


@jit
def _choose(logits, bias, sigmoid, renormalise, groups, kept, scale, scratch, ids, weights):
    experts, top_k = logits.shape[1], ids.shape[1]
    scores, wanted, best = scratch[0:1], scratch[1:2], scratch[2:3]
    for t in range(np.uintp(logits.shape[0])):
        if sigmoid:
            _sigmoids(logits, bias, t, scores, wanted)
        else:
            for e in range(np.uintp(experts)):
                scores[0, e] = wanted[0, e] = logits[t, e]
        if groups > 1:
            _drop_groups(wanted, best, sigmoid, groups, kept)
        key = _ZERO
        for j in range(np.uintp(top_k)):
            key = below(wanted, 0, experts, key)
            e = number(key)
            ids[t, j], weights[t, j] = e, scores[0, e]
        total = np.float32(1)
        if sigmoid:
            if renormalise:
                total = _NOTHING
                for j in range(np.uintp(top_k)):
                    total += weights[t, j]
        elif renormalise:
            _softmax_of_chosen(weights, t, top_k)
        else:
            largest, total = scores[0, 0], _NOTHING
            for e in range(np.uintp(experts)):
                largest = max(largest, scores[0, e])
            for e in range(np.uintp(experts)):
                total += exp(scores[0, e] - largest)
            for j in range(np.uintp(top_k)):
                weights[t, j] = exp(weights[t, j] - largest)
        for j in range(np.uintp(top_k)):
            weights[t, j] *= scale / total


def choose_scratch_shape(experts: int) -> tuple[int, int]:
    """Shape of the float32 scratch of `choose`."""
    return 3, experts


def choose(logits: np.ndarray, bias: np.ndarray, rule: Rule, scratch: np.ndarray, ids: np.ndarray, weights: np.ndarray) -> None:
    """`select` by any rule. bias [experts] float32 (zeros for none) is read by sigmoid rules only."""
    sigmoid, renormalise, groups, kept, scale = rule
    _choose(logits, bias, sigmoid, renormalise, groups, kept, np.float32(scale), scratch, ids, weights)


@jit
def weigh(logits, ids, weights):
    """Weights [tokens, k] of given experts `ids`: softmax over their logits (forced routing)."""
    for t in range(ids.shape[0]):
        row, value = logits[t], weights[t]
        largest = row[ids[t, 0]]
        for j in range(ids.shape[1]):
            largest = max(largest, row[ids[t, j]])
        total = _NOTHING
        for j in range(ids.shape[1]):
            value[j] = exp(row[ids[t, j]] - largest)
            total += value[j]
        for j in range(ids.shape[1]):
            value[j] /= total
