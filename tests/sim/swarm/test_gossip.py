"""Gossip: convergence against published-style tables, version vectors, what loss and importance change."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from sim import jitter
from sim.clusters.network import Network
from sim.clusters.schema import Cluster
from sim.drive import drive
from sim.engines.simpy_engine import SimPyEngine
from sim.events import Event, Started
from sim.swarm import dice
from sim.swarm.costs import NamedCosts
from sim.swarm.gossip import LAN, WAN, Entry, Gossip, Settings
from sim.swarm.mail import LANE, Alarm, Mail, Message, Send, losses, wire_price
from sim.tasks import PS_PER_S, Command, Time

TABLE = {
    16: (7.8, 4.8, 3.8, 3.1, 3.8), 64: (11.5, 6.7, 5.2, 4.4, 5.6), 256: (15.0, 8.7, 6.7, 5.7, 7.1),
    1024: (18.1, 10.6, 8.3, 6.9, 8.8), 4096: (21.3, 12.6, 9.6, 8.1, 10.3),
}  # fmt: skip
"""Mean rounds until all nodes know, for fan-out 1, 2, 3, 4 and fan-out 3 with 10 % loss (60 runs; uniform peers)."""

COLUMNS = ((1, 0.0), (2, 0.0), (3, 0.0), (4, 0.0), (3, 0.1))


def flat(n: int, latency_s: float = 1e-4) -> Cluster:
    nic = {"nic_out_bytes_per_s": 1e9, "nic_in_bytes_per_s": 1e9, "nic_latency_s": latency_s}
    node = {"region": "R", "gpus": 0, **nic, "source": "made up"}
    nodes = {f"n{i}": node for i in range(n)}
    values = {"kind": "cluster", "name": "flat", "coordinator": "n0", "gpus": {}, "regions": {"R": {}}, "nodes": nodes}
    return Cluster.model_validate(values)


@dataclass
class Watched:
    """Runs a gossip group until every node knows of n0's state, and notes when that was."""

    mail: Mail
    ends_at: Time = 0

    def on(self, now: Time, event: Event) -> Sequence[Command]:
        if isinstance(event, Started):
            self.members[0].update(now, "news")
            return self.mail.start(now)
        commands = self.mail.on(now, event)
        assert commands is not None
        if all("n0" in m.known for m in self.members):
            self.ends_at = self.ends_at or now
            return []
        return commands

    @property
    def members(self) -> list[Gossip]:
        return list(self.mail.members.values())  # type: ignore[arg-type]


def spread(n: int, settings: Settings, loss: float, seed: int, phase: bool = False) -> Watched:
    cluster = flat(n)
    network = Network(cluster)
    names = tuple(cluster.node)
    members = {m: Gossip(m, names, settings, seed, dice.uniform(seed, i) if phase else 1.0) for i, m in enumerate(names)}
    watched = Watched(Mail(members))
    costs = NamedCosts(network.capacities, lambda lane, work: wire_price(network, work), cluster.digest)
    engine = SimPyEngine([LANE], {}, costs, profile=costs, outcomes=losses(network, seed, loss))
    drive(watched, engine)
    return watched


def rounds_to_all(n: int, settings: Settings, loss: float, runs: int, seed: int = 0) -> NDArray[np.int64]:
    """Rounds until an entry of one of n nodes is on all of them [runs], where who has it pushes it every round and a push is lost
    with probability `loss`. The same process as `Gossip` with retransmit None, in step, for groups of thousands."""
    rng = np.random.default_rng(seed)
    return np.array([_spread(rng, n, settings, loss) for _ in range(runs)])


def _spread(rng: np.random.Generator, n: int, settings: Settings, loss: float) -> int:
    has = np.zeros(n, np.bool_)
    has[0] = True
    rounds = 0
    while not has.all():
        who = np.flatnonzero(has)
        k = settings.fan_out
        targets = distinct(rng, who, n, k) if settings.distinct else rng.integers(0, n, (len(who), k))
        has[targets[rng.random(targets.shape) >= loss]] = True
        rounds += 1
    return rounds


def distinct(rng: np.random.Generator, who: NDArray[np.int64], n: int, k: int) -> NDArray[np.int64]:
    """k distinct uniform numbers below n, none of them `who` [m]: [m, k]. Each draw is taken among those still free and moved
    past what is taken, smallest first."""
    k = min(k, n - 1)
    taken = who[:, None]
    for i in range(k):
        draw = rng.integers(0, n - 1 - i, len(who))
        for column in np.sort(taken, axis=1).T:
            draw = draw + (draw >= column)
        taken = np.concatenate([taken, draw[:, None]], axis=1)
    return taken[:, 1:]


