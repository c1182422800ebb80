"""What nodes are worth: how much they bear, what they cost for that, and which can be rented or given back together."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence

import numpy as np

from sim.errors import UserError
from sim.swarm.dispatch import SHARED
from sim.swarm.fleet.policy import Limits
from sim.swarm.fleet.pool import Pool
from sim.swarm.group import Group
from sim.swarm.placing import Placer, Scope

SHAPE = (512.0, 64.0)
"""Prompt and output tokens of a request before any was seen (guessed)."""


class Sizes:
    """reach: nodes that each group may use, by its name. usd: of each node what an hour costs now, as far as it is known. shape: mean
    prompt and output tokens of a request."""

    def __init__(self, placer: Placer, reach: Mapping[str, Scope]) -> None:
        self.placer, self.plant = placer, placer.plant
        self.reach = {name: nodes for name, nodes in reach.items() if placer.fits(nodes)}
        groups = [self.plant.cluster.node[n].group for n in self.plant.nodes]
        self.usd = [g.price.usd_per_hour if g.price else 0.0 for g in groups]
        here = self.plant.cluster.coordinator
        self._rtt_s = [self.plant.network.rtt_s(here, n) for n in self.plant.nodes]
        self.reshape(*SHAPE)

    def reshape(self, prompt: float, output: float) -> None:
        """Requests are like this on average: what each node bears of them a second [nodes]."""
        self.shape = (prompt, output)
        m = self.plant.model
        active = m.dense_bytes + m.moe_layers * m.top_k * m.expert_bytes
        params = m.layers * (m.attention_params + m.router_params + m.shared_params) + m.moe_layers * m.top_k * m.expert_params
        mine = [self.plant.gpus_of_node(n) for n in range(len(self.plant.nodes))]
        flops = np.array([self.plant.flops[g].sum() for g in mine])
        bytes_per_s = np.array([self.plant.bytes_per_s[g].sum() for g in mine])
        self.bears = 1.0 / (prompt * 2.0 * params / flops + output * active / bytes_per_s / SHARED)
        self.speed = self.bears / self.bears.max()

    def capacity(self, nodes: Collection[int]) -> float:
        """In the pool's fastest node."""
        return float(self.speed[sorted(nodes)].sum())

    def worth(self, nodes: Sequence[int]) -> tuple[float, float, Sequence[int]]:
        """What sorts the cheapest first: $ an hour for its capacity, then distance from the coordinator, then numbers."""
        usd = sum(self.usd[n] for n in nodes) / max(self.capacity(nodes), 1e-9)
        return usd, max(self._rtt_s[n] for n in nodes), nodes

    # What goes together -------------------------------------------------------------------------

    def growths(self, used: Scope, free: Scope) -> Iterator[tuple[int, ...]]:
        """Sets of free nodes that can be ordered to some use beside those that are used: one more for a group that holds the model, or
        as many as it takes for one that does not, the cheapest first."""
        for reach in self.reach.values():
            mine, open_ = reach & used, sorted(reach & free, key=lambda n: self.worth([n]))
            if mine and self.placer.fits(mine):
                yield from ((n,) for n in open_)
                continue
            for i in range(1, len(open_) + 1):
                if self.placer.fits(mine | frozenset(open_[:i])):
                    yield tuple(open_[:i])
                    break

    def shrinks(self, used: Scope, groups: Sequence[Group]) -> Iterator[tuple[int, ...]]:
        """Sets of nodes without which the rest of their group still holds the model, its home left alone, or whole groups."""
        for group in groups:
            mine = self.reach[group.name] & used
            home = group.home if group.home in mine else None
            single = [n for n in sorted(mine - {group.home}) if self.placer.fits(mine - {n}, home)]
            yield from ((n,) for n in single)
            if mine and not single:
                yield tuple(sorted(mine))

    def first(self, chosen: Scope, count: int, most: int) -> Scope:
        """Nodes to begin with: those chosen, and so many of the cheapest that some group can serve on them."""
        everything = frozenset(range(len(self.plant.nodes)))
        while len(chosen) < count or not self._serves(chosen):
            found = [g for g in self.growths(chosen, everything - chosen) if len(chosen) + len(g) <= most]
            if not found:
                break
            unit = min(found, key=self.worth)
            chosen |= frozenset(unit)
        return chosen

    def _serves(self, nodes: Scope) -> bool:
        return any(self.placer.fits(reach & nodes) for reach in self.reach.values())

    def check(self, limits: Limits, hub: Scope, first: Scope) -> None:
        """Raises `UserError` where limits do not go with a pool that could serve."""
        able = hub.union(*self.reach.values())
        if not self.reach:  # the model fits nowhere, whatever the limits
            return
        where = f"{self.plant.model.name} on {self.plant.cluster.name}"
        if limits.at_start > len(able):
            name = "min" if limits.min == limits.at_start else "start"
            raise UserError(f"--autoscale: {name}: is {limits.at_start}; must be {len(able)} or less, the nodes that can serve {where}")
        if not self._serves(first):
            least = len(self.first(hub, 1, len(self.plant.nodes)))
            raise UserError(f"--autoscale: max: is {limits.max}; must be {least} or more to serve {where}, or 0 for all nodes")


def rented(placer: Placer, reach: Mapping[str, Scope], limits: Limits, movable: bool) -> tuple[Pool, Sizes]:
    """What is rented when the study begins: the cheapest nodes that hold the model; all others are absent from then on. movable: none
    is kept, beside the coordinator where it has GPUs. Raises `UserError` where the limits allow for none that serve."""
    plant = placer.plant
    nodes, here = frozenset(range(len(plant.nodes))), plant.cluster.coordinator
    hub = frozenset([plant.nodes.index(here)] if here in plant.nodes else [])
    sizes, most = Sizes(placer, reach), limits.max or len(nodes)
    first = sizes.first(hub, limits.at_start, most)
    sizes.check(limits, hub, first)
    placer.absent |= nodes - first
    placer.dead |= nodes - first
    return Pool(len(nodes), first, hub if movable else sizes.first(hub, limits.min, most), most), sizes
