"""The swarm's scheduler: requests come in, groups serve them, nodes are missed and come back, placements follow the load.

Its policies know of the nodes only what gossip says, as old as rounds, links and losses make it. A node of which nothing new was
heard for `suspect_s` is taken for dead at both ends (its lease is over): what ran there is cancelled and served elsewhere.
`Changed` events only stop and start the nodes' own members of gossip and control plane. Placements change once the control plane
has decided them. Answers are taken once by the request's number.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from sim.errors import UserError
from sim.events import Arrived, Changed, Event, Failed, Finished, Result, Started
from sim.placement import Policy
from sim.swarm.changes import Changes
from sim.swarm.choice import load as load_choice
from sim.swarm.control import ControlPlane
from sim.swarm.desk import Desk
from sim.swarm.dispatch import Dispatcher
from sim.swarm.faults import Faults
from sim.swarm.fleet.fleet import Fleet
from sim.swarm.fleet.pool import Pool
from sim.swarm.fleet.sizes import Sizes, rented
from sim.swarm.group import Group
from sim.swarm.history import History
from sim.swarm.jobs import Tally
from sim.swarm.meter import Meter
from sim.swarm.placing import Placer, Scope, scopes
from sim.swarm.plant import Plant
from sim.swarm.requests import Requests, Running
from sim.swarm.routes import Routes
from sim.swarm.settings import Outcome, Settings
from sim.swarm.shelves import Shelves
from sim.swarm.steps import StepTasks
from sim.swarm.views import Views
from sim.tasks import PS_PER_S, Cancel, Command, Time


class Server:
    """See the module. `policy` places experts; `origins`: where requests come in, by number."""

    def __init__(self, plant: Plant, routes: Routes, policy: Policy, settings: Settings, origins: Callable[[int], str]) -> None:
        self.plant, self.settings = plant, settings
        self.tally = Tally(meter=Meter(plant.node_of))
        self.history = History()
        self.outcome = Outcome()
        self.desk = Desk(plant, self.tally)
        self.placer = Placer(plant, routes, policy, settings)
        reach = scopes(plant, settings.design)
        leased = self._rent(reach)
        self.groups: list[Group] = []
        self.views = Views(plant, settings, self.tally, self.desk.numbers, self.groups, self.placer.dead)
        self.groups += self._form(routes, reach)
        pool = leased[0] if leased else None
        kept = pool.kept if pool else None
        self.control = ControlPlane(plant, self.desk.numbers, self.tally, settings.tolerate, settings.silent, settings.seed, kept)
        self.shelves = Shelves(plant, settings.seed)
        for group in self.groups:
            if group.up:
                self.shelves.holds(group.held, group.home)
        self.running = Running()
        dispatcher = Dispatcher(plant, settings, self.groups, self.views, pool)
        self.requests = Requests(plant, self.desk, dispatcher, self.running, self.outcome, origins, self.placer.dead)
        self.changes = Changes(self.placer, self.desk, self.requests, self.running, self.control, self.shelves, self.outcome, reach)
        self.faults = Faults(
            settings, self.groups, self.placer, self.desk, self.views, self.requests, self.running, self.changes, self.outcome
        )
        self.fleet = None
        if settings.autoscale is not None and leased is not None:
            self.fleet = Fleet(settings.autoscale, settings.arbitrage, *leased, self.faults)
        self.ended_at: Time | None = None

    def _rent(self, reach: Mapping[str, Scope]) -> tuple[Pool, Sizes] | None:
        """Nodes that are rented when the study begins; None: all, for ever."""
        policy, movable = self.settings.autoscale, self.settings.arbitrage is not None
        return rented(self.placer, reach, policy.limits, movable) if policy is not None else None

    def _form(self, routes: Routes, reach: Mapping[str, Scope]) -> list[Group]:
        """Groups with their first placements, which are loaded before the study begins; down where not enough of their nodes are
        rented yet."""
        tasks = StepTasks(self.plant, self.tally, self.desk.numbers, self.settings.loss, self.settings.seed)
        choose, loads = load_choice(self.settings.routing), self.views.busy
        out = []
        empty = np.zeros((self.plant.model.moe_layers, self.plant.model.experts, len(self.plant.node_of)), np.bool_)
        for name, scope in reach.items():
            home = self.placer.home(scope)
            target = self.placer.target(scope, home, None) if home is not None else None
            if target is None and not (self.placer.absent & scope and self.placer.fits(scope)):
                continue
            held, at = (empty, min(scope)) if home is None or target is None else (target, home)
            out.append(Group(name, self.plant, routes, at, held, choose, tasks, loads, self.placer.void, self.settings.seed))
            out[-1].up = target is not None
        if not any(group.up for group in out):
            where = {"spread": "the cluster", "nodes": "any node"}.get(self.settings.design, "any region")
            found = f"{self.plant.model.name} does not fit into {where} of {self.plant.cluster.name}"
            raise UserError(f"--model: {found}; a smaller one is needed")
        return out

    # Events -------------------------------------------------------------------------------------

    def on(self, now: Time, event: Event) -> Sequence[Command]:
        if isinstance(event, Started):
            return self._begin(now)
        if self.ended_at is not None:
            return []
        if isinstance(event, Changed):
            return self._changed(now, event)
        if isinstance(event, Arrived):
            return self.requests.arrive(now, event)
        assert isinstance(event, Finished | Failed), event
        commands = list(self._finished(now, event) if isinstance(event, Finished) else self._failed(now, event))
        self._check_memory()
        if self._finished_all(now):
            return [*commands, *self._end(now)]
        return commands

    def _begin(self, now: Time) -> list[Command]:
        for node in self.placer.absent:
            self.views.leave(node)
        commands = [*self.views.mail.start(now), self.desk.timer(self.settings.gossip_s, self._watch)]
        if self.fleet is not None:
            commands.append(self.fleet.begin())
        if self.settings.rebalance_s:
            commands.append(self.desk.timer(self.settings.rebalance_s, self._rebalance))
        return commands

    def _watch(self, now: Time, _: Result) -> Sequence[Command]:
        self.history.sample(now, self.tally, frozenset(self.placer.dead), self.groups)
        return [*self.faults.watch(now), self.desk.timer(self.settings.gossip_s, self._watch)]

    def _changed(self, now: Time, event: Changed) -> list[Command]:
        """A node's machine stopped or came back: its own members stop and start with it, and what ran there is void. Policies are told
        nothing."""
        kind, _, node = event.resource.partition(".")
        if kind != "node":
            return []
        number = self.plant.nodes.index(node)
        up = event.capacity > 0 and (self.fleet is None or self.fleet.runs(number))
        void = self.faults.restarted(number) if up and node in self.views.mail.down else []
        return [*void, *self.views.mail.changed(now, node, up), *self.control.changed(now, node, event.capacity > 0)]

    def _rebalance(self, now: Time, _: Result) -> Sequence[Command]:
        return [*self.changes.rebalance(now, self.groups), self.desk.timer(self.settings.rebalance_s, self._rebalance)]

    def _finished(self, now: Time, event: Finished) -> Sequence[Command]:
        if event.task in self.running:
            return self.requests.step_ended(now, event)
        if event.task in self.changes:
            return self.changes.loaded(now, event)
        told = self._mail(now, event)
        if told is not None:
            return told
        if event.task in self.desk:
            return self.desk.finished(now, event)
        return self._failed(now, Failed(event.task, "given up in the instant in which it ended", 1.0))

    def _mail(self, now: Time, event: Finished | Failed) -> Sequence[Command] | None:
        """Gossip and agreement; None: it is neither."""
        told = self.views.mail.on(now, event)
        return self.control.on(now, event, self.changes.decided) if told is None else told

    def _failed(self, now: Time, event: Failed) -> Sequence[Command]:
        """Only what this scheduler cancelled fails. A stretch cut for newcomers goes on."""
        told = self._mail(now, event)
        if told is not None:
            return told
        self.desk.forget(event.task)
        self.tally.meter.failed(event.task, event.fraction_done)
        again = self.changes.failed(now, event.task, event.fraction_done)
        group = self.running.pop(event.task)
        if group is None or group.running is None or group.running.last != event.task:
            return again
        return self.requests.step_cut(now, group, event.fraction_done)

    # Budgets and the end ------------------------------------------------------------------------

    def _check_memory(self) -> None:
        """No home holds more KV entries than it has room for, and no GPU more than it can, loading included."""
        for group in self.groups:
            kept, room = group.kv_used, self.plant.kv_tokens(group.home)
            assert kept <= room, f"{group.name}: KV entries of {kept:,} tokens, of {room:,} on {self.plant.nodes[group.home]}"
        if not self.changes.migrations and self.outcome.peak_share:
            return
        used = np.zeros(len(self.plant.node_of))
        for group in self.groups:
            migration = self.changes.migrations.get(group.name)
            copies = (migration.used() if migration else group.held).sum(axis=(0, 1))
            used += copies * self.plant.model.expert_bytes + self.plant.home_bytes(group.home)
        share = float((used / self.plant.usable_bytes).max())
        assert share <= 1.0, f"GPU {int((used / self.plant.usable_bytes).argmax())}: {share:.3f} of its memory"
        self.outcome.peak_share = max(self.outcome.peak_share, share)

    def _finished_all(self, now: Time) -> bool:
        end, requests = self.settings.duration_s, self.requests
        if end is not None and now >= end * PS_PER_S:
            return True
        return requests.closed and (requests.open == 0 or now - requests.quiet_since > self.settings.patience_s * PS_PER_S)

    def _end(self, now: Time) -> list[Command]:
        """Cancel all that is open: timers, reports, what waits for a node that never came back."""
        self.ended_at = now
        self.tally.meter.close(now)
        running = [n for g in self.groups if g.running is not None for n in g.running.numbers]
        mail = self.views.mail.open | self.control.mail.open
        return [Cancel(n, "the study is over") for n in sorted({*self.desk.open, *self.changes.loads, *mail, *running})]
