"""Sampling: last hidden row of each sequence [sequences, hidden] -> token ids [sequences].

Greedy, or drawn from softmax(logits / temperature) cut to its nucleus: the most probable tokens that
together hold at least `top_p` (Holtzman et al., arXiv 1904.09751); tokens as probable as the least
of them belong to it too. A draw walks the tokens in the order of their ids.
"""

from __future__ import annotations

import numpy as np

from kernels import linear, rms_norm
from kernels.cost import TOKEN_ID_BYTES, Cost
from kernels.sample.cpu import argmax, draw
from kernels.sample.gpu import argmax_cuda, draw_cuda
from kernels.sample.nucleus import ROUNDS, TOP

__all__ = [
    "ROUNDS", "argmax", "argmax_cuda", "argmax_work", "draw", "draw_cuda", "draw_reference", "draw_work", "reference", "work",
]  # fmt: skip


def argmax_work(sequences: int, vocab: int, b: int) -> Cost:
    """One comparison a logit. Bytes: logits read, token ids written."""
    return Cost(sequences * vocab, b * sequences * vocab + TOKEN_ID_BYTES * sequences)


def draw_work(sequences: int, vocab: int, b: int) -> Cost:
    """A logit: maximum, subtract, divide, exp and sum; compare and sum in each round of the search for
    the threshold; compare and running sum of what is kept, compare with the draw and find the first.
    A row: one comparison a round, its share of the mass, and of the draw.

    Bytes: logits read, probabilities (float32) written, read in each round and once more; a float32
    random number read and a token id written a row.
    """
    flops = vocab * (5 + 2 * ROUNDS + 4) + ROUNDS + 2
    return Cost(sequences * flops, sequences * (vocab * (b + 4 * (ROUNDS + 2)) + 4 + TOKEN_ID_BYTES))


def work(sequences: int, hidden: int, vocab: int, b: int) -> Cost:
    """Final norm, LM head [vocab, hidden], argmax."""
    head = linear.work(sequences, hidden, vocab, b)
    return rms_norm.work(sequences, hidden, b) + head + argmax_work(sequences, vocab, b)


def reference(logits: np.ndarray) -> np.ndarray:
    """The first of the largest logits of each row."""
    return np.argmax(logits, axis=1)


def draw_reference(logits: np.ndarray, temperature: float, top_p: float, uniform: np.ndarray) -> np.ndarray:
    """Token ids [sequences] for random numbers `uniform` [sequences] in [0, 1).

    The threshold is found by halving the range of a float32's bits, which order as its values do.
    """
    p = np.exp((logits - np.maximum.reduce(logits, axis=1, keepdims=True)) / temperature)
    wanted = np.add.reduce(p, axis=1) * top_p
    low, high = np.zeros(len(logits), np.int32), np.full(len(logits), TOP, np.int32)
    for _ in range(ROUNDS):
        middle = (low + high) // 2
        enough = np.asarray(np.add.reduce(_kept(p, middle), axis=1) >= wanted)
        low, high = np.where(enough, middle, low).astype(np.int32), np.where(enough, high, middle).astype(np.int32)
    mass = np.add.accumulate(_kept(p, low), axis=1)
    return np.argmax(mass > (mass[:, -1] * uniform)[:, None], axis=1)


def _kept(p: np.ndarray, bits: np.ndarray) -> np.ndarray:
    """p where it is at least the float32 of each row's `bits`, else 0."""
    return np.where(p >= bits.view(np.float32)[:, None], p, 0)
