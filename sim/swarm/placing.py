"""Where groups may live and what a placement policy makes of that: homes, targets, and what is kept on the way to them."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field, replace
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from sim.placement import Placement, Policy, Problem
from sim.placement.problem import apportion
from sim.swarm.group import Group
from sim.swarm.plant import Plant
from sim.swarm.routes import Routes
from sim.swarm.settings import Settings

Bools = NDArray[np.bool_]
Scope: TypeAlias = frozenset[int]


@dataclass(eq=False)
class Placer:
    """Asks the policy for placements on the nodes that are taken for alive.

    dead: nodes that are taken for dead; leaving: those that will be taken away; absent: those that are not rented, all of them dead;
    void: those that started anew with nothing in memory, which nobody but themselves knows yet. A scope is the set of nodes that a
    group may use.
    """

    plant: Plant
    routes: Routes
    policy: Policy
    settings: Settings
    dead: set[int] = field(default_factory=set)
    leaving: set[int] = field(default_factory=set)
    absent: set[int] = field(default_factory=set)
    void: set[int] = field(default_factory=set)

    def alive(self, scope: Scope) -> NDArray[np.int64]:
        """GPUs of live nodes of a scope."""
        return self.gpus(scope - self.dead - self.leaving)

    def gpus(self, nodes: Scope) -> NDArray[np.int64]:
        return np.flatnonzero(np.isin(self.plant.node_of, sorted(nodes)))

    def fits(self, nodes: Scope, home: int | None = None) -> bool:
        """Whether these nodes, all of them alive, hold the model: dense weights on one of them, and every expert. home: the one with
        the dense weights; None: the nearest."""
        home = self._nearest(nodes) if home is None else home
        return home is not None and int(self.plant.slots([home], self.gpus(nodes)).sum()) >= self.plant.model.experts

    def home(self, scope: Scope, wanted: Collection[int] = ()) -> int | None:
        """The live node nearest to the coordinator, of equal ones that with the most KV room; None where dense weights fit on none.
        wanted: KV tokens of requests; the home has room for the longest of those that some node has room for."""
        return self._nearest(scope - self.dead - self.leaving, wanted)

    def _nearest(self, nodes: Scope, wanted: Collection[int] = ()) -> int | None:
        here, room = self.plant.cluster.coordinator, self.plant.kv_tokens
        able = [n for n in sorted(nodes) if self._holds_dense(n)]
        most = max(map(room, able), default=0)
        least = max((w for w in wanted if w <= most), default=0)
        able = [n for n in able if room(n) >= least]
        return min(able, key=lambda n: (self.plant.network.rtt_s(here, self.plant.nodes[n]), -room(n), n), default=None)

    def _holds_dense(self, node: int) -> bool:
        mine = self.plant.gpus_of_node(node)
        return bool((self.plant.home_bytes(node)[mine] < self.plant.usable_bytes[mine]).all())

    def target(self, scope: Scope, home: int, group: Group | None) -> Bools | None:
        """The policy's placement on live GPUs, as held [layers, experts, all gpus]; None where the experts do not fit."""
        among = self.alive(scope)
        if not len(among):
            return None
        counts = self.routes.counts if group is None or not group.observed.any() else group.observed
        gpus = self.plant.fleet([home], among)
        wanted = counts.shape[1] + (self.settings.spares if self.settings.design == "spread" else int(gpus.slots.sum()))
        if gpus.slots.sum() < counts.shape[1]:
            return None
        gpus = replace(gpus, slots=_dealt(min(wanted, int(gpus.slots.sum())), gpus.slots))
        current = None if group is None else Placement(group.held[:, :, among])
        problem = Problem(counts[None], gpus, current=current, seed=self.settings.seed)
        held = np.zeros((*counts.shape, len(self.plant.node_of)), np.bool_)
        held[:, :, among] = self.policy.place(problem).held
        return held

    def trimmed(self, home: int, held: Bools, target: Bools) -> Bools:
        """What stays of the copies: on each GPU as many a layer as fit beside the (new) home's needs, those that are wanted
        first. Only a node that becomes a home gives any up."""
        slots = self.plant.slots([home], np.arange(len(self.plant.node_of)))
        worth = held * 2 - (held & ~target)
        rank = np.argsort(np.argsort(-worth.astype(np.int64), axis=1, kind="stable"), axis=1)
        return np.asarray(held & (rank < slots))

    def balance(self, scope: Scope, group: Group, held: Bools) -> float:
        """Balancedness of the group's load on live GPUs; 0 where they do not hold every expert."""
        from sim.placement.measures import balancedness

        among = self.alive(scope)
        if not len(among) or not held[:, :, among].any(axis=2).all():
            return 0.0
        return balancedness(Placement(held[:, :, among]), group.observed, self.plant.fleet([group.home], among))


def scopes(plant: Plant, design: str) -> dict[str, Scope]:
    """The nodes that each group of a design may use, by the group's name."""
    if design == "spread":
        return {"swarm": frozenset(range(len(plant.nodes)))}
    if design == "nodes":
        return {name: frozenset([n]) for n, name in enumerate(plant.nodes)}
    return {r: frozenset(np.flatnonzero(plant.region_of == i).tolist()) for i, r in enumerate(plant.regions)}


def _dealt(total: int, room: NDArray[np.int64]) -> NDArray[np.int64]:
    """`total` slots in proportion to the room [gpus], none more than it."""
    found = np.minimum(apportion(total, room.astype(np.float64)), room)
    for g in np.argsort(found - room, kind="stable"):
        found[g] += min(int(room[g] - found[g]), total - int(found.sum()))
    return found
