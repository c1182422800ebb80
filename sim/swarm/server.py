"""The swarm's scheduler: requests come in, groups serve them, nodes are missed and come back, placements follow the load.

It knows of the nodes only what their reports say, as old as the network makes them: `Changed` events are the world's and not
looked at. A node that has not been heard of for `suspect_s` is taken for dead at both ends (its lease is over): what
ran there is cancelled and served elsewhere. Answers are taken once by the request's number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import count

import numpy as np
from numpy.typing import NDArray

from sim.errors import UserError
from sim.events import Arrived, Changed, Event, Failed, Finished, Result, Started
from sim.placement import Placement, Policy, Problem
from sim.placement.problem import apportion
from sim.swarm.choice import load as load_choice
from sim.swarm.dice import below, uniform
from sim.swarm.group import Group, Job, Tally
from sim.swarm.mail import WIRES
from sim.swarm.migration import Migration
from sim.swarm.plant import Plant
from sim.swarm.routes import Routes
from sim.tasks import PS_PER_S, Cancel, Command, Task, Time, Work

REPORT_BYTES = 256
TOKEN_BYTES = 4
SHARED = 16.0
"""Tokens that share a read of the weights, for the estimate of a wait (guessed: a middling batch)."""
Then = Callable[[Time, Result], Sequence[Command]]


@dataclass(frozen=True, slots=True)
class Settings:
    """How a swarm is run.

    design: "spread": one group, experts over the whole cluster; "replicas": a full copy in each region that holds one; "edge": the
    same, requests go to the nearest and on to a better one if that is worth the way. spares: copies a layer beyond one of each
    expert (spread; replicas use the memory that they have). routing: among copies of an expert, and among
    groups. report_s: period of the nodes' reports; report_age_s: added to how old they are; suspect_s: silence after
    which a node is given up. rebalance_s: period in which the placement is looked at again, 0: never; hysteresis: balance that a new
    one must gain. duration_s: end of the study, else when all is answered.
    """

    design: str = "spread"
    routing: str = "nearest"
    spares: int = 0
    report_s: float = 2.0
    report_age_s: float = 0.0
    suspect_s: float = 10.0
    rebalance_s: float = 600.0
    hysteresis: float = 0.05
    duration_s: float | None = None
    patience_s: float = 3600.0
    seed: int = 0


@dataclass(eq=False, slots=True)
class Outcome:
    """Counts of a study. times of moves in s: (when, group, copies)."""

    suspected: int = 0
    rejoined: int = 0
    rebalances: int = 0
    duplicates: int = 0
    handed_over: int = 0
    moves: list[tuple[float, str, int]] = field(default_factory=list)
    peak_share: float = 0.0
    """Of the fullest GPU's usable memory."""


def _dealt(total: int, room: NDArray[np.int64]) -> NDArray[np.int64]:
    """`total` slots in proportion to the room [gpus], none more than it."""
    found = np.minimum(apportion(total, room.astype(np.float64)), room)
    for g in np.argsort(found - room, kind="stable"):
        found[g] += min(int(room[g] - found[g]), total - int(found.sum()))
    return found


