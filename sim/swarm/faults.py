"""Nodes that fall silent and come back: who is given up, what of theirs is void, and what they are given when they return."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from sim.events import Result
from sim.swarm.changes import Changes
from sim.swarm.desk import Desk, Then
from sim.swarm.gossip import Entry
from sim.swarm.group import Group
from sim.swarm.placing import Placer
from sim.swarm.requests import Requests, Running
from sim.swarm.settings import Outcome, Settings
from sim.swarm.views import Views
from sim.tasks import PS_PER_S, Command, Time

EXPIRE_S = 5.0
"""Messages of gossip and control plane that are under way for so long are given up."""


class Faults:
    """At the coordinator: looks at what gossip tells of the nodes, gives up those that are silent, and takes them back."""

    def __init__(
        self, settings: Settings, groups: Sequence[Group], placer: Placer, desk: Desk, views: Views, requests: Requests, running: Running,
        changes: Changes, outcome: Outcome,
    ) -> None:  # fmt: skip
        self.settings, self.groups, self.placer, self.desk, self.views = settings, groups, placer, desk, views
        self.requests, self.running, self.changes, self.outcome = requests, running, changes, outcome
        self.plant = placer.plant
        self._heard: list[Time] = [0] * len(self.plant.nodes)
        self._since: list[Time] = [0] * len(self.plant.nodes)
        self._versions = [0] * len(self.plant.nodes)
        self._boots = [0] * len(self.plant.nodes)
        self._kept: dict[int, list[tuple[Group, NDArray[np.bool_]]]] = {}
        self._empty: set[int] = set()
        """Nodes that have come back with void memory, until a placement uses them."""
        self._missed: set[int] = set()

    # What gossip tells --------------------------------------------------------------------------

    def watch(self, now: Time) -> list[Command]:
        """Take in what is new, and give up nodes of which nothing was new for too long."""
        commands: list[Command] = []
        for node in range(len(self.plant.nodes)):
            entry = None if node in self.placer.absent else self.views.entry(self.views.here, node)
            if entry is not None and entry.version > self._versions[node] and entry.stamp >= self._since[node]:
                self._versions[node] = entry.version
                commands += self._hear(now, node, entry)
        for node, heard in enumerate(self._heard):
            if node not in self.placer.dead and not self._recent(now, heard):
                commands += self._suspect(now, node)
        expired = [c for mail in (self.views.mail, self.changes.control.mail) for c in mail.expire(now, round(EXPIRE_S * PS_PER_S))]
        return [*commands, *expired, *self.changes.make_room(now)]

    def _recent(self, now: Time, stamp: Time) -> bool:
        return now - stamp <= self.settings.suspect_s * PS_PER_S

    def _hear(self, now: Time, node: int, entry: Entry) -> list[Command]:
        self._heard[node] = entry.stamp
        state = entry.value
        commands: list[Command] = []
        if state.leaving and node not in self.placer.leaving:
            commands += self._leave(now, node)
        if state.boot != self._boots[node]:
            self._boots[node] = state.boot
            self.placer.leaving.discard(node)
            self.placer.void.discard(node)
            if node not in self.placer.dead:  # it was away for less than it takes to be missed
                commands += self._suspect(now, node)
            self._kept.pop(node, None)
            self._empty.add(node)
            self.changes.shelves.replaced(node, state.disk, state.boot)
        if node in self.placer.dead and self._recent(now, entry.stamp):
            commands += self._welcome(now, node)
        return commands

    # Away and back ------------------------------------------------------------------------------

    def _suspect(self, now: Time, node: int) -> list[Command]:
        """The node is taken for dead: its copies are void, what needs it stops, its groups ask for another placement, and others
        fetch from it no more."""
        self.placer.dead.add(node)
        self._missed.add(node)
        self.outcome.suspected += 1
        commands: list[Command] = []
        mine = self.plant.node_of == node
        for group in self.groups:
            if not self.uses(group, node):
                commands += self.changes.lose(group, node)
                continue
            self._kept.setdefault(node, []).append((group, group.held[:, :, mine].copy()))
            commands += self.changes.stop(group)
            held = group.held.copy()
            held[:, :, mine] = False
            home_lost = group.home == node
            if home_lost:
                group.forget()
            group.move(group.home, held)
            commands += self.changes.replace(now, group, lost_home=home_lost or group.home in self.placer.dead)
        return [*commands, *self.requests.rescue(now, node)]

    def comes(self, now: Time, node: int) -> None:
        """A node is another machine from now on: what was said before is not of it."""
        self._since[node] = now

    def given_back(self, node: int) -> None:
        """A node is rented no more: nothing of it is known when it comes again."""
        self._kept.pop(node, None)
        self._empty.discard(node)
        self._missed.discard(node)
        self.placer.void.discard(node)

    def restarted(self, node: int) -> list[Command]:
        """A node's machine is up again and has lost its memory: steps that need it are void, and none begins until that is known here."""
        self.placer.void.add(node)
        return [c for group in self.groups if node in group.nodes_used() for c in self.running.stop(group)]

    def uses(self, group: Group, node: int) -> bool:
        """Whether a group uses the node, or will by a placement that is loaded or proposed for it."""
        if node in group.nodes_used():
            return True
        coming = self.changes.migrations.get(group.name), self.changes.wanted.get(group.name)
        mine = self.plant.node_of == node
        wanted = self.changes.wanted.get(group.name)
        return any(c is not None and bool(c.target[:, :, mine].any()) for c in coming) or (wanted is not None and wanted.home == node)

    def _leave(self, now: Time, node: int) -> list[Command]:
        """A node has been told that it will be taken away: its experts are copied elsewhere while it serves on."""
        self.placer.leaving.add(node)
        return [c for group in self.groups if node in group.nodes_used() for c in self.changes.leave(now, group)]

    def _welcome(self, now: Time, node: int) -> list[Command]:
        """A node is heard of again: what it holds still counts if it was only out of reach. Its groups settle a period later, when
        its neighbours may be back as well."""
        self.placer.dead.discard(node)
        if node in self._missed:
            self._missed.discard(node)
            self.outcome.rejoined += 1
        kept = {group.name: copies for group, copies in self._kept.pop(node, [])}
        commands: list[Command] = []
        mine = self.plant.node_of == node
        for group in self.groups:
            if node not in self.changes.scopes[group.name]:
                continue
            if group.name in kept and group.name not in self.changes.migrations:
                held = group.held.copy()
                held[:, :, mine] = kept[group.name]
                group.move(group.home, self.placer.trimmed(group.home, held, held))
            commands.append(self.desk.timer(self.settings.gossip_s, self._settler(group)))
        return commands

    def _settler(self, group: Group) -> Then:
        """Once a node is back: a group whose copies are all there goes on; one that lacks some, or may use an empty node, asks for
        another placement."""

        def settle(now: Time, _: Result) -> Sequence[Command]:
            back = (self._empty & self.changes.scopes[group.name]) - self.placer.dead
            if group.home not in self.placer.dead and group.ready and not back - {group.home} and group.home not in back:
                if group.name not in self.changes.migrations:
                    self.changes.withdraw(group)
                    group.up = True
                return [*self.running.started(group, group.start(now)), *self.requests.unpark(now)]
            self._empty -= back
            return [*self.changes.stop(group), *self.changes.replace(now, group, lost_home=group.home in back or not group.up)]

        return settle
