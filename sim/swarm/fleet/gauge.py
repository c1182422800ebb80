"""What the coordinator sees of its swarm at one look: by gossip, and of what comes in at its own door."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sim.swarm.fleet.policy import Seen
from sim.swarm.fleet.pool import Pool
from sim.swarm.fleet.sizes import Sizes
from sim.swarm.group import Group
from sim.swarm.jobs import Tally
from sim.swarm.views import GroupState, Views
from sim.tasks import PS_PER_S, Time

MEASURED = 20
"""Requests from which on what nodes bear is taken as measured."""


class Gauge:
    """Makes `Seen`: of each group its newest word, of each node how much it worked. startup_s: the lead before any was seen."""

    def __init__(self, sizes: Sizes, pool: Pool, views: Views, tally: Tally, groups: Sequence[Group], startup_s: float) -> None:
        self.sizes, self.pool, self.views, self.tally, self.groups, self.startup_s = sizes, pool, views, tally, groups, startup_s
        self.told: dict[str, GroupState] = {}
        """The newest word of each group."""
        self._entered: dict[str, int] = {}
        """Requests that came in at each other node, as far as it has told."""
        self._worked = self._last_s = 0.0
        """Seconds that a unit of capacity worked so far, and when that was last looked at."""

    def serving(self, alive: frozenset[int]) -> frozenset[int]:
        """Rented live nodes that a group which is up uses."""
        used = {n for g in self.groups if g.up and g.ready for n in g.nodes_used()}
        return self.pool.nodes("up") & alive & used

    def look(self, now: Time, alive: frozenset[int], coming: frozenset[int]) -> Seen:
        """alive: nodes that are not given up; coming: those that are counted as capacity without serving yet."""
        serving = self.serving(alive)
        self._hear()
        told = self.told.values()
        self._reshape()
        capacity = self.sizes.capacity(serving)
        busy = {n: self.views.entry(self.views.here, n) for n in serving}
        worked = float(sum(e.value.busy * self.sizes.speed[n] for n, e in busy.items() if e is not None))
        self._worked += worked * (now / PS_PER_S - self._last_s)
        self._last_s = now / PS_PER_S
        leads = list(self.pool.leads_s())
        return Seen(
            now / PS_PER_S, capacity, self.sizes.capacity(serving | coming), len(serving), self._rate(),
            min(1.0, worked / capacity) if capacity else 0.0, self._waiting(alive), self._arrived(),
            sum(t.served.firsts for t in told), sum(t.served.ttft_s for t in told), float(np.mean(leads)) if leads else self.startup_s,
        )  # fmt: skip

    def _hear(self) -> None:
        for group in self.groups:
            entry = self.views.entry(self.views.here, group.home)
            if entry is not None and group.name in entry.value.groups:
                self.told[group.name] = entry.value.groups[group.name]

    def _waiting(self, alive: frozenset[int]) -> int:
        """Requests that wait where somebody lives: what stood before a node that is given up was sent elsewhere."""
        return sum(self.told[g.name].waiting for g in self.groups if g.home in alive and g.name in self.told)

    def _reshape(self) -> None:
        """Nodes are worth what they do for requests as they have been so far."""
        served = [t.served for t in self.told.values()]
        done = sum(s.done for s in served)
        if done:
            self.sizes.reshape(sum(s.prompt for s in served) / done, sum(s.output for s in served) / done)

    def _rate(self) -> float:
        """Requests a second of working that the fastest node bears: as measured once some are done, which is too little while
        batches are small, and at most what its arithmetic and memory allow."""
        done, bound = sum(t.served.done for t in self.told.values()), float(self.sizes.bears.max())
        return min(bound, done / self._worked) if done >= MEASURED and self._worked else bound

    def _arrived(self) -> int:
        """Requests so far: at the coordinator's own door, and elsewhere as gossip tells."""
        here = self.views.here
        for node, name in enumerate(self.views.plant.nodes):
            entry = self.views.entry(here, node)
            if entry is not None and name != here:
                self._entered[name] = int(entry.value.entered)
        return self.tally.entered.get(here, 0) + sum(self._entered.values())
