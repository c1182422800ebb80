"""How many units a token touches, as a placement changes: by its tokens, or by co-activated pairs.

The pairs of a token's experts that share a unit tell most of it: with k experts on c units, the first pair on one unit saves
one, further ones less.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from sim.placement.compiled import jit


@jit
def pairs_of(sets: Any, share: Any, experts: int) -> Any:
    """Share of the tokens that chose both of two experts [experts, experts]."""
    found = np.zeros((experts, experts))
    for t in range(sets.shape[0]):
        for i in sets[t]:
            for j in sets[t]:
                if i != j:
                    found[i, j] += share[t]
    return found


@jit
def misses(sets: Any, y: Any) -> Any:
    """Chance that a token leaves a unit untouched [U, T]."""
    units, experts = y.shape
    reach, count = np.zeros((experts, units), np.int64), np.zeros(experts, np.int64)
    for u in range(units):
        for e in range(experts):
            if y[u, e] > 0:
                reach[e, count[e]] = u
                count[e] += 1
    miss = np.ones((units, sets.shape[0]))
    for t in range(sets.shape[0]):
        for e in sets[t]:
            for i in range(count[e]):
                miss[reach[e, i], t] *= 1.0 - y[reach[e, i], e]
    return miss


@jit
def pairs_change(x: Any, e: int, f: int, at: Any, de: Any, df: Any, n: int) -> float:
    """Co-activated pairs that share a unit more, on average of a token; the rows of y have not moved yet."""
    gain = 0.0
    for i in range(n):
        u = x.unit[at[i]]
        gain += de[i] * x.near[u, e] + df[i] * x.near[u, f]
        for j in range(n):
            if x.unit[at[j]] == u:
                gain += de[i] * df[j] * x.pairs[e, f]
    return gain


@jit
def follow(x: Any, e: int, f: int, at: Any, de: Any, df: Any, n: int) -> None:
    """`near` follows a move that is made."""
    for i in range(n):
        row = x.near[x.unit[at[i]]]
        for k in range(len(row)):
            row[k] += de[i] * x.pairs[e, k] + df[i] * x.pairs[f, k]


@jit
def shift(x: Any, e: int, f: int, at: Any, de: Any, df: Any, n: int, sign: float) -> None:
    """The rows of y follow the move, or go back."""
    for i in range(n):
        x.y[x.unit[at[i]], e] += sign * de[i]
        x.y[x.unit[at[i]], f] += sign * df[i]


@jit
def reach_change(x: Any, e: int, f: int, at: Any, n: int, keep: bool) -> float:
    """Units that a token touches less, on average, now that the rows of y have moved; `keep`: remember it."""
    gain = 0.0
    for i in range(n):
        u = x.unit[at[i]]
        again = False
        for j in range(i):
            again = again or x.unit[at[j]] == u
        if again:
            continue
        row, left = x.y[u], x.miss[u]
        for one in (e, f):
            for q in range(x.first[one], x.first[one + 1]):
                t = x.where[q]
                both, miss = False, 1.0
                for k in x.sets[t]:
                    miss *= 1.0 - row[k]
                    both = both or (one == f and k == e)
                if not both:
                    gain += x.share[t] * (miss - left[t])
                    if keep:
                        left[t] = miss
    return gain
