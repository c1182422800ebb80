"""Router: logits [tokens, experts] -> top-k expert ids and weights [tokens, k]."""

from __future__ import annotations

import numpy as np

from kernels import linear
from kernels.cost import EXPERT_ID_BYTES, ROUTING_WEIGHT_BYTES, Cost
from kernels.router.cpu import choose, choose_scratch_shape, select, weigh
from kernels.router.gpu import choose_cuda, select_cuda, weigh_cuda
from kernels.router.rule import RENORMALISED, Rule

__all__ = [
    "RENORMALISED", "Rule", "choose", "choose_cuda", "choose_scratch_shape", "reference", "select", "select_cuda",
    "select_work", "weigh", "weigh_cuda", "work",
]  # fmt: skip


def select_work(tokens: int, experts: int, top_k: int, b: int, rule: Rule = RENORMALISED) -> Cost:
    """Top-k and weights: k rounds of `experts` comparisons and what the rule asks for.

    Softmax over the chosen: subtract, exp, sum and divide of k numbers. Over all: maximum, subtract,
    exp and sum of `experts`, divide of k. Sigmoid: negate, exp, add, divide and the bias of all, sum
    and divide of k where renormalised. Groups: one maximum of each (softmax) or two and their sum
    (sigmoid), then `kept_groups` rounds. A scale: k products.
    Bytes: logits (and the float32 bias) read, ids and weights written.
    """
    flops = top_k * experts + (top_k if rule.scale != 1 else 0)
    if rule.sigmoid:
        flops += 5 * experts + (2 * top_k if rule.renormalise else 0)
    else:
        flops += 4 * top_k if rule.renormalise else 4 * experts + top_k
    if rule.groups > 1:
        flops += (2 * experts + rule.groups if rule.sigmoid else experts) + rule.kept_groups * rule.groups
    chosen = tokens * top_k * (EXPERT_ID_BYTES + ROUTING_WEIGHT_BYTES)
    return Cost(tokens * flops, b * tokens * experts + chosen + (4 * experts if rule.sigmoid else 0))


def work(tokens: int, hidden: int, experts: int, top_k: int, b: int, rule: Rule = RENORMALISED) -> Cost:
    """The gate's matrix product [tokens, hidden] x [hidden, experts], then the selection."""
    return linear.work(tokens, hidden, experts, b) + select_work(tokens, experts, top_k, b, rule)


def _best(values: np.ndarray, rounds: int) -> np.ndarray:
    """Column numbers of the `rounds` largest of each row, the largest first; of equal ones the lower."""
    left, found = values.copy(), np.empty((len(values), rounds), np.int16)
    for j in range(rounds):
        found[:, j] = np.argmax(left, axis=1)
        left[np.arange(len(left)), found[:, j]] = -np.inf
    return found


def _without_lost_groups(values: np.ndarray, rule: Rule) -> np.ndarray:
    tokens, experts = values.shape
    grouped = values.reshape(tokens, rule.groups, experts // rule.groups)
    if rule.sigmoid:
        two = _best(grouped.reshape(-1, grouped.shape[2]), 2)
        pairs = np.take_along_axis(grouped.reshape(-1, grouped.shape[2]), two.astype(int), 1)
        best = (pairs[:, 0] + pairs[:, 1]).reshape(tokens, rule.groups)
    else:
        best = np.maximum.reduce(grouped, axis=2)
    lost = np.ones((tokens, rule.groups), bool)
    lost[np.arange(tokens)[:, None], _best(best, rule.kept_groups)] = False
    left = values.copy()
    left[np.repeat(lost, experts // rule.groups, axis=1)] = -np.inf
    return left


def reference(
    logits: np.ndarray, top_k: int, rule: Rule = RENORMALISED, bias: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Expert ids and weights [tokens, k], the most wanted first; of equally wanted ones the lower id.

    Softmax over the chosen logits equals softmax over all, renormalised over the chosen.
    bias [experts]: what a sigmoid rule adds to the scores before it compares them.
    """
    scores = 1 / (1 + np.exp(-logits)) if rule.sigmoid else logits
    wanted = scores + bias if rule.sigmoid else scores
    ids = _best(_without_lost_groups(wanted, rule) if rule.groups > 1 else wanted, top_k)
    weights = scores[np.arange(len(logits))[:, None], ids]
    if not rule.sigmoid and rule.renormalise:
        weights = np.exp(weights - weights[:, :1])
    elif not rule.sigmoid:
        powers = np.exp(logits - np.maximum.reduce(logits, axis=1, keepdims=True))
        weights = powers[np.arange(len(logits))[:, None], ids] / np.add.reduce(powers, axis=1, keepdims=True)
    if rule.renormalise:
        weights = weights / np.add.reduce(weights, axis=1, keepdims=True)
    return ids, weights * rule.scale if rule.scale != 1 else weights
