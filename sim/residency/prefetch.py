"""Prefetch policies: which experts the next layer will ask for.

A predictor is told every event and names (layer, expert) pairs, the likeliest first. What is already here, and
whether there is a slot and time on the link for the rest, is not its business.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.errors import UserError
from sim.residency.eviction import Affinity as Average

Guess = tuple[int, int]
"""(layer, expert)."""

NEXT_GATE = "next_experts"
"""Fact of a gate's result: rows of each expert [experts] by the next layer's gate on this layer's hidden state."""


class Predictor:
    """Base: guesses nothing. `layers`: numbers of the routed layers, ascending; `experts`: of each."""

    def __init__(self, layers: Sequence[int], experts: int) -> None:
        self.layers = tuple(layers)
        self.experts = experts
        self.at = {layer: i for i, layer in enumerate(self.layers)}

    def following(self, layer: int) -> int:
        """The routed layer that comes next, of the next token behind the last."""
        return self.layers[(self.at[layer] + 1) % len(self.layers)]

    def saw(self, layer: int, asked: Sequence[int], facts: Mapping[str, Any]) -> list[Guess]:
        """An event of `layer` asked for these experts. Returns what will be asked for next."""
        return []

    def ended(self, share: float) -> None:
        """This share of the sequences has ended."""


class AffinityPredictor(Predictor):
    """The experts that the next layer was asked for most, lately."""

    def __init__(self, layers: Sequence[int], experts: int) -> None:
        super().__init__(layers, experts)
        self._uses = Average(experts)

    def saw(self, layer: int, asked: Sequence[int], facts: Mapping[str, Any]) -> list[Guess]:
        self._uses.used(layer, [layer * self.experts + e for e in asked])
        then = self.following(layer)
        ranked = sorted(range(self.experts), key=lambda e: (-self._uses.worth(then * self.experts + e), e))
        return [(then, e) for e in ranked[: len(asked)]]


class Markov(Predictor):
    """First order: how often an expert followed each of this layer's, counted as the run goes on; [layers, experts, experts]."""

    def __init__(self, layers: Sequence[int], experts: int) -> None:
        super().__init__(layers, experts)
        self._follows = np.zeros((len(self.layers), experts, experts), np.float32)
        self._before: tuple[int, list[int]] | None = None

    def saw(self, layer: int, asked: Sequence[int], facts: Mapping[str, Any]) -> list[Guess]:
        if self._before is not None and self.following(self._before[0]) == layer:
            i = self.at[self._before[0]]
            self._follows[i][np.ix_(self._before[1], list(asked))] += 1.0
        self._before = (layer, list(asked))
        counts = self._follows[self.at[layer]]
        seen = counts[list(asked)]
        scores = (seen / np.maximum(1.0, seen.sum(axis=1, keepdims=True))).sum(axis=0)
        best = np.argsort(-scores, kind="stable")[: len(asked)]
        return [(self.following(layer), int(e)) for e in best if scores[e] > 0]


class NextGate(Predictor):
    """The next layer's own gate on this layer's hidden state (Fate, arXiv 2502.12224; HybriMoE, arXiv 2504.05897): in the executor
    the router kernel computes it, in the simulator a second trace tells it."""

    def saw(self, layer: int, asked: Sequence[int], facts: Mapping[str, Any]) -> list[Guess]:
        rows: Sequence[int] = facts.get(NEXT_GATE, ())
        then = self.following(layer)
        if then < layer:
            return []
        return [(then, e) for e in sorted((e for e, n in enumerate(rows) if n), key=lambda e: (-rows[e], e))]


class NearestSequence(Predictor):
    """MoE-Infinity (arXiv 2401.14361, v1, 4): the recorded activation matrix [layers, experts] nearest (by cosine) to this sequence's
    so far tells the layers to come; a layer's weight falls linearly with its distance. At most `KEPT` matrices are
    recorded; a new one takes the place of the one that it is most like."""

    KEPT = 64
    REACH = 2

    def __init__(self, layers: Sequence[int], experts: int) -> None:
        super().__init__(layers, experts)
        self._now = np.zeros((len(self.layers), experts), np.float32)
        self._store: list[NDArray[np.float32]] = []
        self._nearest: NDArray[np.float32] | None = None

    def saw(self, layer: int, asked: Sequence[int], facts: Mapping[str, Any]) -> list[Guess]:
        i, n = self.at[layer], len(self.layers)
        self._now[i, list(asked)] += 1.0
        if i == 0 or self._nearest is None:
            self._nearest = self._find()
        if self._nearest is None:
            return []
        ahead = self._nearest[i + 1 : i + 1 + self.REACH]
        scores = ahead / np.maximum(1.0, ahead.sum(axis=1, keepdims=True)) * (1.0 - np.arange(1, len(ahead) + 1)[:, None] / n)
        best = np.argsort(-scores, axis=None, kind="stable")[: len(asked) * len(ahead)]
        return [(self.layers[i + 1 + int(b) // self.experts], int(b) % self.experts) for b in best if scores.flat[b] > 0]

    def ended(self, share: float) -> None:
        mine = _unit(self._now)
        if len(self._store) < self.KEPT:
            self._store.append(mine)
        else:
            self._store[int(np.argmax([np.vdot(m, mine) for m in self._store]))] = mine
        self._now *= np.float32(1.0 - share)
        self._nearest = None

    def _find(self) -> NDArray[np.float32] | None:
        if not self._store:
            return None
        return self._store[int(np.argmax([np.vdot(m, self._now) for m in self._store]))]


def _unit(matrix: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.asarray(matrix / max(float(np.linalg.norm(matrix)), 1e-30), np.float32)


PREDICTORS: dict[str, Callable[[Sequence[int], int], Predictor]] = {
    "none": Predictor, "affinity": AffinityPredictor, "markov": Markov, "next-gate": NextGate, "sequence": NearestSequence,
}  # fmt: skip


def refuse_without_gate(recorded: bool, where: str) -> None:
    """Raises `UserError` where the next layer's gate is asked for and nobody recorded it."""
    if not recorded:
        raise UserError(
            f"--prefetch next-gate: {where} does not hold what the next layer's gate says; give a trace of it with --next-gate, "
            "or take affinity, markov or sequence"
        )
