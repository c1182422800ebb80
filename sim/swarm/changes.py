"""Placement changes: a group moves to another placement layer by layer, or to another home, when load or nodes have changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from sim.events import Finished
from sim.swarm.desk import Desk
from sim.swarm.group import Group
from sim.swarm.migration import Migration
from sim.swarm.placing import Placer
from sim.swarm.requests import Requests, Running
from sim.swarm.settings import Outcome
from sim.tasks import PS_PER_S, Command, Task, Time


class Changes:
    """scopes: of each group by name, see `Placer`."""

    def __init__(
        self, placer: Placer, desk: Desk, requests: Requests, running: Running, outcome: Outcome, scopes: Mapping[str, int]
    ) -> None:
        self.placer, self.desk, self.requests, self.running, self.outcome = placer, desk, requests, running, outcome
        self.scopes = scopes
        self.migrations: dict[str, Migration] = {}
        self._loads: dict[int, tuple[Group, Migration]] = {}

    @property
    def loads(self) -> set[int]:
        """Transfers under way."""
        return set(self._loads)

    def __contains__(self, task: int) -> bool:
        return task in self._loads

    def replace(self, now: Time, group: Group, lost_home: bool) -> list[Command]:
        """Another placement on what is alive, and another home where the old one is lost; without room the group goes down
        and its jobs elsewhere."""
        scope = self.scopes[group.name]
        home = self.placer.home(scope) if lost_home or group.home in self.placer.dead else group.home
        target = self.placer.target(scope, home, group) if home is not None else None
        if home is None or target is None:
            group.up = False
            jobs = group.hand_over()
            return [c for job in jobs for c in self.requests.redirect(now, job)]
        fresh = home if lost_home else None
        group.move(home, self.placer.trimmed(home, group.held, target))
        return self._migrate(now, group, target, fresh)

    def leave(self, now: Time, group: Group) -> list[Command]:
        """A node that will be taken away is emptied while it serves on."""
        target = self.placer.target(self.scopes[group.name], group.home, group) if group.up else None
        if target is None or group.name in self.migrations:
            return []
        return self._migrate(now, group, target, None)

    def rebalance(self, now: Time, groups: Sequence[Group]) -> list[Command]:
        """An epoch is over: groups whose load would be balanced better by another placement move to it."""
        commands: list[Command] = []
        for group in groups:
            if not group.up or group.name in self.migrations or not group.observed.any():
                continue
            scope = self.scopes[group.name]
            target = self.placer.target(scope, group.home, group)
            if target is not None and self._gain(scope, group, target) > self.placer.settings.hysteresis:
                self.outcome.rebalances += 1
                commands += self._migrate(now, group, target, None)
            group.observed *= 0.5
        return commands

    def _gain(self, scope: int, group: Group, target: NDArray[np.bool_]) -> float:
        return self.placer.balance(scope, group, target) - self.placer.balance(scope, group, group.held)

    def _migrate(self, now: Time, group: Group, target: NDArray[np.bool_], fresh_home: int | None) -> list[Command]:
        """Begin to load what the target wants. A group that was down stays so until its dense weights are there."""
        plant = self.placer.plant
        alive = frozenset(range(len(plant.nodes))) - self.placer.dead
        migration = Migration(
            plant, group.held.copy(), target, self.desk.numbers, self.desk.tally, alive, plant.cluster.coordinator, dense_to=fresh_home
        )
        self.migrations[group.name] = migration
        if fresh_home is not None:
            group.up = False
        return self._after_load(now, group, migration, migration.start())

    def loaded(self, now: Time, event: Finished) -> list[Command]:
        group, migration = self._loads.pop(event.task)
        return self._after_load(now, group, migration, migration.ended(event.task))

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

    def failed(self, task: int) -> None:
        self._loads.pop(task, None)
