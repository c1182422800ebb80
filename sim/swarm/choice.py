"""Which copy of an expert serves: nearest, least loaded, power of two choices, or a split by linear programming."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sim.errors import unknown
from sim.jitter import uniform

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True, eq=False, slots=True)
class View:
    """What a group knows when it chooses.

    held [layers, experts, gpus]: live copies. rtt_s [gpus]: from the group's home. busy [gpus]: load by the last reports, as old
    as they are. shares: gives `lp_shares` of the load that it expects. draw: another number, another lot.
    """

    held: Bools
    rtt_s: Floats
    busy: Floats
    shares: Callable[[], Floats]
    seed: int = 0
    draw: int = 0

    def lottery(self, salt: int) -> Floats:
        """A number in (0, 1) for each copy [layers, experts, gpus], another one in each step."""
        layers, experts, gpus = self.held.shape
        axes = np.arange(layers)[:, None, None], np.arange(experts)[:, None], np.arange(gpus)
        return uniform(self.seed, self.draw, salt, *axes)


def nearest(view: View) -> NDArray[np.int64]:
    """The GPU that serves each expert [layers, experts]: a copy of least round trip, equal ones by lot."""
    close = np.where(view.held, view.rtt_s, np.inf)
    tied = close == close.min(axis=2, keepdims=True)
    return np.asarray(np.where(tied & view.held, view.lottery(0), 2.0).argmin(axis=2))


def least_loaded(view: View) -> NDArray[np.int64]:
    """The copy on the GPU that was reported least busy. Everybody who holds the same report goes there."""
    return np.asarray(np.where(view.held, view.busy, np.inf).argmin(axis=2))


def power_of_two(view: View) -> NDArray[np.int64]:
    """The less busy of two copies drawn by lot (Mitzenmacher 2001)."""
    order = np.argsort(np.where(view.held, view.lottery(1), 2.0), axis=2)
    first, second = order[..., 0], order[..., min(1, order.shape[2] - 1)]
    two = np.take_along_axis(view.held, second[..., None], 2)[..., 0]
    return np.asarray(np.where(two & (view.busy[second] < view.busy[first]), second, first))


def split(view: View) -> NDArray[np.int64]:
    """Each copy in proportion to the share of its expert's load that evens the GPUs of a layer out best, by linear programming."""
    ticket = view.lottery(2)[:, :, :1]
    share = np.cumsum(view.shares(), axis=2)
    return np.asarray((ticket * share[:, :, -1:] <= share).argmax(axis=2))


def lp_shares(held: Bools, counts: Floats, speed: Floats) -> Floats:
    """Shares [layers, experts, gpus] of every expert's load over its copies, which minimise the slowest GPU's time in each layer;
    counts [layers, experts], speed [gpus]."""
    return np.stack([_lp_layer(held[layer], counts[layer], speed) for layer in range(len(held))])


def _lp_layer(held: Bools, counts: Floats, speed: Floats) -> Floats:
    from scipy import optimize, sparse

    expert, gpu = np.nonzero(held)
    n = len(expert)
    scale = max(float(counts.sum()), 1.0)
    load = sparse.csr_array((counts[expert] / scale / speed[gpu] * speed.max(), (gpu, np.arange(n))), shape=(held.shape[1], n))
    upper = sparse.hstack([load, -np.ones((held.shape[1], 1))])
    whole = sparse.csr_array((np.ones(n), (expert, np.arange(n))), shape=(held.shape[0], n + 1))
    cost = np.append(np.zeros(n), 1.0)
    found = optimize.linprog(cost, upper, np.zeros(held.shape[1]), whole, np.ones(held.shape[0]), bounds=(0, None), method="highs")
    assert found.success, found.message
    out = np.zeros(held.shape)
    out[expert, gpu] = found.x[:-1]
    return out


CHOICES: Mapping[str, Callable[[View], NDArray[np.int64]]] = {
    "nearest": nearest, "least-loaded": least_loaded, "power-of-two": power_of_two, "lp": split,
}  # fmt: skip


def load(name: str) -> Callable[[View], NDArray[np.int64]]:
    """Raises UserError for an unknown name."""
    if name not in CHOICES:
        raise unknown("--replica-routing", name, CHOICES)
    return CHOICES[name]
