"""Nodes that fall silent and come back: who is given up, what of theirs is void, and what they are given when they return."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from sim.events import Result
from sim.swarm.changes import Changes
from sim.swarm.desk import Desk, Then
from sim.swarm.dispatch import Dispatcher
from sim.swarm.group import Group
from sim.swarm.placing import Placer
from sim.swarm.requests import Requests, Running
from sim.swarm.settings import Outcome, Settings
from sim.tasks import PS_PER_S, Command, Time

REPORT_BYTES = 256


class Faults:
    """Hears reports, gives up nodes that do not report, and takes them back."""

    def __init__(
        self, settings: Settings, groups: Sequence[Group], placer: Placer, desk: Desk, dispatcher: Dispatcher, requests: Requests,
        running: Running, changes: Changes, outcome: Outcome,
    ) -> None:  # fmt: skip
        self.settings, self.groups, self.placer, self.desk, self.dispatcher = settings, groups, placer, desk, dispatcher
        self.requests, self.running, self.changes, self.outcome = requests, running, changes, outcome
        self.plant = placer.plant
        self._heard = [0] * len(self.plant.nodes)
        self._boots = [0] * len(self.plant.nodes)
        self._kept: dict[int, list[tuple[Group, NDArray[np.bool_]]]] = {}
        self._busy = np.zeros(len(self.plant.nodes))
        self._empty: set[int] = set()
        """Nodes that have come back with void memory, until a placement uses them."""

    # Reports ------------------------------------------------------------------------------------

    def reporter(self, node: int) -> Then:
        """Node `node` reports; the next report is due a period after this one has come."""
        name = self.plant.nodes[node]

        def report(now: Time, _: Result) -> Sequence[Command]:
            state = {g.name: float(g.backlog_tokens) for g in self.groups if g.home == node}
            busy = float(self.desk.tally.busy_s[node])

            def heard(at: Time, result: Result) -> Sequence[Command]:
                later = round(self.settings.report_age_s * PS_PER_S)
                again = self.desk.timer(self.settings.report_s, report)
                if later:
                    return [again, self.desk.timer(self.settings.report_age_s, lambda t, _: self._hear(t, node, now, busy, state, result))]
                return [again, *self._hear(at, node, now, busy, state, result)]

            return [self.desk.send(name, self.plant.cluster.coordinator, REPORT_BYTES, "report", heard)]

        return report

    def _hear(self, now: Time, node: int, sent: Time, busy: float, state: dict[str, float], result: Result) -> Sequence[Command]:
        period = max((sent - self._heard[node]) / PS_PER_S, 1e-9)
        share = max(0.0, busy - self._busy[node]) / period
        self._heard[node], self._busy[node] = sent, busy
        self.dispatcher.reported |= state
        for group in self.groups:
            group.busy[self.plant.node_of == node] = share
        boot = int(result.facts.get("boot", 0))
        fresh = now - sent < self.settings.suspect_s * PS_PER_S + self.settings.report_age_s * PS_PER_S
        leaving = bool(result.facts.get("leaving")) and node not in self.placer.leaving
        commands: list[Command] = self._leave(now, node) if leaving else []
        if boot != self._boots[node]:
            self._boots[node] = boot
            self.placer.leaving.discard(node)
            if node not in self.placer.dead:  # it was away for less than it takes to be missed
                commands += self._suspect(now, node)
            self._kept.pop(node, None)
            self._empty.add(node)
        if node in self.placer.dead and fresh:
            commands += self._welcome(now, node)
        return commands

    def watch(self, now: Time, _: Result) -> Sequence[Command]:
        """Give up nodes that have been silent for too long."""
        limit = (self.settings.suspect_s + self.settings.report_age_s) * PS_PER_S
        commands: list[Command] = []
        for node, heard in enumerate(self._heard):
            if node not in self.placer.dead and now - heard > limit:
                commands += self._suspect(now, node)
        return [*commands, self.desk.timer(self.settings.report_s, self.watch)]

    # Away and back ------------------------------------------------------------------------------

    def _suspect(self, now: Time, node: int) -> list[Command]:
        """The node is taken for dead: its copies are void, what needs it stops, its groups get another placement."""
        self.placer.dead.add(node)
        self.outcome.suspected += 1
        commands: list[Command] = []
        mine = self.plant.node_of == node
        for group in self.groups:
            coming = self.changes.migrations.get(group.name)
            if node not in group.nodes_used() and not (coming is not None and coming.target[:, :, mine].any()):
                continue
            self._kept.setdefault(node, []).append((group, group.held[:, :, mine].copy()))
            commands += self.changes.stop(group)
            held = group.held.copy()
            held[:, :, mine] = False
            home_lost = group.home == node
            if home_lost:
                group.forget()
            group.move(group.home, held)
            commands += self.changes.replace(now, group, lost_home=home_lost)
        return [*commands, *self.requests.rescue(now, node)]

    def _leave(self, now: Time, node: int) -> list[Command]:
        """A node has been told that it will be taken away: its experts are copied elsewhere while it serves on."""
        self.placer.leaving.add(node)
        return [c for group in self.groups if node in group.nodes_used() for c in self.changes.leave(now, group)]

    def _welcome(self, now: Time, node: int) -> list[Command]:
        """A node is heard of again: what it holds still counts if it was only out of reach. Its groups settle a report later, when
        its neighbours may be back as well."""
        self.placer.dead.discard(node)
        self.outcome.rejoined += 1
        kept = {group.name: copies for group, copies in self._kept.pop(node, [])}
        commands: list[Command] = []
        mine = self.plant.node_of == node
        for group in self.groups:
            scope = self.changes.scopes[group.name]
            if scope not in (-1, int(self.plant.region_of[node])):
                continue
            if group.name in kept and group.name not in self.changes.migrations:
                held = group.held.copy()
                held[:, :, mine] = kept[group.name]
                group.move(group.home, self.placer.trimmed(group.home, held, held))
            commands.append(self.desk.timer(self.settings.report_s, self._settler(group)))
        return commands

    def _settler(self, group: Group) -> Then:
        """Once a node is back: a group whose copies are all there goes on; one that lacks some, or may use an empty node, gets
        another placement."""

        def settle(now: Time, _: Result) -> Sequence[Command]:
            scope = self.changes.scopes[group.name]
            back = {n for n in self._empty if scope in (-1, int(self.plant.region_of[n]))} - self.placer.dead
            if group.home not in self.placer.dead and group.ready and not back - {group.home} and group.home not in back:
                group.up = group.name not in self.changes.migrations or group.up
                return [*self.running.started(group, group.start(now)), *self.requests.unpark(now)]
            self._empty -= back
            return [*self.changes.stop(group), *self.changes.replace(now, group, lost_home=group.home in back or not group.up)]

        return settle
