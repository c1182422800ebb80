"""Leaning by price: the router gives up an expert for a resident one where the loss that this is expected to cost is worth a hit.

`costs[p, e]`: the loss (nats a token) that is expected if the output of expert e is missing from a token whose best expert is
p, or added to it, at weight 1; it grows with the square of the weight. Measured beforehand, on other text
(`benchmarks/resident_costs.py`): experts differ in it a hundredfold, by layer, by how large their outputs are, and by what kind of token
it is, which the best expert tells.

The plain choice is taken first. Then its least weighty experts that are not resident give way one by one to the best
residents; of all these choices the one with the largest `bonus * hits - loss` is taken. With weights w before and v after,

    loss = sum of costs[p, e] (w_e - v_e)^2,

the second-order term of the loss where outputs of different experts are uncorrelated. None gives way to one whose logit is lower by
more than the margin. O(experts + swaps * experts), no allocation.
"""

from __future__ import annotations

import numpy as np

from kernels.jit import inline
from kernels.router.cpu import below, number
from kernels.vecmath import exp

_ZERO, _ONE = np.float32(0), np.float32(1)


@inline
def _candidates(logits, t, resident, ids, row):
    """row[0] = logits of residents that were not chosen, -inf elsewhere."""
    for e in range(logits.shape[1]):
        row[0, e] = logits[t, e] if resident[e] else -np.float32(np.inf)
    for j in range(ids.shape[1]):
        row[0, ids[t, j]] = -np.float32(np.inf)


@inline
def _last_missing(resident, ids, t, before):
    """The least weighty chosen expert before place `before` that is not resident: its place, -1 if there is none."""
    j = before - 1
    while j >= 0 and resident[ids[t, j]]:
        j -= 1
    return j


@inline
def _worthwhile(logits, t, resident, costs, bonus, margin, ids, row):
    """How many swaps give the largest bonus * hits - loss. ids[t]: the plain choice, best first; row[0]: candidates."""
    experts, best = logits.shape[1], ids[t, 0]
    largest, total, same = logits[t, best], _ZERO, _ZERO
    for j in range(ids.shape[1]):
        power = exp(logits[t, ids[t, j]] - largest)
        total += power
        same += costs[best, ids[t, j]] * power * power
    gone = come = _ZERO
    after, most, swaps, found = total, _ZERO, 0, 0
    place, key = _last_missing(resident, ids, t, ids.shape[1]), np.uint64(0)
    while place >= 0:
        key = below(row, 0, experts, key)
        e, old = number(key), ids[t, place]
        if row[0, e] == -np.float32(np.inf) or not logits[t, old] - row[0, e] <= margin:
            break
        power, lost = exp(logits[t, e] - largest), exp(logits[t, old] - largest)
        after += power - lost
        same -= costs[best, old] * lost * lost
        gone += costs[best, old] * lost * lost
        come += costs[best, e] * power * power
        shift = _ONE / total - _ONE / after
        swaps += 1
        worth = bonus * np.float32(swaps) - (same * shift * shift + gone / (total * total) + come / (after * after))
        if worth > most:
            most, found = worth, swaps
        place = _last_missing(resident, ids, t, place)
    return found


@inline
def lean_by_price(logits, t, resident, costs, bonus, margin, ids, row):
    """Change ids[t], the plain choice with the best first, where that is worth it. row [1, experts] is scratch."""
    _candidates(logits, t, resident, ids, row)
    swaps = _worthwhile(logits, t, resident, costs, bonus, margin, ids, row)
    place, key = ids.shape[1], np.uint64(0)
    for _ in range(swaps):
        place, key = _last_missing(resident, ids, t, place), below(row, 0, logits.shape[1], key)
        ids[t, place] = number(key)


def reference(
    logits: np.ndarray, resident: np.ndarray, costs: np.ndarray, bonus: float, margin: float, top_k: int
) -> tuple[np.ndarray, np.ndarray]:
    """Experts [k], in order of the places that they take, and weights [k] of one token in plain NumPy: every number of swaps is tried."""
    plain = np.argsort(-logits, kind="stable")[:top_k]
    missing = [j for j in range(top_k - 1, -1, -1) if not resident[plain[j]]]
    others = [e for e in np.argsort(-logits, kind="stable") if resident[e] and e not in plain]
    before, best, chosen = _softmax(logits, plain), 0.0, plain
    for swaps in range(1, min(len(missing), len(others)) + 1):
        if logits[plain[missing[swaps - 1]]] - logits[others[swaps - 1]] > margin:
            break
        now = plain.copy()
        now[missing[:swaps]] = others[:swaps]
        worth = bonus * swaps - float(costs[plain[0]] @ (before - _softmax(logits, now)) ** 2)
        if worth > best:
            best, chosen = worth, now
    return chosen.astype(np.int16), _softmax(logits, chosen)[chosen]


def _softmax(logits: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Weights [experts]: over the chosen, 0 elsewhere."""
    weights = np.zeros(len(logits))
    powers = np.exp(logits[chosen].astype(np.float64) - logits.max())
    weights[chosen] = powers / powers.sum()
    return weights
