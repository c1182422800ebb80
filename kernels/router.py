"""Router: logits [tokens, experts] -> top-k expert ids and weights [tokens, k]."""

from __future__ import annotations

import numpy as np

from kernels import linear
from kernels.cost import EXPERT_ID_BYTES, ROUTING_WEIGHT_BYTES, Cost
from kernels.jit import jit
from kernels.vecmath import exp


def select_work(tokens: int, experts: int, top_k: int, b: int) -> Cost:
    """Top-k of logits and softmax over the chosen: k rounds of `experts` comparisons, then
    subtract, exp, sum and divide of k numbers. Bytes: logits read, ids and weights written."""
    chosen = tokens * top_k * (EXPERT_ID_BYTES + ROUTING_WEIGHT_BYTES)
    return Cost(tokens * (top_k * experts + 4 * top_k), b * tokens * experts + chosen)


def work(tokens: int, hidden: int, experts: int, top_k: int, b: int) -> Cost:
    """The gate's matrix product [tokens, hidden] x [hidden, experts], then the selection."""
    return linear.work(tokens, hidden, experts, b) + select_work(tokens, experts, top_k, b)


def reference(logits: np.ndarray, top_k: int) -> tuple[np.ndarray, np.ndarray]:
    """Expert ids and weights [tokens, k], the largest first; of equal logits the lower id.

    Softmax over the chosen logits equals Mixtral's softmax over all, renormalised over the chosen.
    """
    left = logits.copy()
    ids = np.empty((len(logits), top_k), np.int16)
    for j in range(top_k):
        ids[:, j] = np.argmax(left, axis=1)
        left[np.arange(len(logits)), ids[:, j]] = -np.inf
    chosen = logits[np.arange(len(logits))[:, None], ids]
    weights = np.exp(chosen - chosen[:, :1])
    return ids, weights / np.add.reduce(weights, axis=1, keepdims=True)


@jit
def select(logits, ids, weights):
    """ids [tokens, k] int16 and weights [tokens, k] from logits [tokens, experts], float32."""
    tokens, experts = logits.shape
    top_k = ids.shape[1]
    for t in range(tokens):
        row, best, value = logits[t], ids[t], weights[t]
        for j in range(top_k):
            value[j] = -np.inf
            best[j] = -1
        for e in range(experts):
            x = row[e]
            if x > value[top_k - 1] or best[top_k - 1] < 0:
                j = top_k - 1
                while j > 0 and (best[j - 1] < 0 or x > value[j - 1]):
                    value[j], best[j] = value[j - 1], best[j - 1]
                    j -= 1
                value[j], best[j] = x, e
        largest, total = value[0], np.float32(0)
        for j in range(top_k):
            value[j] = exp(value[j] - largest)
            total += value[j]
        for j in range(top_k):
            value[j] /= total


@jit
def weigh(logits, ids, weights):
    """Weights [tokens, k] of given experts `ids`: softmax over their logits (forced routing)."""
    for t in range(ids.shape[0]):
        row, value = logits[t], weights[t]
        largest = row[ids[t, 0]]
        for j in range(ids.shape[1]):
            largest = max(largest, row[ids[t, j]])
        total = np.float32(0)
        for j in range(ids.shape[1]):
            value[j] = exp(row[ids[t, j]] - largest)
            total += value[j]
        for j in range(ids.shape[1]):
            value[j] /= total
