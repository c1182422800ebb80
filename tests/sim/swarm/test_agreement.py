"""The control plane under everything that a network and f liars can do: one placement an epoch, and progress once it heals."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from sim import clusters
from sim.drive import drive
from sim.engines.simpy_engine import SimPyEngine
from sim.events import Event, Started
from sim.swarm.agreement import Patience, Replica
from sim.swarm.ballots import Ask, Commit, Committee, Decision, Keys, Prepare, PrePrepare, Said, Signed, Value, ViewChange, size_bytes
from sim.swarm.costs import NamedCosts
from sim.swarm.mail import LANE, Act, Alarm, Heard, Mail, Message, Send, losses, wire_price
from sim.tasks import PS_PER_S, Command, Task, Time, Work

A, B = Value("a", "placement-1"), Value("b", "placement-2")


class Liar:
    """A faulty member with its own key: says contradictory things to different members, hides what it has prepared."""

    def __init__(self, name: str, committee: Committee, seed: int) -> None:
        self.name, self.committee = name, committee
        self.rng = random.Random(seed)
        self.breath = 100

    def start(self, now: Time) -> Sequence[Act]:
        return []

    recover = start

    def on(self, now: Time, heard: Heard) -> Sequence[Act]:
        if isinstance(heard, Alarm) or self.rng.random() < 0.3 or self.breath == 0:
            return []
        self.breath -= 1
        body = getattr(heard.payload, "body", None)
        view, epoch = getattr(body, "view", 0), getattr(body, "epoch", 0)
        return [Send(to, self._lie(view, epoch), 100) for to in self.committee.names if to != self.name]

    def _lie(self, view: int, epoch: int) -> Said:
        kind = self.rng.choice([PrePrepare, Prepare, Commit, ViewChange, Ask])
        value = self.rng.choice([A, B, Value("evil", "placement-3")])
        if kind is Ask:
            return Ask(value)
        body = ViewChange(view + self.rng.randint(0, 2), epoch, None, None) if kind is ViewChange else kind(view, epoch, value)
        return self.committee.keys.sign(self.name, body)


@dataclass
class Chaos:
    """Delivers messages in any order, drops and doubles them, rings alarms out of turn, until it is told to behave."""

    members: dict[str, Replica | Liar]
    rng: random.Random
    now: Time = 0
    queue: list[tuple[str, Heard]] = field(default_factory=list)

    def act(self, name: str, acts: Sequence[Act]) -> None:
        for act in acts:
            heard: Heard = act if isinstance(act, Alarm) else Message(name, act.payload, self.now)
            self.queue.append((name if isinstance(act, Alarm) else act.to, heard))

    def step(self, drop: float, double: float, silent: set[str]) -> None:
        i = self.rng.randrange(len(self.queue))
        name, heard = self.queue[i]
        if self.rng.random() >= double:
            self.queue.pop(i)
        if isinstance(heard, Alarm):
            self.now += self.rng.randint(0, 2) * PS_PER_S
        elif name in silent or self.rng.random() < drop:
            return
        self.act(name, self.members[name].on(self.now, heard))

    def calm(self, most: int = 40_000) -> None:
        """In order, nothing lost; alarms ring when no message is under way."""
        for _ in range(most):
            if not self.queue:
                return
            i = next((i for i, (_, h) in enumerate(self.queue) if isinstance(h, Message)), 0)
            name, heard = self.queue.pop(i)
            if isinstance(heard, Alarm):
                self.now += PS_PER_S
            self.act(name, self.members[name].on(self.now, heard))
        raise AssertionError(f"{len(self.queue)} messages and alarms after {most} steps")

    @property
    def honest(self) -> list[Replica]:
        return [m for m in self.members.values() if isinstance(m, Replica)]

    def agree(self) -> None:
        """No two correct replicas have different values for one epoch, and no request has two epochs."""
        logs = [r.decided for r in self.honest]
        for epoch in range(max(len(log) for log in logs)):
            assert len({log[epoch] for log in logs if epoch in log}) == 1, f"epoch {epoch}: {[log.get(epoch) for log in logs]}"
        for log in logs:
            assert len({v.request for v in log.values()}) == len(log), log


def chaos(n: int, liars: int, seed: int) -> Chaos:
    names = tuple(f"r{i}" for i in range(n))
    committee = Committee(names, Keys.of(names))
    assert liars <= committee.f
    rng = random.Random(seed)
    false = set(rng.sample(names, liars))
    members: dict[str, Replica | Liar] = {
        m: Liar(m, committee, seed) if m in false else Replica(m, committee, acceptable=lambda v: v.request != "evil") for m in names
    }
    return Chaos(members, rng)


def test_what_waits_its_turn_is_not_said_again() -> None:
    """A network that loses nearly all lets wishes pile up: only the oldest is repeated, and once it is decided the next."""
    net = chaos(4, 0, 0)
    replica = net.honest[1]
    alarms = [a for k in range(30) for a in replica.propose(0, Value(str(k), "placement")) if isinstance(a, Alarm)]

    def asked(now: Time) -> list[str]:
        acts = replica.on(now, alarms.pop())
        alarms.extend(a for a in acts if isinstance(a, Alarm))
        return [a.payload.value.request for a in acts if isinstance(a, Send) and isinstance(a.payload, Ask)]

    assert asked(PS_PER_S) == ["0"] * 3 and len(alarms) == 1
    votes = [replica.committee.keys.sign(f"r{i}", Commit(0, 0, Value("0", "placement"))) for i in (0, 2, 3)]
    for vote in votes:
        replica.on(PS_PER_S, Message(vote.signer, vote, 0))
    assert asked(2 * PS_PER_S) == ["1"] * 3


@given(st.sampled_from([(4, 1), (4, 0), (7, 2), (5, 1)]), st.integers(0, 10**6), st.floats(0, 0.5), st.floats(0, 0.3), st.integers(0, 400))
@settings(max_examples=100, phases=[Phase.explicit, Phase.reuse, Phase.generate])  # shrinking a run of messages takes minutes
def test_never_two_placements_for_one_epoch_and_progress_when_the_network_heals(
    size: tuple[int, int], seed: int, drop: float, double: float, steps: int
) -> None:
    net = chaos(*size, seed)
    first, second = net.rng.sample(net.honest, 2)
    net.act(first.name, first.propose(net.now, A))
    net.act(second.name, second.propose(net.now, B))
    silent: set[str] = set()
    for step in range(steps):
        if not net.queue:
            break
        if step % 50 == 0:
            silent = set(net.rng.sample(list(net.members), net.rng.randint(0, len(net.members) // 2)))
        net.step(drop, double, silent)
        net.agree()
    for replica in net.honest:
        net.act(replica.name, replica.recover(net.now))
    third = Value("c", "placement-4")
    net.act(first.name, first.propose(net.now, third))
    net.calm()
    net.agree()
    assert all({"a", "b", "c"} <= {v.request for v in r.decided.values()} for r in net.honest), [r.decided for r in net.honest]
    assert all("evil" not in {v.request for v in r.decided.values()} for r in net.honest)


# On the real topology -------------------------------------------------------------------------------


@dataclass
class Plane:
    """Replicas on nodes of a cluster; `at` does something to the mail at a time."""

    mail: Mail
    at: dict[Time, Any]
    timers: dict[int, Any] = field(default_factory=dict)

    def on(self, now: Time, event: Event) -> Sequence[Command]:
        if isinstance(event, Started):
            commands = self.mail.start(now)
            for when, what in self.at.items():
                number = next(self.mail.numbers)
                self.timers[number] = what
                commands.append(Task(number, Work("timer", latency_ps=when), notify=True))
            return commands
        if getattr(event, "task", None) in self.timers:
            found: Sequence[Command] = self.timers[event.task](now)  # type: ignore[union-attr]
            return found
        heard = self.mail.on(now, event)
        assert heard is not None
        return heard


NAMES = ("iad-0", "sjc-0", "ams-0", "syd-0")


def plane(loss: float = 0.0, seed: int = 0, **at: Any) -> tuple[Plane, SimPyEngine]:
    cluster = clusters.load("five-regions")
    network = clusters.Network(cluster)
    committee = Committee(NAMES, Keys.of(NAMES))
    found = Plane(Mail({n: Replica(n, committee) for n in NAMES}), {})
    costs = NamedCosts(network.capacities, lambda lane, work: wire_price(network, work), cluster.digest)
    engine = SimPyEngine([LANE], {}, costs, profile=costs, outcomes=losses(network, seed, loss))
    return found, engine


def proposing(found: Plane, name: str, value: Value) -> Any:
    replica: Any = found.mail.members[name]
    return lambda now: found.mail.act(now, name, replica.propose(now, value))


def replicas(found: Plane) -> list[Replica]:
    return list(found.mail.members.values())  # type: ignore[arg-type]


def test_a_decision_takes_three_one_way_delays_to_a_quorum() -> None:
    """Leader iad-0: pre-prepare, prepare and commit each cross to the third nearest of four: ams and sjc, not syd."""
    found, engine = plane()
    found.at[1] = proposing(found, "iad-0", A)
    drive(found, engine)
    assert all(r.decided == {0: A} for r in replicas(found))
    network = clusters.Network(clusters.load("five-regions"))
    leader = next(r for r in replicas(found) if r.name == "iad-0")
    latency_s = leader.decided_at[0] / PS_PER_S
    one_way = {n: network.path("iad-0", n).latency_s for n in NAMES}
    # Prepared when two backups' words are there; the slower of sjc and ams sends its commit once it is prepared itself.
    assert 2 * one_way["ams-0"] < latency_s < 4 * network.path("sjc-0", "ams-0").latency_s + 0.01
    assert found.mail.sent >= 3 + 3 * 3 + 4 * 3  # pre-prepare, prepares of three backups, commits of four


def test_a_leader_that_is_down_is_replaced() -> None:
    found, engine = plane()
    found.mail.down.add("iad-0")
    found.at[1] = proposing(found, "ams-0", A)
    drive(found, engine)
    up = [r for r in replicas(found) if r.name != "iad-0"]
    assert all(r.decided == {0: A} and r.view == 1 for r in up)
    assert Patience().timeout_s < min(r.decided_at[0] for r in up) / PS_PER_S < 2 * Patience().timeout_s


def test_two_silent_of_four_stop_it_and_their_return_lets_it_go_on() -> None:
    found, engine = plane()
    found.mail.down |= {"iad-0", "syd-0"}
    found.at[1] = proposing(found, "ams-0", A)

    def back(now: Time) -> list[Command]:
        assert all(not r.decided for r in replicas(found))
        found.mail.down.clear()
        acts = [(n, r.recover(now)) for n, r in found.mail.members.items() if n in ("iad-0", "syd-0")]  # type: ignore[attr-defined]
        return [task for name, act in acts for task in found.mail.act(now, name, act)]

    found.at[40 * PS_PER_S] = back
    drive(found, engine)
    assert all(r.decided == {0: A} for r in replicas(found))


@pytest.mark.parametrize("seed", range(5))
def test_lost_messages_cost_time_only(seed: int) -> None:
    found, engine = plane(loss=0.2, seed=seed)
    for i in range(3):
        found.at[1 + i * PS_PER_S] = proposing(found, NAMES[i], Value(f"v{i}", f"placement-{i}"))
    drive(found, engine)
    logs = [r.decided for r in replicas(found)]
    longest = max(logs, key=len)
    assert len(longest) == 3 and all(log[e] == longest[e] for log in logs for e in log)
    assert sum(log == longest for log in logs) >= 3
    assert found.mail.lost > 0


# Proofs ---------------------------------------------------------------------------------------------


def test_forged_words_and_thin_proofs_do_not_count() -> None:
    committee = Committee(NAMES, Keys.of(NAMES))
    votes = tuple(committee.keys.sign(n, Commit(0, 0, A)) for n in NAMES[:3])
    assert committee.proves_decision(Decision(votes))
    assert not committee.proves_decision(Decision(votes[:2]))
    assert not committee.proves_decision(Decision((*votes[:2], votes[0])))
    forged = Signed(Commit(0, 0, A), "syd-0", votes[0].tag)
    assert not committee.proves_decision(Decision((*votes[:2], forged)))
    other = committee.keys.sign("syd-0", Commit(0, 0, B))
    assert not committee.proves_decision(Decision((*votes[:2], other)))
    ahead = committee.keys.sign("syd-0", ViewChange(1, 5, Decision(votes), None))
    assert not committee.proves_wish(ahead)
    assert size_bytes(ahead) == 104 + 96 * 4


def test_sizes_of_committees() -> None:
    sizes = {n: Committee(tuple(map(str, range(n))), Keys.of(map(str, range(n)))) for n in (1, 4, 5, 7, 10)}
    assert {n: (c.f, c.quorum) for n, c in sizes.items()} == {1: (0, 1), 4: (1, 3), 5: (1, 4), 7: (2, 5), 10: (3, 7)}
    assert all(2 * c.quorum - n > c.f and c.quorum <= n - c.f for n, c in sizes.items())
