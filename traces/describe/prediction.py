"""How well one choice tells another: the next layer's experts, and experts that go together."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from traces.describe.tokens import Tokens


def next_layer_recall(tokens: Tokens) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Share of layer l + 1's k experts among the k that layer l's choice makes most likely [layers - 1]: (Markov, popularity).

    First-order Markov: expert e of layer l + 1 scores the sum over the chosen a of layer l of
    P(e | a), counted on one half of the requests and scored on the other (even and odd ones; halves
    of the only request). Popularity predicts the k most used experts whatever came before.
    """
    parts = tokens.sequence() % 2 == 0
    if parts.all():
        parts = np.arange(len(tokens)) < len(tokens) // 2
    train, test = tokens.take(parts), tokens.take(~parts)
    pairs = max(0, len(tokens.layers) - 1)
    markov, popular = np.full(pairs, np.nan), np.full(pairs, np.nan)
    if not len(train) or not len(test):
        return markov, popular
    before, now = train.chosen(0).astype(np.float32), test.chosen(0).astype(np.float32)
    for layer in range(pairs):
        after, then = train.chosen(layer + 1).astype(np.float32), test.chosen(layer + 1)
        joint = before.T @ after
        given = joint / np.maximum(before.sum(axis=0), 1)[:, None]
        best = np.argpartition(now @ given, tokens.most - tokens.k, axis=1)[:, tokens.most - tokens.k :]
        markov[layer] = np.take_along_axis(then, best, axis=1).sum() / (len(test) * tokens.k)
        favourites = np.argsort(-after.sum(axis=0), kind="stable")[: tokens.k]
        popular[layer] = then[:, favourites].sum() / (len(test) * tokens.k)
        before, now = after, then.astype(np.float32)
    return markov, popular


def coactivation(tokens: Tokens, strongest: int = 5) -> tuple[NDArray[np.float64], list[dict[str, Any]]]:
    """How far experts go together within a token: (strength of each layer, the pairs that most exceed chance).

    Strength: total variation distance between the pairs chosen and those that independent draws by
    popularity would give; 0 means independent, near 1 fixed groups. Lift: how many times more often
    than by popularity a pair occurs.
    """
    strength = np.full(len(tokens.layers), np.nan)
    pairs: list[dict[str, Any]] = []
    if tokens.k < 2 or not len(tokens):
        return strength, pairs
    upper = np.triu_indices(tokens.most, 1)
    for layer in range(len(tokens.layers)):
        chosen = tokens.chosen(layer).astype(np.float32)
        found = (chosen.T @ chosen)[upper].astype(np.float64)
        use = chosen.sum(axis=0, dtype=np.float64)
        chance = np.outer(use, use)[upper]
        chance *= found.sum() / chance.sum()
        strength[layer] = np.abs(found - chance).sum() / (2 * found.sum())
        common = found >= max(20.0, 1e-3 * len(tokens))
        lift = np.divide(found, chance, out=np.zeros_like(found), where=common & (chance > 0))
        for i in np.argsort(-lift, kind="stable")[:strongest]:
            if lift[i] > 0:
                a, b = int(upper[0][i]), int(upper[1][i])
                share = float(found[i] / len(tokens))
                pairs.append({"layer": int(tokens.layers[layer]), "experts": [a, b], "lift": float(lift[i]), "share_of_tokens": share})
    pairs.sort(key=lambda p: -p["lift"])
    return strength, pairs[:strongest]
