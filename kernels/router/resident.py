"""A router that leans towards experts that are in memory, within a stated margin.

Without prices, the logits of resident experts get a bonus before the choice. The bonus is at most `margin`, so whatever an
expert displaces, that one's logit was at most `margin` above its own: the top choice is never displaced by more. With prices
(`kernels.router.priced`) the bonus is what a hit is worth beside the loss that a displacement is expected to cost, within the same
margin. Weights come from the logits as they are. The bonus may be fixed, or follow a target hit rate (an integrator, clamped).
Margin, and the bonus on logits, may be shares of the row's spread, its best logit less its mean: layers differ in how far their logits
lie apart, and tokens in how sure the router is.

Several threads route at once, each with a shard of its own: counters, requests, moving averages and bonus. Nobody
locks anything; `merged` adds the shards up, at any time, since counters only grow.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from kernels.jit import inline, jit
from kernels.router.cpu import below, number
from kernels.router.priced import lean_by_price
from kernels.vecmath import exp

_ZERO, _ONE = np.float32(0), np.float32(1)
_LINE = 128
"""Bytes between the shards of two threads at least: two cache lines, since they are fetched in pairs."""

ASKED, HITS, DISPLACED = range(3)
METRICS = 3
"""Of one shard, int64: experts chosen; of these resident; tokens whose best expert by the logits was not chosen first."""


class Lean(NamedTuple):
    """How far the router may bend.

    bonus: on the logits of resident experts, or with prices the loss (nats) that a hit is worth, to begin with. margin: how far a
    logit may lie above one that is taken in its place; without prices also the most that the bonus may become. target: hit rate to
    reach by adapting it; negative: it stays as it is. gain: change of the bonus a token for each unit of hit rate that is missing.
    decay: of the moving average, a token. relative: margin, and bonus without prices, are shares of each row's best logit less its
    mean. most: that the bonus may become with prices.
    """

    bonus: float
    margin: float
    target: float = -1.0
    gain: float = 0.002
    decay: float = 0.96
    relative: bool = False
    most: float = 1.0


class Shards(NamedTuple):
    """What the threads count, one row each; rows lie apart.

    counts [threads, experts] int64: times chosen. requests [threads, experts] int64: of these, while not resident: what to
    page in (counters only grow: whoever pages keeps what it has seen). affinity [threads, experts] float32: moving average of
    the weight that each expert has in the plain choice, whatever is resident: what ought to be. bonus [threads, 1] float32: as it is
    now. scratch [threads, experts] float32.
    """

    counts: np.ndarray
    requests: np.ndarray
    affinity: np.ndarray
    bonus: np.ndarray
    scratch: np.ndarray


def shards(threads: int, experts: int, lean: Lean, priced: bool = False) -> Shards:
    """Fresh shards. The only allocation: routing itself makes none. priced: they will be used with prices."""

    def rows(width: int, dtype: type) -> np.ndarray:
        size = np.dtype(dtype).itemsize
        stride = -(-width * size // _LINE) * _LINE + _LINE
        return np.zeros((threads, stride // size), dtype)[:, :width]

    made = Shards(
        rows(experts, np.int64), rows(experts, np.int64), rows(experts, np.float32), rows(1, np.float32), rows(experts, np.float32)
    )
    made.bonus[:] = min(lean.bonus, lean.most if priced else lean.margin)
    return made


def merged(made: Shards) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Counts, requests and affinity [experts] of all threads together."""
    return made.counts.sum(axis=0), made.requests.sum(axis=0), made.affinity.sum(axis=0)


@inline
def _two(logits, t, resident, bonus):
    """The two experts that are wanted most, the lower of equal ones first. One pass."""
    first = second = np.intp(0)
    best = next_best = -np.float32(np.inf)
    for e in range(logits.shape[1]):
        value = logits[t, e] + bonus * np.float32(resident[e])
        if value > best:
            second, next_best = first, best
            first, best = e, value
        elif value > next_best:
            second, next_best = e, value
    return first, second


@inline(reorder=True)
def _biased(logits, t, resident, bonus, row):
    for e in range(np.uintp(logits.shape[1])):
        row[0, e] = logits[t, e] + bonus * np.float32(resident[e])


@inline(reorder=True)
def _weigh(logits, t, ids, weights):
    """Softmax over the chosen, by the logits as they are."""
    largest, total = logits[t, ids[t, 0]], _ZERO
    for j in range(1, ids.shape[1]):
        largest = max(largest, logits[t, ids[t, j]])
    for j in range(ids.shape[1]):
        weights[t, j] = exp(logits[t, ids[t, j]] - largest)
        total += weights[t, j]
    for j in range(ids.shape[1]):
        weights[t, j] /= total


