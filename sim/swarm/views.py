"""What each node knows of the others, by gossip: load, backlog, starts; as old as the rounds, the links and their losses make it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.swarm.dice import uniform
from sim.swarm.gossip import Entry, Gossip
from sim.swarm.gossip import Settings as GossipSettings
from sim.swarm.group import Group
from sim.swarm.jobs import Served, Tally
from sim.swarm.mail import Mail
from sim.swarm.plant import Plant
from sim.swarm.settings import Settings
from sim.tasks import PS_PER_S, Command, Time


@dataclass(frozen=True, slots=True)
class GroupState:
    """What is told of a group: backlog: tokens that it has to do; waiting: requests without a step; served: counts so far."""

    backlog: float
    waiting: int
    served: Served


@dataclass(frozen=True, slots=True)
class NodeState:
    """What a node says of itself. busy: share of the time since it last said; groups: those that live on it; entered: requests that
    came in at it so far; boot: starts of the node so far; disk: share of the checkpoint that it found on its disk then; leaving: it
    will be taken away."""

    busy: float
    groups: Mapping[str, GroupState] = field(default_factory=dict)
    entered: int = 0
    boot: int = 0
    disk: float = 0.0
    leaving: bool = False


class Views:
    """One gossip member on every GPU node and on the coordinator. groups: those whose backlog the nodes read when they say it; dead:
    nodes that are taken for dead, whose last words nobody goes by."""

    def __init__(
        self, plant: Plant, settings: Settings, tally: Tally, numbers: Iterator[int], groups: Sequence[Group], dead: Collection[int] = ()
    ) -> None:
        self.plant, self.settings, self.tally, self.groups, self.dead = plant, settings, tally, groups, dead
        self.here = plant.cluster.coordinator
        names = tuple(dict.fromkeys((*plant.nodes, self.here)))
        self.away: set[str] = set()
        how = GossipSettings(settings.fan_out, settings.gossip_s, settings.adaptive)
        self.members = {
            name: Gossip(name, names, how, settings.seed, uniform(settings.seed, i), sense=self._sensor(i, name), away=self.away)
            for i, name in enumerate(names)
        }
        self.mail = Mail(self.members, numbers, lambda a, b, size: tally.carry(plant.network.path(a, b), size, "gossip"))
        self.starts = [0] * len(plant.nodes)
        """How often each was rented anew, another machine each time."""
        self._said = [(0, 0.0)] * len(names)
        self._age_s, self._looks = 0.0, 0

    def join(self, now: Time, node: int) -> Sequence[Command]:
        """A node takes part from now on, as another machine than it was."""
        self.starts[node] += 1
        self.away.discard(self.plant.nodes[node])
        return self.mail.changed(now, self.plant.nodes[node], True)

    def leave(self, node: int) -> None:
        """It neither says nor hears anything any more, and all others are told that it is gone."""
        self.away.add(self.plant.nodes[node])
        self.mail.down.add(self.plant.nodes[node])

    @property
    def mean_age_s(self) -> float | None:
        """Of what was looked at; None: nothing was."""
        return self._age_s / self._looks if self._looks else None

    def _sensor(self, node: int, name: str) -> Callable[[Time], tuple[Any, float] | None]:
        """Reads a node's own state; the coordinator has none where it has no GPUs."""

        def sense(now: Time) -> tuple[Any, float] | None:
            if node >= len(self.plant.nodes):
                return None
            since, busy_s = self._said[node]
            self._said[node] = (now, self.tally.meter.node_s(now, node))
            share = max(0.0, self._said[node][1] - busy_s) * PS_PER_S / max(now - since, 1)
            told = self.mail.told.get(name, {})
            groups = {g.name: GroupState(float(g.backlog_tokens), len(g.waiting), copy(g.served)) for g in self.groups if g.home == node}
            boot, disk = int(told.get("boot", 0)) + self.starts[node], 0.0 if self.starts[node] else float(told.get("disk", 0.0))
            state = NodeState(share, groups, self.tally.entered.get(name, 0), boot, disk, bool(told.get("leaving")))
            return state, 1.0 if state.leaving or share > 0.9 else share

        return sense

    def entry(self, at: str, node: int) -> Entry | None:
        """The newest that is known of a node somewhere; None of one that takes no part."""
        name = self.plant.nodes[node]
        return None if name in self.away else self.members[at].known.get(name)

    def backlog(self, now: Time, at: str, group: Group) -> float:
        """Tokens that a group still has to do, as a node knows it; 0 where it knows nothing of the group's home."""
        if self.settings.fresh_loads:
            return float(group.backlog_tokens)
        entry = self.entry(at if at in self.members else self.here, group.home)
        if entry is None:
            return 0.0
        self._looked(now, entry)
        told: GroupState | None = entry.value.groups.get(group.name)
        return told.backlog if told is not None else 0.0

    def busy(self, now: Time, at: int) -> NDArray[np.float64]:
        """Load of every GPU [gpus] as node `at` knows it."""
        own = [self.entry(self.plant.nodes[at if not self.settings.fresh_loads else n], n) for n in range(len(self.plant.nodes))]
        for n, entry in enumerate(own):
            if entry is not None and n not in self.dead:
                self._looked(now, entry)
        return np.array([e.value.busy if e is not None else 0.0 for e in own])[self.plant.node_of]

    def _looked(self, now: Time, entry: Entry) -> None:
        self._age_s += (now - entry.stamp) / PS_PER_S
        self._looks += 1
