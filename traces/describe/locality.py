"""What consecutive tokens share: the reason why expert caches work."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from traces.describe.tokens import Tokens

WINDOWS = (1, 2, 4, 8, 16, 32, 64)


def overlap(tokens: Tokens) -> NDArray[np.float64]:
    """Experts of a token that the token before it also chose, of k, mean for each layer [layers]."""
    follows = tokens.follows()
    if not follows.any():
        return np.full(len(tokens.layers), np.nan)
    shared = np.zeros(len(tokens.layers))
    for layer in range(len(tokens.layers)):
        e = tokens.experts[:, layer]
        shared[layer] = (e[1:, :, None] == e[:-1, None, :])[follows].sum() / follows.sum()
    return shared


def independent_overlap(tokens: Tokens) -> NDArray[np.float64]:
    """The same if tokens were drawn independently by popularity: the sum of squared inclusion shares [layers]."""
    share = tokens.counts() / max(1, len(tokens))
    return np.asarray((share**2).sum(axis=1))


def working_sets(tokens: Tokens, windows: Sequence[int] = WINDOWS) -> NDArray[np.float64]:
    """Distinct experts of a layer over w consecutive tokens of a request, mean over layers and disjoint windows [windows].

    NaN where no request is long enough.
    """
    found = working_sets_by_layer(tokens, windows)
    return found.mean(axis=1) if len(tokens.layers) else np.full(len(windows), np.nan)


def working_sets_by_layer(tokens: Tokens, windows: Sequence[int] = WINDOWS) -> NDArray[np.float64]:
    """The same for each layer [windows, layers]."""
    starts = [_starts(tokens, w) for w in windows]
    found = np.full((len(windows), len(tokens.layers)), np.nan)
    for layer in range(len(tokens.layers)):
        chosen = tokens.chosen(layer)
        for i, w in enumerate(windows):
            if len(starts[i]):
                found[i, layer] = np.mean(_unions(chosen, starts[i], w))
    return found


def _starts(tokens: Tokens, w: int) -> NDArray[np.int64]:
    parts = [np.arange(a, b - w + 1, w) for a, b in tokens.stretches()]
    return np.concatenate(parts) if parts else np.empty(0, np.int64)


def _unions(chosen: NDArray[np.bool_], starts: NDArray[np.int64], w: int) -> NDArray[np.int64]:
    """Distinct experts of each window; a window at a time in w, not in their number."""
    union = chosen[starts].copy()
    for i in range(1, w):
        union |= chosen[starts + i]
    return np.asarray(union.sum(axis=1))


def independent_working_sets(tokens: Tokens, windows: Sequence[int] = WINDOWS) -> NDArray[np.float64]:
    """The same if tokens were drawn independently by popularity: sum over experts of 1 - (1 - share)^w."""
    share = tokens.counts() / max(1, len(tokens))
    return np.array([(1 - (1 - share) ** w).sum(axis=1).mean() for w in windows])


def batch_effect(tokens: Tokens, batches: Sequence[int], gpus: int, seed: int = 0, draws: int = 400) -> list[dict[str, float]]:
    """Batches of random tokens: distinct experts of a layer, and balancedness of `gpus` GPUs, mean over layers and draws."""
    from traces.describe.balance import balancedness

    rng = np.random.default_rng(seed)
    rows = []
    for batch in batches:
        picked = rng.integers(0, len(tokens), (draws, batch))
        balance, union = [], []
        for layer in range(len(tokens.layers)):
            place = np.arange(draws)[:, None, None] * tokens.most + tokens.experts[picked, layer]
            counts = np.bincount(place.ravel(), minlength=draws * tokens.most).reshape(draws, tokens.most)
            balance.append(balancedness(counts, gpus).mean())
            union.append((counts > 0).sum(axis=1).mean())
        rows.append({"tokens": batch, "balancedness": float(np.mean(balance)), "distinct_experts": float(np.mean(union))})
    return rows
