"""The compiled inner loop of the synthetic router. Importing this module imports numba."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray


@njit(cache=True)  # type: ignore[untyped-decorator]
def _mix(x: Any) -> Any:
    """SplitMix64's finaliser (Steele, Lea, Flood 2014): a hash of 64 bits to 64 bits."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@njit(cache=True)  # type: ignore[untyped-decorator]
def sample(
    popularity: NDArray[np.float64], transition: NDArray[np.float64], stickiness: NDArray[np.float64], topic: NDArray[np.float64],
    lengths: NDArray[np.int64], k: int, seed: Any,
) -> NDArray[np.int16]:  # fmt: skip
    """Experts [tokens, layers, k], best score first; topic [requests, layers, experts], lengths [requests] tokens.

    See `traces.synthetic` for the model.
    """
    layers, experts = popularity.shape
    chosen = np.zeros((lengths.sum(), layers, k), np.int16)
    before = np.zeros((layers, experts))
    score = np.empty(experts)
    row = 0
    for request in range(len(lengths)):
        before[:] = 0.0
        of_request = _mix(_mix(seed) ^ np.uint64(request))
        for token in range(lengths[request]):
            of_token = _mix(of_request ^ np.uint64(token))
            for layer in range(layers):
                for e in range(experts):
                    uniform = (float(_mix(of_token ^ np.uint64(layer * experts + e)) >> np.uint64(11)) + 0.5) * 2.0**-53
                    liking = popularity[layer, e] + topic[request, layer, e] + stickiness[layer] * before[layer, e]
                    score[e] = liking - np.log(-np.log(uniform))
                if layer > 0:
                    for slot in range(k):
                        a = chosen[row, layer - 1, slot]
                        for e in range(experts):
                            score[e] += transition[layer - 1, a, e]
                before[layer] = 0.0
                for slot in range(k):
                    best = np.argmax(score)
                    chosen[row, layer, slot] = best
                    score[best] = -np.inf
                    before[layer, best] = 1.0
            row += 1
    return chosen
