"""Placement changes: proposed to the control plane when load or nodes have changed, and carried out once they are decided."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from sim.events import Finished
from sim.swarm.control import Change, ControlPlane
from sim.swarm.desk import Desk
from sim.swarm.group import Group
from sim.swarm.jobs import Job
from sim.swarm.migration import Migration
from sim.swarm.placing import Placer, Scope
from sim.swarm.requests import Requests, Running
from sim.swarm.settings import Outcome
from sim.swarm.shelves import Shelves
from sim.tasks import PS_PER_S, Command, Task, Time


class Changes:
    """scopes: of each group by name, see `Placer`. wanted: the change of each group that is proposed and not decided."""

    def __init__(
        self, placer: Placer, desk: Desk, requests: Requests, running: Running, control: ControlPlane, shelves: Shelves, outcome: Outcome,
        scopes: Mapping[str, Scope],
    ) -> None:  # fmt: skip
        self.placer, self.desk, self.requests, self.running, self.outcome = placer, desk, requests, running, outcome
        self.control, self.shelves, self.scopes = control, shelves, scopes
        self.migrations: dict[str, Migration] = {}
        self.wanted: dict[str, Change] = {}
        self._loads: dict[int, tuple[Group, Migration]] = {}
        self._proposals = 0

    @property
    def loads(self) -> set[int]:
        """Transfers under way."""
        return set(self._loads)

    def __contains__(self, task: int) -> bool:
        return task in self._loads

    # Proposals ----------------------------------------------------------------------------------

    def replace(self, now: Time, group: Group, lost_home: bool) -> list[Command]:
        """Ask for another placement on what is alive, and another home where the old one is lost; without room the group goes down
        and its jobs elsewhere."""
        found = self._settled(group, lost_home or group.home in self.placer.dead)
        group.up = group.up and not lost_home
        if found is None:
            group.up = False
            self.withdraw(group)
            return self._hand_over(now, group.hand_over())
        others = any(g.up for g in self.requests.dispatcher.groups)
        commands = self._hand_over(now, group.hand_over()) if not group.up and others else []
        return [*commands, *self._propose(now, group, *found, lost_home)]

    def _settled(self, group: Group, elsewhere: bool) -> tuple[int, NDArray[np.bool_]] | None:
        """A home and a placement for a group; elsewhere: a home for what waits, if the experts fit beside it, else the nearest."""
        scope = self.scopes[group.name]
        wanted = self.requests.lengths() | self.requests.lengths_at(group)
        homes = [self.placer.home(scope, wanted), self.placer.home(scope)] if elsewhere else [group.home]
        for home in dict.fromkeys(h for h in homes if h is not None):
            target = self.placer.target(scope, home, group)
            if target is not None:
                return home, target
        return None

    def make_room(self, now: Time) -> list[Command]:
        """Where requests wait because no home can hold them, a group that may use one that can asks to live there."""
        groups, room = self.requests.dispatcher.groups, self.placer.plant.kv_tokens
        busy = {*self.migrations, *self.wanted}
        homes = [g.home for g in groups if g.up or g.name in self.migrations] + [c.home for c in self.wanted.values()]
        most = max(map(room, homes), default=0)
        wanted = {w for w in self.requests.lengths() if w > most}
        for group in groups if wanted else ():
            if not group.up or group.name in busy or self.requests.dispatcher.closed(group):
                continue
            found = self._settled(group, True)
            if found is not None and room(found[0]) >= min(wanted):
                return self._propose(now, group, *found, True)
        return []

    def _hand_over(self, now: Time, jobs: Sequence[Job]) -> list[Command]:
        return [c for job in jobs for c in self.requests.redirect(now, job)]

    def leave(self, now: Time, group: Group) -> list[Command]:
        """A node that will be taken away is emptied while it serves on; the same for one that may be used again."""
        target = self.placer.target(self.scopes[group.name], group.home, group) if group.up else None
        if target is None or group.name in self.migrations or (target == group.held).all():
            return []
        return self._propose(now, group, group.home, target, False)

    def rebalance(self, now: Time, groups: Sequence[Group]) -> list[Command]:
        """An epoch is over: groups whose load would be balanced better by another placement ask for it."""
        commands: list[Command] = []
        for group in groups:
            if not group.up or group.name in self.migrations or group.name in self.wanted or not group.observed.any():
                continue
            scope = self.scopes[group.name]
            target = self.placer.target(scope, group.home, group)
            if target is not None and self._gain(scope, group, target) > self.placer.settings.hysteresis:
                self.outcome.rebalances += 1
                commands += self._propose(now, group, group.home, target, False)
            group.observed *= 0.5
        return commands

    def _gain(self, scope: Scope, group: Group, target: NDArray[np.bool_]) -> float:
        return self.placer.balance(scope, group, target) - self.placer.balance(scope, group, group.held)

    def _propose(self, now: Time, group: Group, home: int, target: NDArray[np.bool_], fresh: bool) -> list[Command]:
        self._proposals += 1
        change = Change(f"{group.name} {self._proposals}", group.name, home, target, fresh)
        self.wanted[group.name] = change
        return [*self.control.propose(now, change), *self.control.decided(now, self.decided)]

    def withdraw(self, group: Group) -> None:
        """What is proposed for a group is wanted no more; it may be decided, but nothing follows."""
        self.wanted.pop(group.name, None)

    # Carrying out -------------------------------------------------------------------------------

    def decided(self, now: Time, change: Change) -> Sequence[Command]:
        if self.wanted.get(change.group) is not change:
            self.outcome.superseded += 1
            return []
        del self.wanted[change.group]
        group = next(g for g in self.requests.dispatcher.groups if g.name == change.group)
        elsewhere = change.home != group.home
        commands = self.stop(group) if elsewhere else []
        group.move(change.home, self.placer.trimmed(change.home, group.held, change.target))
        if elsewhere:
            commands += self._hand_over(now, group.hand_over(lambda job: self.requests.dispatcher.holds(change.home, job)))
        return [*commands, *self._migrate(now, group, change)]

    def _migrate(self, now: Time, group: Group, change: Change) -> list[Command]:
        """Begin to load what the target wants. A group that was down stays so until its dense weights are there."""
        plant = self.placer.plant
        alive = frozenset(range(len(plant.nodes))) - self.placer.dead
        fresh = change.home if change.fresh_home else None
        migration = Migration(plant, self.shelves, group.held.copy(), change.target, self.desk.numbers, self.desk.tally, alive, fresh)
        self.migrations[group.name] = migration
        return self._after_load(now, group, migration, migration.start())

    def loaded(self, now: Time, event: Finished) -> list[Command]:
        """A transfer is there; where it is `lost`, all but its last chunk."""
        group, migration = self._loads.pop(event.task)
        return self._after_load(now, group, migration, migration.ended(event.task, 0.999 if event.result.facts.get("lost") else 1.0))

    def lose(self, group: Group, node: int) -> list[Command]:
        """A node is given up that the group does not use, but that its migration may fetch from."""
        migration = self.migrations.get(group.name)
        return migration.without(self.placer.plant.nodes[node]) if migration is not None else []

    def _after_load(self, now: Time, group: Group, migration: Migration, commands: list[Command]) -> list[Command]:
        for task in commands:
            assert isinstance(task, Task)
            self._loads[task.number] = (group, migration)
        group.up = not migration.loading_dense
        if (group.held != migration.held).any():
            group.move(group.home, migration.held.copy())
        if migration.done:
            self.migrations.pop(group.name, None)
            self.outcome.moves.append((now / PS_PER_S, group.name, migration.moved))
        return [*commands, *self.running.started(group, group.start(now)), *self.requests.unpark(now)]

    def stop(self, group: Group) -> list[Command]:
        """What a group does now is given up: its step, and its migration."""
        commands = self.running.stop(group)
        migration = self.migrations.pop(group.name, None)
        if migration is not None:
            for number in migration.open:
                self._loads.pop(number, None)
            commands += migration.cancel()
        return commands

    def failed(self, now: Time, task: int, fraction: float) -> list[Command]:
        """A transfer was cancelled; what came of it stays. A migration that goes on fetches the rest elsewhere."""
        if task not in self._loads:
            self.shelves.ended(task, fraction)
            return []
        group, migration = self._loads.pop(task)
        return self._after_load(now, group, migration, migration.ended(task, fraction))
