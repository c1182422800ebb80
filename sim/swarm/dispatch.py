"""Which group serves a request: the nearest, the least loaded, two choices, in proportion to speed, or with edge redirection."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from sim.swarm.dice import below, uniform
from sim.swarm.fleet.pool import Pool
from sim.swarm.group import Group
from sim.swarm.jobs import Job
from sim.swarm.plant import Plant
from sim.swarm.settings import Settings
from sim.swarm.views import Views
from sim.tasks import Time

SHARED = 16.0
"""Tokens that share a read of the weights, for the estimate of a wait (guessed: a middling batch)."""


class Dispatcher:
    """Chooses at a request's entry, by what is known there of the groups' load. pool: of rented nodes; None: all are, for ever."""

    def __init__(self, plant: Plant, settings: Settings, groups: Sequence[Group], views: Views, pool: Pool | None) -> None:
        self.plant, self.settings, self.groups, self.views, self.pool = plant, settings, groups, views, pool

    def closed(self, group: Group) -> bool:
        """It takes no newcomers while another group does: its home is drained."""
        return self.pool is not None and self.pool.state[group.home] == "draining"

    def holds(self, home: int, job: Job) -> bool:
        """Whether a home's whole KV cache is enough for it."""
        return job.kv_tokens <= self.plant.kv_tokens(home)

    def takes(self, group: Group, job: Job) -> bool:
        """Whether the group can serve it where it lives now."""
        return group.up and self.holds(group.home, job)

    def choose(self, now: Time, job: Job) -> Group | None:
        """Among groups that are up and whose home can hold it; None: there is none, and it waits."""
        able = [g for g in self.groups if self.takes(g, job)]
        up = [g for g in able if not self.closed(g)] or able
        if len(up) < 2:
            return up[0] if up else None
        rtt = {g.name: self.plant.network.rtt_s(job.origin, self.plant.nodes[g.home]) for g in up}
        closest = min(up, key=lambda g: (rtt[g.name], g.name))
        if self.settings.design != "edge" and self.settings.routing == "nearest":
            return self._nearest(now, [g for g in up if rtt[g.name] == rtt[closest.name]], job)
        wait = {g.name: self._wait_s(now, job.origin, g) for g in up}
        if self.settings.design == "edge":
            return _redirected(up, rtt, wait, closest)
        if self.settings.routing == "least-loaded":
            return min(up, key=lambda g: (wait[g.name], g.name))
        if self.settings.routing == "power-of-two":
            return self._two_choices(up, wait, job)
        speeds = np.cumsum([self._speed(g) for g in up])
        return up[int(np.searchsorted(speeds, uniform(self.settings.seed, job.number, job.moves) * speeds[-1]))]

    def _nearest(self, now: Time, close: Sequence[Group], job: Job) -> Group:
        """Of those that are equally near the less loaded of two."""
        if len(close) == 1:
            return close[0]
        return self._two_choices(close, {g.name: self._wait_s(now, job.origin, g) for g in close}, job)

    def _two_choices(self, up: Sequence[Group], wait: Mapping[str, float], job: Job) -> Group:
        """The less loaded of two different ones drawn by lot (Mitzenmacher 2001)."""
        i = below(len(up), self.settings.seed, job.number, job.moves, 1)
        j = (i + 1 + below(len(up) - 1, self.settings.seed, job.number, job.moves, 2)) % len(up)
        return min((up[i], up[j]), key=lambda g: (wait[g.name], g.name))

    def _speed(self, group: Group) -> float:
        """Bytes a second of the GPUs that the group may use: what decoding is bound by."""
        return float(self.plant.bytes_per_s[np.isin(self.plant.node_of, sorted(group.nodes_used()))].sum())

    def _wait_s(self, now: Time, at: str, group: Group) -> float:
        """Backlog as it is known at a node, at the group's rate of decoding alone: weights read once a token."""
        m = self.plant.model
        active = m.dense_bytes + m.moe_layers * m.top_k * m.expert_bytes
        return self.views.backlog(now, at, group) * active / self._speed(group) / SHARED


def _redirected(up: Sequence[Group], rtt: Mapping[str, float], wait: Mapping[str, float], closest: Group) -> Group:
    """Another group than the closest if what is gained is more than the longer way."""
    best = min(up, key=lambda g: (wait[g.name] + rtt[g.name], g.name))
    gain = wait[closest.name] + rtt[closest.name] - wait[best.name] - rtt[best.name]
    return best if gain > rtt[best.name] - rtt[closest.name] else closest
