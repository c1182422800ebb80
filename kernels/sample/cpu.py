"""Sampling on the CPU."""

from __future__ import annotations

import numpy as np

from kernels.jit import inline, jit
from kernels.sample.nucleus import ROUNDS, TOP
from kernels.vecmath import exp

_ZERO, _TOP = np.float32(0), np.int32(TOP)


@jit
def argmax(logits, out):
    """out [sequences] int64 = index of the first largest of logits [sequences, vocab]."""
    for s in range(logits.shape[0]):
        row = logits[s]
        largest = row[0]
        for v in range(row.shape[0]):
            largest = max(largest, row[v])
        for v in range(row.shape[0]):
            if row[v] == largest:
                out[s] = v
                break


@inline(reorder=True)
def _mass(p, least):
    """Sum of the numbers of p that are at least `least`."""
    total = _ZERO
    for v in range(np.uintp(p.shape[0])):
        total += p[v] if p[v] >= least else _ZERO
    return total


@inline(reorder=True)
def _soften(logits, s, temperature, p):
    """p = exp((logits[s] - their maximum) / temperature); returns its sum."""
    largest, total = logits[s, 0], _ZERO
    for v in range(np.uintp(p.shape[0])):
        largest = max(largest, logits[s, v])
    for v in range(np.uintp(p.shape[0])):
        p[v] = exp((logits[s, v] - largest) / temperature)
        total += p[v]
    return total


@inline
def _threshold(p, wanted):
    """The largest float32 such that the numbers of p that are at least it sum to `wanted`."""
    low, high = np.int32(0), _TOP
    for _ in range(ROUNDS):
        middle = np.int32((low + high) // 2)
        if _mass(p, middle.view(np.float32)) >= wanted:
            low = middle
        else:
            high = middle
    return np.int32(low).view(np.float32)


@jit
def draw(logits, temperature, top_p, uniform, p, out):
    """Tokens drawn from the nucleus of each row of logits [sequences, vocab] float32.

    temperature > 0, top_p in (0, 1]; uniform [sequences] float32 random numbers in [0, 1); p: scratch
    [vocab] float32; out [sequences] int64.
    """
    for s in range(logits.shape[0]):
        total = _soften(logits, s, np.float32(temperature), p)
        least = _threshold(p, total * np.float32(top_p))
        aim, passed = _mass(p, least) * uniform[s], _ZERO
        for v in range(p.shape[0]):
            if p[v] >= least:
                out[s] = v  # stays where rounding keeps the sum from passing the aim
                passed += p[v]
                if passed > aim:
                    break