@inline(reorder=True)
def _decay(affinity, decay):
    for e in range(np.uintp(affinity.shape[0])):
        affinity[e] *= decay


@inline(reorder=True)
def _spread(logits, t):
    """Best logit less the mean."""
    largest, total = logits[t, 0], _ZERO
    for e in range(np.uintp(logits.shape[1])):
        largest = max(largest, logits[t, e])
        total += logits[t, e]
    return largest - total / np.float32(logits.shape[1])


@jit
def route_some(logits, resident, costs, lean, counts, requests, affinity, bonus, scratch, ids, weights, start, stop, metrics):
    """`route` of rows [start, stop), for compiled callers; the arrays of one shard: counts, requests, affinity [experts], bonus [1],
    scratch [1, experts]. costs [experts, experts] float32, or None; metrics [3] int64, or None, for which nothing of it is compiled."""
    # All helpers are called from here and none calls another that takes arrays: else Numba counts references to them in the loop.
    experts, top_k = logits.shape[1], ids.shape[1]
    margin, target, gain, decay = np.float32(lean[1]), np.float32(lean[2]), np.float32(lean[3]), np.float32(lean[4])
    most = margin if costs is None else np.float32(lean[6])
    now = bonus[0]
    for t in range(start, stop):
        best, extra = np.int64(-1), _ZERO
        while True:  # once for the plain choice, and once with the bonus
            if top_k == 2:
                first, second = _two(logits, t, resident, extra)
                ids[t, 0], ids[t, 1] = first, second
            else:
                _biased(logits, t, resident, extra, scratch)
                key = np.uint64(0)
                for j in range(top_k):
                    key = below(scratch, 0, experts, key)
                    ids[t, j] = number(key)
            _weigh(logits, t, ids, weights)
            if best >= 0:
                break
            best = np.int64(ids[t, 0])
            _decay(affinity, decay)
            for j in range(top_k):
                affinity[ids[t, j]] += (_ONE - decay) * weights[t, j]
            if now <= _ZERO:
                break
            spread = _spread(logits, t) if lean[5] else _ONE
            if costs is not None:
                lean_by_price(logits, t, resident, costs, now, margin * spread, ids, scratch)
                _weigh(logits, t, ids, weights)
                break
            extra = now * spread
        hits = 0
        for j in range(top_k):
            e = ids[t, j]
            here = np.int64(resident[e])
            hits += here
            counts[e] += 1
            requests[e] += 1 - here
        if target >= _ZERO:
            now = min(most, max(_ZERO, now + gain * (target - np.float32(hits) / np.float32(top_k))))
        if metrics is not None:
            metrics[0] += top_k
            metrics[1] += hits
            if best != ids[t, 0]:
                metrics[2] += 1
    bonus[0] = now


def route(
    logits: np.ndarray, resident: np.ndarray, lean: Lean, made: Shards, ids: np.ndarray, weights: np.ndarray, shard: int = 0,
    metrics: np.ndarray | None = None, costs: np.ndarray | None = None,
) -> None:  # fmt: skip
    """Choose experts for every row and count what was chosen.

    logits [tokens, experts] float32; resident [experts] uint8, 1 where the expert is in memory (its owner may change it at any
    time); costs [experts, experts] float32: prices, see `kernels.router.priced`; ids [tokens, k] int16 and weights [tokens, k]
    float32 are written. Threads may call it at once with different `shard`.
    """
    route_some(
        logits, resident, costs, lean, made.counts[shard], made.requests[shard], made.affinity[shard], made.bonus[shard],
        made.scratch[shard : shard + 1], ids, weights, 0, len(logits), metrics,
    )  # fmt: skip


def reference(
    logits: np.ndarray, resident: np.ndarray, bonus: float, top_k: int, relative: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Experts and weights [tokens, k] with a fixed bonus, in plain NumPy."""
    spread = logits.max(axis=1, keepdims=True) - logits.mean(axis=1, keepdims=True) if relative else np.float32(1)
    wanted = logits + np.float32(bonus) * spread * resident.astype(np.float32)
    ids = np.argsort(-wanted, axis=1, kind="stable")[:, :top_k].astype(np.int16)
    chosen = np.take_along_axis(logits, ids.astype(np.intp), axis=1)
    powers = np.exp(chosen - chosen.max(axis=1, keepdims=True))
    return ids, powers / powers.sum(axis=1, keepdims=True)
