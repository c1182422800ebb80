"""Consistent hashing with virtual nodes, replicas and bounded loads: placement without looking at load at all.

Sources: the ring with virtual nodes, Karger et al., STOC 1997; the bound, Mirrokni, Thorup and Zadimoghaddam, SODA 2018
(arXiv 1608.01350): a GPU that holds (1 + slack) times its share is full, and the walk goes on to the next one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from sim.errors import UserError
from sim.placement.compiled import jit
from sim.placement.placement import Placement
from sim.placement.policy import Tell, silent
from sim.placement.problem import Ints, Problem

Hashes = NDArray[np.uint64]


@dataclass(frozen=True)
class ConsistentHash:
    """virtual: points on the ring for a GPU with the mean number of slots. replicas: copies of each expert.
    slack: how far above its share a GPU may go. Where a current placement is given, a copy stays where it is
    unless its GPU is over its bound, or the walk meets a GPU that holds nothing yet (a newcomer) before it."""

    whole_layers: ClassVar[bool] = False
    virtual: int = 64
    replicas: int = 1
    slack: float = 0.25

    def __post_init__(self) -> None:
        if self.virtual < 1 or self.replicas < 1 or self.slack < 0:
            raise UserError("options virtual and replicas must be 1 or more, slack 0 or more")

    def place(self, problem: Problem, tell: Tell = silent) -> Placement:
        slots = np.minimum(problem.gpus.slots, problem.experts)
        replicas = max(1, min(self.replicas, int(slots.sum()) // problem.experts, int((slots > 0).sum())))
        walks = self._walks(problem, slots)
        bound, fair = (_bound(problem.experts * replicas, slots, slack) for slack in (self.slack, 0.0))
        held = np.zeros((problem.layers, problem.experts, len(slots)), np.bool_)
        current = None if problem.current is None else problem.current.held
        new = None if current is None else np.asarray(~current.any(axis=(0, 1)))
        for layer in range(problem.layers):
            if current is not None and new is not None:
                _keep(held[layer], current[layer], walks[layer], bound, fair, new, replicas)
            _walk(held[layer], walks[layer], bound, slots, replicas)
        return Placement(held)

    def _walks(self, problem: Problem, slots: Ints) -> Ints:
        """GPUs in the order in which each expert's walk round the ring meets them [layers, experts, gpus]."""
        gpus, points = np.flatnonzero(slots > 0), np.rint(self.virtual * slots / slots[slots > 0].mean()).astype(np.int64)
        owner = np.repeat(gpus, np.maximum(1, points[gpus]))
        number = np.concatenate([np.arange(max(1, points[g])) for g in gpus])
        place = mixed(mixed(owner.astype(np.uint64) + np.uint64(problem.seed << 32)) + number.astype(np.uint64))
        order = np.argsort(place, kind="stable")
        ring, owner = place[order], owner[order]
        keys = mixed(mixed(np.arange(problem.layers * problem.experts, dtype=np.uint64)) ^ np.uint64(0x9E3779B97F4A7C15))
        start = np.searchsorted(ring, keys) % len(ring)
        met = _met(owner, len(slots))
        return met[start].reshape(problem.layers, problem.experts, -1)


def _bound(copies: int, slots: Ints, slack: float) -> Ints:
    """Copies that a GPU may hold [gpus]: its share of all, by slots, and the slack."""
    share = np.ceil(copies * (1 + slack) * slots / slots.sum()).astype(np.int64)
    return np.asarray(np.minimum(slots, share))


def mixed(value: Hashes) -> Hashes:
    """SplitMix64 (Steele, Lea, Flood, OOPSLA 2014): a bijection of 64-bit numbers that looks random."""
    with np.errstate(over="ignore"):
        z = value + np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(z ^ (z >> np.uint64(31)))


def _met(owner: Ints, gpus: int) -> Ints:
    """For each point of the ring the GPUs in the order in which a walk from there meets them [points, gpus on the ring]."""
    points = len(owner)
    ahead = np.full((points, gpus), 2 * points, np.int64)
    nearest = np.full(gpus, 2 * points, np.int64)
    for p in range(2 * points - 1, -1, -1):
        nearest[owner[p % points]] = p
        if p < points:
            ahead[p] = nearest
    return np.argsort(ahead, axis=1, kind="stable")[:, : len(np.unique(owner))]


@jit
def _keep(held: Any, current: Any, walks: Any, bound: Any, fair: Any, new: Any, replicas: int) -> None:
    """Copies that stay, up to each GPU's bound. What no longer fits goes to newcomers first; then experts whose walk meets a
    newcomer before their GPU follow it, until it has its fair share: as few copies move as the newcomers need."""
    experts = len(walks)
    used = np.zeros(len(bound), np.int64)
    had = np.minimum(current.sum(axis=1), replicas)
    nearer = np.full(experts, -1)
    for e in range(experts):
        for g in walks[e]:
            if new[g] or current[e, g]:
                nearer[e] = g if new[g] else -1
                break
    for following in (False, True):
        for e in range(experts):
            if (nearer[e] >= 0) == following:
                _take(held, used, e, walks[e], current[e], bound, had[e])
    for e in range(experts - 1, -1, -1):
        _take(held, used, e, walks[e], new, bound, had[e])
    for e in range(experts):
        g = nearer[e]
        if g >= 0 and used[g] < fair[g] and not held[e, g] and held[e].sum() == had[e]:
            last = -1
            for old in walks[e]:
                last = old if held[e, old] else last
            held[e, last], held[e, g] = False, True
            used[last] -= 1
            used[g] += 1


@jit
def _take(held: Any, used: Any, e: int, walk: Any, allowed: Any, limit: Any, copies: int) -> None:
    """Expert e walks until it has so many copies, and takes each allowed GPU that is under its limit."""
    here = held[e].sum()
    for g in walk:
        if here < copies and allowed[g] and used[g] < limit[g] and not held[e, g]:
            held[e, g] = True
            used[g] += 1
            here += 1


@jit
def _walk(held: Any, walks: Any, bound: Any, slots: Any, replicas: int) -> None:
    """Each expert that lacks copies walks to the next GPU with room: under the bound, then, if all are full, under the slots."""
    used = held.sum(axis=0)
    everywhere = np.ones(len(slots), np.bool_)
    for limit in (bound, slots):
        for e in range(len(walks)):
            _take(held, used, e, walks[e], everywhere, limit, replicas)