class Server:
    """See the module. `policy` places experts; `origins`: where requests come in, by number."""

    def __init__(self, plant: Plant, routes: Routes, policy: Policy, settings: Settings, origins: Callable[[int], str]) -> None:
        self.plant, self.routes, self.policy, self.settings, self.origins = plant, routes, policy, settings, origins
        self.numbers: Iterator[int] = count()
        self.tally = Tally(busy_s=np.zeros(len(plant.nodes)))
        self.outcome = Outcome()
        self.jobs: dict[int, Job] = {}
        self.dead: set[int] = set()
        self._leaving: set[int] = set()
        self.groups = self._form()
        self._scopes = {g.name: plant.regions.index(g.name) if settings.design != "spread" else -1 for g in self.groups}
        self._heard = [0] * len(plant.nodes)
        self._boots = [0] * len(plant.nodes)
        self._kept: dict[int, list[tuple[Group, NDArray[np.bool_]]]] = {}
        self._busy = np.zeros(len(plant.nodes))
        self._reported = {g.name: 0.0 for g in self.groups}
        self._then: dict[int, Then] = {}
        self._steps: dict[int, Group] = {}
        self._loads: dict[int, tuple[Group, Migration]] = {}
        self._migrations: dict[str, Migration] = {}
        self._forwards: dict[int, tuple[Job, int]] = {}
        self._answers: dict[int, tuple[Job, Group, int]] = {}
        """Task -> its job, the group that it comes from, and the node that it goes to or comes from."""
        self._empty: set[int] = set()
        """Nodes that have come back with void memory, until a placement uses them."""
        self._parked: list[Job] = []
        self._open = 0
        self._closed = self.over = False
        self._quiet_since: Time = 0

    # Groups and placements ----------------------------------------------------------------------

    def _form(self) -> list[Group]:
        """Groups with their first placements, which are loaded before the study begins."""
        scopes = [-1] if self.settings.design == "spread" else range(len(self.plant.regions))
        out = []
        for scope in scopes:
            home = self._home(scope)
            name = "swarm" if scope < 0 else self.plant.regions[scope]
            target = self._target(scope, home, None) if home is not None else None
            if home is not None and target is not None:
                choose = load_choice(self.settings.routing)
                out.append(Group(name, self.plant, self.routes, home, target, choose, self.numbers, self.tally, self.settings.seed))
        if not out:
            where = "the cluster" if self.settings.design == "spread" else "any region"
            found = f"{self.plant.model.name} does not fit into {where} of {self.plant.cluster.name}"
            raise UserError(f"--model: {found}; a smaller one is needed")
        return out

    def _alive(self, scope: int) -> NDArray[np.int64]:
        """GPUs of live nodes of a region, of all with -1."""
        node = self.plant.node_of
        ok = ~np.isin(node, sorted(self.dead | self._leaving))
        return np.flatnonzero(ok & ((scope < 0) | (self.plant.region_of[node] == scope)))

    def _home(self, scope: int) -> int | None:
        """The live node with the most KV room, the nearest to the coordinator of equal ones; None where dense weights fit on none."""
        here = self.plant.cluster.coordinator
        able = [n for n in sorted({int(self.plant.node_of[g]) for g in self._alive(scope)}) if self._holds_dense(n)]
        return min(able, key=lambda n: (self.plant.network.rtt_s(here, self.plant.nodes[n]), -self.plant.kv_tokens(n), n), default=None)

    def _holds_dense(self, node: int) -> bool:
        mine = self.plant.gpus_of_node(node)
        return bool((self.plant.home_bytes(node)[mine] < self.plant.usable_bytes[mine]).all())

    def _target(self, scope: int, home: int, group: Group | None) -> NDArray[np.bool_] | None:
        """The policy's placement on live GPUs, as held [layers, experts, all gpus]; None where the experts do not fit."""
        among = self._alive(scope)
        if not len(among):
            return None
        if group is None or not group.observed.any():
            counts = self.routes.counts
        else:
            counts = group.observed
        gpus = self.plant.fleet([home], among)
        wanted = counts.shape[1] + (self.settings.spares if scope < 0 else int(gpus.slots.sum()))
        if gpus.slots.sum() < counts.shape[1]:
            return None
        gpus = replace(gpus, slots=_dealt(min(wanted, int(gpus.slots.sum())), gpus.slots))
        current = None if group is None else Placement(group.held[:, :, among])
        problem = Problem(counts[None], gpus, current=current, seed=self.settings.seed)
        held = np.zeros((*counts.shape, len(self.plant.node_of)), np.bool_)
        held[:, :, among] = self.policy.place(problem).held
        return held

    # Events -------------------------------------------------------------------------------------

    def on(self, now: Time, event: Event) -> Sequence[Command]:
        if isinstance(event, Started):
            return self._begin(now)
        if isinstance(event, Changed) or self.over:
            return []
        if isinstance(event, Arrived):
            return self._arrive(now, event)
        assert isinstance(event, Finished | Failed), event
        commands = list(self._finished(now, event) if isinstance(event, Finished) else self._failed(now, event))
        self._check_memory()
        if self._finished_all(now):
            return [*commands, *self._end()]
        return commands

    def _begin(self, now: Time) -> list[Command]:
        period, seed = self.settings.report_s, self.settings.seed
        commands = [self._timer(period * uniform(seed, n), self._reporter(n)) for n in range(len(self.plant.nodes))]
        commands.append(self._timer(self.settings.report_s, self._watch))
        if self.settings.rebalance_s:
            commands.append(self._timer(self.settings.rebalance_s, self._rebalance))
        return commands

    def _timer(self, after_s: float, then: Then) -> Command:
        number = next(self.numbers)
        self._then[number] = then
        return Task(number, Work("timer", latency_ps=max(1, round(after_s * PS_PER_S))), notify=True)

    def _send(self, a: str, b: str, size: int, op: str, then: Then) -> Task:
        number = next(self.numbers)
        self._then[number] = then
        path = self.plant.network.path(a, b)
        self.tally.tasks += 1
        self.tally.carried(path.link_class, size * (path.resources[0][1] if path.resources else 0.0), size * path.usd_per_byte)
        return Task(number, self.plant.transfer(a, b, size, op), WIRES, notify=True)

    def _finished(self, now: Time, event: Finished) -> Sequence[Command]:
        if event.task in self._steps:
            group = self._steps.pop(event.task)
            return [*self._answer_all(now, group, group.ended(now)), *self._started(group, group.start(now))]
        if event.task in self._loads:
            group, migration = self._loads.pop(event.task)
            return self._loaded(now, group, migration, event.task)
        return self._then.pop(event.task)(now, event.result)

    def _failed(self, now: Time, event: Failed) -> Sequence[Command]:
        """Only what this scheduler cancelled fails; a stretch cut for newcomers goes on."""
        self._then.pop(event.task, None)
        self._loads.pop(event.task, None)
        group = self._steps.pop(event.task, None)
        if group is None or group.running is None or group.running.last != event.task:
            return []
        done, commands = group.cut_short(now, event.fraction_done)
        return [*self._answer_all(now, group, done), *self._started(group, commands)]

    def _started(self, group: Group, commands: Sequence[Command]) -> Sequence[Command]:
        """Remember whose step the new tasks are."""
        if commands and not isinstance(commands[-1], Cancel) and group.running is not None:
            self._steps[group.running.last] = group
        return commands

    # Requests -----------------------------------------------------------------------------------

    def _arrive(self, now: Time, event: Arrived) -> Sequence[Command]:
        r = event.request
        self._closed = self._closed or event.last
        origin = self.origins(r.request_id)
        if origin in self.plant.nodes and self.plant.nodes.index(origin) in self.dead:
            origin = self.plant.cluster.coordinator
        job = Job(r.request_id, origin, now, r.prompt_tokens, r.output_tokens or r.max_output_tokens)
        self.jobs[job.number] = job
        self._open += 1
        return self._forward(now, job)

    def _forward(self, now: Time, job: Job) -> Sequence[Command]:
        """To a group, over the network; waits where none is up."""
        group = self._choose(job)
        if group is None:
            self._parked.append(job)
            return []
        def came(at: Time, result: Result) -> Sequence[Command]:
            del self._forwards[task.number]
            return self._started(group, group.add(at, [job])) if group.up else self._redirect(at, job)

        task = self._send(job.origin, self.plant.nodes[group.home], job.tokens * TOKEN_BYTES, "forward", came)
        self._forwards[task.number] = (job, group.home)
        return [task]

    def _choose(self, job: Job) -> Group | None:
        """By the routing among groups that are up; loads as they were reported."""
        up = [g for g in self.groups if g.up]
        if len(up) < 2:
            return up[0] if up else None
        rtt = {g.name: self.plant.network.rtt_s(job.origin, self.plant.nodes[g.home]) for g in up}
        closest = min(up, key=lambda g: (rtt[g.name], g.name))
        if self.settings.design == "edge":
            best = min(up, key=lambda g: (self._wait_s(g) + rtt[g.name], g.name))
            gain = self._wait_s(closest) + rtt[closest.name] - self._wait_s(best) - rtt[best.name]
            return best if gain > rtt[best.name] - rtt[closest.name] else closest
        if self.settings.routing == "nearest":
            return closest
        if self.settings.routing == "least-loaded":
            return min(up, key=lambda g: (self._wait_s(g), g.name))
        if self.settings.routing == "power-of-two":
            i = below(len(up), self.settings.seed, job.number, job.moves, 1)
            j = (i + 1 + below(len(up) - 1, self.settings.seed, job.number, job.moves, 2)) % len(up)
            return min((up[i], up[j]), key=lambda g: (self._wait_s(g), g.name))
        speeds = np.cumsum([self._speed(g) for g in up])
        return up[int(np.searchsorted(speeds, uniform(self.settings.seed, job.number, job.moves) * speeds[-1]))]

    def _speed(self, group: Group) -> float:
        """Bytes a second of the GPUs that the group may use: what decoding is bound by."""
        return float(self.plant.bytes_per_s[np.isin(self.plant.node_of, sorted(group.nodes_used()))].sum())

    def _wait_s(self, group: Group) -> float:
        """Reported backlog in tokens, at the group's rate of decoding alone: weights read once a token."""
        active = self.plant.model.dense_bytes + self.plant.model.moe_layers * self.plant.model.top_k * self.plant.model.expert_bytes
        return self._reported[group.name] * active / self._speed(group) / SHARED

    def _answer_all(self, now: Time, group: Group, jobs: Sequence[Job]) -> list[Command]:
        return [self._answer(group, job) for job in jobs]

    def _answer(self, group: Group, job: Job) -> Command:
        def home(at: Time, result: Result) -> Sequence[Command]:
            del self._answers[task.number]
            if job.answered >= 0:
                self.outcome.duplicates += 1
                return []
            job.answered = at
            self._open -= 1
            self._quiet_since = at
            return []

        task = self._send(self.plant.nodes[group.home], job.origin, job.output * TOKEN_BYTES, "answer", home)
        self._answers[task.number] = (job, group, group.home)
        return task

    # Reports, silence and return ----------------------------------------------------------------

    def _reporter(self, node: int) -> Then:
        """Node `node` reports; the next report is due a period after this one has come."""
        name = self.plant.nodes[node]

        def report(now: Time, _: Result) -> Sequence[Command]:
            state = {g.name: float(g.backlog_tokens) for g in self.groups if g.home == node}
            busy = float(self.tally.busy_s[node])

            def heard(at: Time, result: Result) -> Sequence[Command]:
                later = round(self.settings.report_age_s * PS_PER_S)
                again = self._timer(self.settings.report_s, report)
                if later:
                    return [again, self._timer(self.settings.report_age_s, lambda t, _: self._hear(t, node, now, busy, state, result))]
                return [again, *self._hear(at, node, now, busy, state, result)]

            return [self._send(name, self.plant.cluster.coordinator, REPORT_BYTES, "report", heard)]

        return report

    def _hear(self, now: Time, node: int, sent: Time, busy: float, state: dict[str, float], result: Result) -> Sequence[Command]:
        period = max((sent - self._heard[node]) / PS_PER_S, 1e-9)
        share = max(0.0, busy - self._busy[node]) / period
        self._heard[node], self._busy[node] = sent, busy
        self._reported |= state
        for group in self.groups:
            group.busy[self.plant.node_of == node] = share
        boot = int(result.facts.get("boot", 0))
        fresh = now - sent < self.settings.suspect_s * PS_PER_S + self.settings.report_age_s * PS_PER_S
        leaving = bool(result.facts.get("leaving")) and node not in self._leaving
        commands: list[Command] = self._leave(now, node) if leaving else []
        if boot != self._boots[node]:
            self._boots[node] = boot
            self._leaving.discard(node)
            if node not in self.dead:  # it was away for less than it takes to be missed
                commands += self._suspect(now, node)
            self._kept.pop(node, None)
            self._empty.add(node)
        if node in self.dead and fresh:
            commands += self._welcome(now, node)
        return commands

    def _watch(self, now: Time, _: Result) -> Sequence[Command]:
        """Give up nodes that have been silent for too long."""
        limit = (self.settings.suspect_s + self.settings.report_age_s) * PS_PER_S
        commands: list[Command] = []
        for node, heard in enumerate(self._heard):
            if node not in self.dead and now - heard > limit:
                commands += self._suspect(now, node)
        return [*commands, self._timer(self.settings.report_s, self._watch)]

    def _suspect(self, now: Time, node: int) -> list[Command]:
        """The node is taken for dead: its copies are void, what needs it stops, its groups get another placement."""
        self.dead.add(node)
        self.outcome.suspected += 1
        commands: list[Command] = []
        mine = self.plant.node_of == node
        for group in self.groups:
            coming = self._migrations.get(group.name)
            if node not in group.nodes_used() and not (coming is not None and coming.target[:, :, mine].any()):
                continue
            self._kept.setdefault(node, []).append((group, group.held[:, :, mine].copy()))
            commands += self._stop(group)
            held = group.held.copy()
            held[:, :, mine] = False
            home_lost = group.home == node
            if home_lost:
                group.forget()
            group.move(group.home, held)
            commands += self._replace(now, group, lost_home=home_lost)
        return [*commands, *self._rescue(now, node), *self._enter_elsewhere(now, node)]

    def _rescue(self, now: Time, node: int) -> list[Command]:
        """Requests on their way to a node that is gone go elsewhere; answers that it had not got out are made again."""
        commands: list[Command] = []
        for task, (job, to) in list(self._forwards.items()):
            if to == node:
                del self._forwards[task], self._then[task]
                commands += [Cancel(task, "its group is gone"), *self._redirect(now, job)]
        for task, (job, _, source) in list(self._answers.items()):
            if source == node:
                del self._answers[task], self._then[task]
                job.produced = job.resident = 0
                commands += [Cancel(task, "its answer is gone"), *self._redirect(now, job)]
        return commands

    def _enter_elsewhere(self, now: Time, node: int) -> list[Command]:
        """Users who came in at a node that is gone come in at the coordinator: their requests and answers go that way."""
        here, there = self.plant.cluster.coordinator, self.plant.nodes[node]
        stranded = {j.number for j in self.jobs.values() if j.origin == there and j.answered < 0}
        for number in stranded:
            self.jobs[number].origin = here
        commands: list[Command] = []
        for task, (job, _) in list(self._forwards.items()):
            if job.number in stranded:
                del self._forwards[task], self._then[task]
                commands += [Cancel(task, "its entry is gone"), *self._forward(now, job)]
        for task, (job, group, _) in list(self._answers.items()):
            if job.number in stranded:
                del self._answers[task], self._then[task]
                commands += [Cancel(task, "its entry is gone"), self._answer(group, job)]
        return commands

    def _stop(self, group: Group) -> list[Command]:
        """What a group does now is given up: its step, and its migration."""
        commands = group.abandon()
        for number in [n for n, g in self._steps.items() if g is group]:
            del self._steps[number]
        migration = self._migrations.pop(group.name, None)
        if migration is not None:
            for number in list(migration.open):
                self._loads.pop(number, None)
            commands += migration.cancel()
        return commands

    def _redirect(self, now: Time, job: Job) -> Sequence[Command]:
        job.moves += 1
        self.outcome.handed_over += 1
        return self._forward(now, job)

    def _leave(self, now: Time, node: int) -> list[Command]:
        """A node has been told that it will be taken away: its experts are copied elsewhere while it serves on."""
        self._leaving.add(node)
        commands: list[Command] = []
        for group in self.groups:
            target = self._target(self._scopes[group.name], group.home, group) if node in group.nodes_used() and group.up else None
            if target is not None and group.name not in self._migrations:
                commands += self._migrate(now, group, target, None)
        return commands

    def _welcome(self, now: Time, node: int) -> list[Command]:
        """A node is heard of again: what it holds still counts if it was only out of reach. Its groups settle a report later, when
        its neighbours may be back as well."""
        self.dead.discard(node)
        self.outcome.rejoined += 1
        kept = {group.name: copies for group, copies in self._kept.pop(node, [])}
        commands: list[Command] = []
        mine = self.plant.node_of == node
        for group in self.groups:
            scope = self._scopes[group.name]
            if scope not in (-1, int(self.plant.region_of[node])):
                continue
            if group.name in kept and group.name not in self._migrations:
                held = group.held.copy()
                held[:, :, mine] = kept[group.name]
                group.move(group.home, self._trimmed(group.home, held, held))
            commands.append(self._timer(self.settings.report_s, self._settler(group)))
        return commands

    def _settler(self, group: Group) -> Then:
        """Once a node is back: a group whose copies are all there goes on; one that lacks some, or may use an empty node, gets
        another placement."""

        def settle(now: Time, _: Result) -> Sequence[Command]:
            scope = self._scopes[group.name]
            back = {n for n in self._empty if scope in (-1, int(self.plant.region_of[n]))} - self.dead
            if group.home not in self.dead and group.ready and not back - {group.home} and group.home not in back:
                group.up = group.name not in self._migrations or group.up
                return [*self._started(group, group.start(now)), *self._unpark(now)]
            self._empty -= back
            return [*self._stop(group), *self._replace(now, group, lost_home=group.home in back or not group.up)]

        return settle

    # Placement changes --------------------------------------------------------------------------

    def _replace(self, now: Time, group: Group, lost_home: bool) -> list[Command]:
        """Another placement on what is alive, and another home where the old one is lost; without room the group goes down
        and its jobs elsewhere."""
        scope = self._scopes[group.name]
        home = self._home(scope) if lost_home or group.home in self.dead else group.home
        target = self._target(scope, home, group) if home is not None else None
        if home is None or target is None:
            group.up = False
            jobs = group.hand_over()
            return [c for job in jobs for c in self._redirect(now, job)]
        fresh = home if lost_home else None
        group.move(home, self._trimmed(home, group.held, target))
        return self._migrate(now, group, target, fresh)

    def _trimmed(self, home: int, held: NDArray[np.bool_], target: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """What stays of the copies: on each GPU as many a layer as fit beside the (new) home's needs, those that are wanted
        first. Only a node that becomes a home gives any up."""
        slots = self.plant.slots([home], np.arange(len(self.plant.node_of)))
        worth = held * 2 - (held & ~target)
        rank = np.argsort(np.argsort(-worth.astype(np.int64), axis=1, kind="stable"), axis=1)
        return np.asarray(held & (rank < slots))

    def _migrate(self, now: Time, group: Group, target: NDArray[np.bool_], fresh_home: int | None) -> list[Command]:
        """Begin to load what the target wants. A group that was down stays so until its dense weights are there."""
        alive = frozenset(range(len(self.plant.nodes))) - self.dead
        migration = Migration(
            self.plant, group.held.copy(), target, self.numbers, self.tally, alive, self.plant.cluster.coordinator, dense_to=fresh_home
        )
        self._migrations[group.name] = migration
        if fresh_home is not None:
            group.up = False
        commands = migration.start()
        return self._after_load(now, group, migration, commands)

    def _loaded(self, now: Time, group: Group, migration: Migration, task: int) -> Sequence[Command]:
        return self._after_load(now, group, migration, migration.ended(task))

    def _after_load(self, now: Time, group: Group, migration: Migration, commands: list[Command]) -> list[Command]:
        for task in commands:
            assert isinstance(task, Task)
            self._loads[task.number] = (group, migration)
        group.up = not migration.loading_dense
        if (group.held != migration.held).any():
            group.move(group.home, migration.held.copy())
        if migration.done:
            self._migrations.pop(group.name, None)
            self.outcome.moves.append((now / PS_PER_S, group.name, migration.moved))
        return [*commands, *self._started(group, group.start(now)), *self._unpark(now)]

    def _unpark(self, now: Time) -> list[Command]:
        """Requests that found no group up, if one is now."""
        if not any(g.up for g in self.groups):
            return []
        parked, self._parked = self._parked, []
        return [c for job in parked for c in self._forward(now, job)]

    def _rebalance(self, now: Time, _: Result) -> Sequence[Command]:
        """An epoch is over: groups whose load would be balanced better by another placement move to it."""
        commands: list[Command] = []
        for group in self.groups:
            if not group.up or group.name in self._migrations or not group.observed.any():
                continue
            target = self._target(self._scopes[group.name], group.home, group)
            if target is not None and self._balance(group, target) - self._balance(group, group.held) > self.settings.hysteresis:
                self.outcome.rebalances += 1
                commands += self._migrate(now, group, target, None)
            group.observed *= 0.5
        return [*commands, self._timer(self.settings.rebalance_s, self._rebalance)]

    def _balance(self, group: Group, held: NDArray[np.bool_]) -> float:
        from sim.placement.measures import balancedness

        among = self._alive(self._scopes[group.name])
        if not len(among):
            return 0.0
        gpus = self.plant.fleet([group.home], among)
        if not held[:, :, among].any(axis=2).all():
            return 0.0
        return balancedness(Placement(held[:, :, among]), group.observed, gpus)

    # Budgets and the end ------------------------------------------------------------------------

    def _check_memory(self) -> None:
        """No GPU holds more than it can, loading included."""
        if not self._migrations and self.outcome.peak_share:
            return
        used = np.zeros(len(self.plant.node_of))
        for group in self.groups:
            migration = self._migrations.get(group.name)
            copies = (migration.used() if migration else group.held).sum(axis=(0, 1))
            used += copies * self.plant.model.expert_bytes + self.plant.home_bytes(group.home)
        share = float((used / self.plant.usable_bytes).max())
        assert share <= 1.0, f"GPU {int((used / self.plant.usable_bytes).argmax())}: {share:.3f} of its memory"
        self.outcome.peak_share = max(self.outcome.peak_share, share)

    def _finished_all(self, now: Time) -> bool:
        end = self.settings.duration_s
        if end is not None and now >= end * PS_PER_S:
            return True
        return self._closed and (self._open == 0 or now - self._quiet_since > self.settings.patience_s * PS_PER_S)

    def _end(self) -> list[Command]:
        """Cancel all that is open: timers, reports, what waits for a node that never came back."""
        self.over = True
        running = [n for g in self.groups if g.running is not None for n in g.running.numbers]
        return [Cancel(n, "the study is over") for n in sorted({*self._then, *self._loads, *running})]
