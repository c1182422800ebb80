"""Moves between prices: a cheaper node is ordered, and the one that it stands for is drained once it serves."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sim.swarm.fleet.arbitrage import Arbitrage, Offer
from sim.swarm.fleet.bill import Bill
from sim.swarm.fleet.policy import Limits
from sim.swarm.fleet.pool import Pool, Rent
from sim.swarm.fleet.sizes import Sizes
from sim.swarm.jobs import Tally
from sim.swarm.shelves import Shelves
from sim.tasks import PS_PER_S, Time

ENDS_LOOKS = 2.0
"""Looks that a node which drains is paid for, for the estimate (guessed: its requests take less than a look)."""


@dataclass(eq=False, slots=True)
class Move:
    """drained: when the old node took its last request. egress_usd: of what was loaded to the new one."""

    old: Rent
    new: Rent
    egress_usd: float
    drained: Time | None = None

    def cost_usd(self, bill: Bill) -> float:
        """Egress, the new node before it served, and the old one after its last request."""
        assert self.new.serves is not None and self.drained is not None
        until = self.old.until if self.old.until is not None else self.drained
        names = bill.plant.nodes
        paid = bill.usd_of(names[self.new.node], [(self.new.since / PS_PER_S, self.new.serves / PS_PER_S)])
        return self.egress_usd + paid + bill.usd_of(names[self.old.node], [(self.drained / PS_PER_S, until / PS_PER_S)])


class Moves:
    """under_way: moves whose new node does not serve yet; done: those whose old one was told to drain."""

    def __init__(self, policy: Arbitrage, sizes: Sizes, pool: Pool, shelves: Shelves, tally: Tally, limits: Limits) -> None:
        self.policy, self.sizes, self.pool, self.shelves, self.tally = policy, sizes, pool, shelves, tally
        self.startup_s, self.look_s = limits.startup_s, limits.look_s
        self.under_way: list[Move] = []
        self.done: list[Move] = []
        self._sign: NDArray[np.float64] | None = None
        self._turns = np.zeros((len(sizes.usd), len(sizes.usd)), np.int64)

    @property
    def nodes(self) -> frozenset[int]:
        return frozenset(r.node for m in self.under_way for r in (m.old, m.new))

    @property
    def coming(self) -> frozenset[int]:
        """Nodes that stand for others still: no capacity of their own."""
        return frozenset(m.new.node for m in self.under_way)

    def watch(self) -> None:
        """Count how often each pair of nodes has changed which one is cheaper."""
        usd = np.array(self.sizes.usd)
        sign = np.sign(usd[:, None] - usd)
        if self._sign is not None:
            self._turns += sign != self._sign
        self._sign = sign

    def arrived(self, now: Time, serving: frozenset[int]) -> list[int]:
        """Nodes that are to be drained now, as the ones that stand for them serve. A move whose nodes were lost is over."""
        out: list[int] = []
        for move in list(self.under_way):
            if move.new.until is not None or move.old.until is not None or self.pool.state[move.old.node] != "up":
                self.under_way.remove(move)
            elif move.new.node in serving:
                self.under_way.remove(move)
                self.done.append(move)
                move.drained, move.egress_usd = now, self._egress_usd(move.new.node) - move.egress_usd
                out.append(move.old.node)
        return out

    def wanted(self, now: Time, sources: frozenset[int], targets: frozenset[int], alive: frozenset[int]) -> Offer | None:
        """The move that pays best, if any does; alive: nodes that weights may come from."""
        return self.policy.choose(list(self._offers(now, sources, targets, alive)), len(self.under_way))

    def begun(self, source: int, target: int) -> None:
        self.under_way.append(Move(self.pool.rent_of(source), self.pool.rent_of(target), self._egress_usd(target)))

    def _egress_usd(self, node: int) -> float:
        return self.tally.loaded_usd.get(self.sizes.plant.nodes[node], 0.0)

    def _offers(self, now: Time, sources: frozenset[int], targets: frozenset[int], alive: frozenset[int]) -> Iterator[Offer]:
        usd, speed = self.sizes.usd, self.sizes.speed
        for source in sorted(sources):
            for target in sorted(targets):
                saving = usd[source] - usd[target]
                if saving <= 0 or speed[target] < self.policy.share * speed[source]:
                    continue
                ends_usd = usd[source] * ENDS_LOOKS * self.look_s / 3600
                least = Offer(source, target, saving, now / PS_PER_S, int(self._turns[source, target]), 0.0, 0.0, ends_usd)
                if self.policy.gain_usd(least) > 0:
                    egress_usd, load_s = self._way(target, alive)
                    paid = usd[target] * (self.startup_s + load_s) / 3600
                    yield Offer(source, target, saving, least.watched_s, least.turns, egress_usd, paid, ends_usd)

    def _way(self, node: int, alive: frozenset[int]) -> tuple[float, float]:
        """Of a whole copy of the weights to a node whose disk is empty: its price, and how long it takes over the slowest link."""
        plant, there = self.sizes.plant, self.sizes.plant.nodes[node]
        usd = seconds = 0.0
        for source, names in self.shelves.sources(node, list(plant.manifest.sizes), alive).items():
            path, size = plant.network.path(source, there), self.shelves.bytes_of(names)
            usd += size * path.usd_per_byte
            seconds = max([seconds, *(size * factor / plant.resources[name] for name, factor in path.resources)])
        return usd, seconds
