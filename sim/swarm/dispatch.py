"""Which group serves a request: the nearest, the least loaded, two choices, in proportion to speed, or with edge redirection."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sim.swarm.dice import below, uniform
from sim.swarm.group import Group
from sim.swarm.jobs import Job
from sim.swarm.plant import Plant
from sim.swarm.settings import Settings

SHARED = 16.0
"""Tokens that share a read of the weights, for the estimate of a wait (guessed: a middling batch)."""


class Dispatcher:
    """reported: backlog in tokens of each group, as it was last heard of."""

    def __init__(self, plant: Plant, settings: Settings, groups: Sequence[Group]) -> None:
        self.plant, self.settings, self.groups = plant, settings, groups
        self.reported = {g.name: 0.0 for g in groups}

    def choose(self, job: Job) -> Group | None:
        """Among groups that are up; None: there is none."""
        up = [g for g in self.groups if g.up]
        if len(up) < 2:
            return up[0] if up else None
        rtt = {g.name: self.plant.network.rtt_s(job.origin, self.plant.nodes[g.home]) for g in up}
        closest = min(up, key=lambda g: (rtt[g.name], g.name))
        if self.settings.design == "edge":
            return self._redirected(up, rtt, closest)
        if self.settings.routing == "nearest":
            return closest
        if self.settings.routing == "least-loaded":
            return min(up, key=lambda g: (self._wait_s(g), g.name))
        if self.settings.routing == "power-of-two":
            return self._two_choices(up, job)
        speeds = np.cumsum([self._speed(g) for g in up])
        return up[int(np.searchsorted(speeds, uniform(self.settings.seed, job.number, job.moves) * speeds[-1]))]

    def _redirected(self, up: Sequence[Group], rtt: dict[str, float], closest: Group) -> Group:
        """Another group than the closest if what is gained is more than the longer way."""
        best = min(up, key=lambda g: (self._wait_s(g) + rtt[g.name], g.name))
        gain = self._wait_s(closest) + rtt[closest.name] - self._wait_s(best) - rtt[best.name]
        return best if gain > rtt[best.name] - rtt[closest.name] else closest

    def _two_choices(self, up: Sequence[Group], job: Job) -> Group:
        """The less loaded of two different ones drawn by lot (Mitzenmacher 2001)."""
        i = below(len(up), self.settings.seed, job.number, job.moves, 1)
        j = (i + 1 + below(len(up) - 1, self.settings.seed, job.number, job.moves, 2)) % len(up)
        return min((up[i], up[j]), key=lambda g: (self._wait_s(g), g.name))

    def _speed(self, group: Group) -> float:
        """Bytes a second of the GPUs that the group may use: what decoding is bound by."""
        return float(self.plant.bytes_per_s[np.isin(self.plant.node_of, sorted(group.nodes_used()))].sum())

    def _wait_s(self, group: Group) -> float:
        """Reported backlog in tokens, at the group's rate of decoding alone: weights read once a token."""
        m = self.plant.model
        active = m.dense_bytes + m.moe_layers * m.top_k * m.expert_bytes
        return self.reported[group.name] * active / self._speed(group) / SHARED