@pytest.mark.parametrize("n", TABLE)
def test_rounds_match_the_table_within_a_tenth(n: int) -> None:
    for (fan_out, loss), wanted in zip(COLUMNS, TABLE[n], strict=True):
        runs = 400 if n <= 256 else 60
        found = rounds_to_all(n, Settings(fan_out, distinct=False), loss, runs).mean()
        assert found == pytest.approx(wanted, rel=0.1), f"n={n}, fan-out {fan_out}, loss {loss}"


@pytest.mark.parametrize(("n", "fan_out", "loss", "wanted"), [(16, 3, 0.0, 3.8), (16, 1, 0.0, 7.8), (64, 3, 0.0, 5.2), (16, 3, 0.1, 3.8)])
def test_the_nodes_themselves_match_the_table_on_simulated_links(n: int, fan_out: int, loss: float, wanted: float) -> None:
    settings = Settings(fan_out, distinct=False, retransmit=None)
    count = 120 if loss else 60 if n == 16 else 12  # rounds differ more where messages are lost
    runs = [spread(n, settings, loss, seed) for seed in range(1000, 1000 + count)]
    rounds = np.array([r.ends_at / PS_PER_S for r in runs]) // settings.period_s
    assert rounds.mean() == pytest.approx(wanted, rel=0.1)


def test_64_nodes_of_a_lan_know_within_two_seconds_although_they_stop_passing_on() -> None:
    ends = [spread(64, LAN, 0.0, seed, phase=True).ends_at / PS_PER_S for seed in range(5)]
    assert 0.4 < min(ends) and max(ends) < 2.0
    assert WAN.pushes_to(0) == 4 and LAN.pushes_to(0) == 3


def test_a_message_that_is_lost_is_counted_and_not_heard() -> None:
    mails = [spread(16, Settings(3, retransmit=None), 0.5, seed).mail for seed in range(6)]
    assert 0.3 < sum(m.lost for m in mails) / sum(m.sent for m in mails) < 0.6  # the last round is still under way


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 5)), max_size=30))
def test_what_a_node_knows_is_the_newest_whatever_the_order(heard: list[tuple[str, int]]) -> None:
    node = Gossip("a", ("a", "b", "c"))
    for name, version in heard:
        news = {name: Entry(version, version, f"{name}{version}")}
        node.on(0, Message("b", news, 0))
    newest = {name: max(v for n, v in heard if n == name) for name in {n for n, _ in heard}}
    assert node.versions == newest
    assert all(entry.value == f"{name}{newest[name]}" for name, entry in node.known.items())


def test_a_round_passes_on_news_so_many_times_and_no_more() -> None:
    node = Gossip("a", tuple("abcdefghij"), Settings(fan_out=2, retransmit=1))  # ceil(log10(11)) = 2 periods
    node.update(5, "x")
    sizes = [[a for a in node.on(0, Alarm(1, 0)) if isinstance(a, Send)] for _ in range(4)]
    assert [len(s) for s in sizes] == [2, 2, 0, 0]
    assert all(len({s.to for s in row} | {"a"}) == 3 for row in sizes[:2])


def test_important_news_goes_to_more_peers() -> None:
    node = Gossip("a", tuple("abcdefghij"), Settings(fan_out=2, adaptive=4))
    node.merge("b", Entry(1, 0, "dull"))
    node.merge("c", Entry(1, 0, "alarm", importance=1.0))
    sends = [a for a in node.on(0, Alarm(1, 0)) if isinstance(a, Send)]
    assert [sorted(s.payload) for s in sends] == [["b", "c"]] * 2 + [["c"]] * 4
    assert sends[0].bytes == 64 + 2 * 128 and sends[-1].bytes == 64 + 128


@given(st.integers(2, 12), st.integers(1, 12), st.integers(0, 99))
def test_peers_of_a_round_differ_and_are_others(n: int, k: int, seed: int) -> None:
    who = np.arange(n)
    drawn = distinct(np.random.default_rng(seed), who, n, k)
    assert drawn.shape == (n, min(k, n - 1)) and drawn.min() >= 0 and drawn.max() < n
    assert all(len({int(w), *row}) == len(row) + 1 for w, row in zip(who, drawn.tolist(), strict=True))


def test_single_draws_are_those_of_jitter() -> None:
    for point in ((1,), (3, 4), (-5, 2**40)):
        assert dice.uniform(7, *point) == jitter.uniform(7, *point)
