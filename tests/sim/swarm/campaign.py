"""Seeded scenarios of everything that can go wrong at once, for the tests and for `python -m tests.sim.swarm.campaign N`."""

from __future__ import annotations

import itertools
import random
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from sim import models
from sim.clusters.schema import Cluster
from sim.events import Request
from sim.placement.policy import load as load_policy
from sim.placement.recorded import Recorded
from sim.swarm.ballots import Commit, Committee, Prepare, PrePrepare, Signed, Value
from sim.swarm.fleet.arbitrage import Arbitrage
from sim.swarm.fleet.policy import load as load_autoscaler
from sim.swarm.mail import Act, Heard, Message, Send
from sim.swarm.plant import Plant
from sim.swarm.routes import Routes
from sim.swarm.server import Server
from sim.swarm.settings import Settings
from sim.swarm.study import Finished, Study, simulate
from sim.swarm.trouble import Trouble, checked
from sim.tasks import PS_PER_S, Time


def small(nodes: int = 2, memory: int = 400_000_000, rtt_s: float = 0.04) -> Cluster:
    """Three regions of so many nodes with two GPUs that hold tiny-mixtral a few times over, and a coordinator."""
    nic = {"nic_out_bytes_per_s": 1e9, "nic_in_bytes_per_s": 1e9, "nic_latency_s": 1e-4, "source": "made up"}
    price = {"usd_per_hour": 3.6, "source": "made up"}
    return Cluster.model_validate({
        "kind": "cluster", "name": "small", "coordinator": "hub",
        "gpus": {"G": {"flops": 1e13, "bytes_per_s": 1e11, "memory_bytes": memory, "watts": 100, "source": "made up"}},
        "regions": {"H": {}, "A": {}, "B": {}, "C": {}},
        "nodes": {"hub": {"region": "H", "gpus": 0, **nic}}
        | {r.lower(): {"region": r, "count": nodes, "gpu": "G", "gpus": 2, "price": price, **nic} for r in "ABC"},
        "links": [
            {"a": a, "b": b, "rtt_s": rtt_s * k, "bytes_per_s": 1e8, "usd_per_gb": 0.05, "source": "made up"}
            for k, (a, b) in enumerate(("HA", "HB", "HC", "AB", "AC", "BC"), 1)
        ],
    })  # fmt: skip


def uneven(most: int = 400_000_000, least: int = 300_000_000) -> Cluster:
    """The same, where only a-0 and b-1 have all the memory: the others' KV cache holds less."""
    found = small(memory=most).model_dump(exclude_none=True)
    found["gpus"]["S"] = {**found["gpus"]["G"], "memory_bytes": least}
    for r in "abc":
        nodes = found["nodes"].pop(r)
        for i in range(2):
            found["nodes"][f"{r}-{i}"] = {**nodes, "count": 1, "gpu": "G" if f"{r}-{i}" in ("a-0", "b-1") else "S"}
    return Cluster.model_validate(found)


def recorded(tokens: int = 500, seed: int = 0) -> Recorded:
    """Skewed tokens of tiny-mixtral's routers: 4 layers, 2 of 8 experts."""
    from sim.placement.problem import Sample

    rng = np.random.default_rng(seed)
    score = -np.log(np.arange(1, 9)) + rng.gumbel(size=(tokens, 4, 8))
    experts = np.argsort(-score, axis=2)[:, :, :2].astype(np.int16)
    counts = np.stack([np.bincount(experts[:, layer].ravel(), minlength=8) for layer in range(4)]).astype(np.float64)
    return Recorded(counts[None], Sample(experts, np.zeros(tokens, np.int64)))


def study(requests: Sequence[Request], troubles: Sequence[Trouble] = (), policy: str = "greedy", cluster: Cluster | None = None) -> Study:
    plant = Plant(cluster or small(), models.load("tiny-mixtral"))
    names = (*plant.nodes, plant.cluster.coordinator)
    origins = tuple(names[i % len(names)] if i % 3 == 0 else plant.cluster.coordinator for i in range(len(requests)))
    found = checked(tuple(troubles), plant, "scenario")
    return Study(plant, Routes(recorded(), plant.model), load_policy(policy), tuple(requests), origins, found)


def poisson(n: int, per_s: float, seed: int = 0, prompt: int = 40, output: int = 12) -> list[Request]:
    rng = random.Random(seed)
    at, out = 0.0, []
    for i in range(n):
        at += rng.expovariate(per_s)
        tokens = 1 + int(rng.expovariate(1 / output))
        out.append(Request(i, 1 + int(rng.expovariate(1 / prompt)), tokens, tokens, round(at * PS_PER_S)))
    return out


class Liar:
    """A faulty member of the control plane with its own key: it votes for what nobody asked for, another thing to each."""

    def __init__(self, name: str, committee: Committee, seed: int) -> None:
        self.name, self.committee, self.rng = name, committee, random.Random(seed)

    def start(self, now: Time) -> Sequence[Act]:
        return []

    recover = start

    def on(self, now: Time, heard: Heard) -> Sequence[Act]:
        body = heard.payload.body if isinstance(heard, Message) and isinstance(heard.payload, Signed) else None
        if not isinstance(body, PrePrepare | Prepare | Commit) or self.rng.random() < 0.5:
            return []
        others = [n for n in self.committee.names if n != self.name]
        return [Send(n, self._lie(body), 300) for n in others]

    def _lie(self, body: PrePrepare | Prepare | Commit) -> Signed[Any]:
        kind = self.rng.choice([PrePrepare, Prepare, Commit])
        value = self.rng.choice([body.value, Value(body.value.request, "another placement", body.value.bytes)])
        return self.committee.keys.sign(self.name, kind(body.view + self.rng.randint(0, 1), body.epoch, value))


def nothing(server: Server) -> None:
    """All members of the control plane are honest."""


def with_a_liar(seed: int) -> Callable[[Server], None]:
    """One of the four members lies, any but the coordinator's, which is the client."""

    def prepare(server: Server) -> None:
        control = server.control
        name = random.Random(seed).choice(control.names[1:])
        control.mail.members[name] = Liar(name, control.committee, seed)

    return prepare


def scenario(seed: int) -> tuple[Study, Settings, Callable[[Server], None]]:
    """A random study of a minute or two: several nodes and regions fail and come back, at any moment, more than once; messages of
    gossip, control plane, serving and restores are lost; a member of the control plane may be silent or lie."""
    rng = random.Random(seed)
    nodes, regions = [f"{r}-{i}" for r in "abc" for i in range(2)], list("ABC")
    troubles: list[Trouble] = []
    for node in rng.sample(nodes, rng.randint(0, 4)):
        at = rng.uniform(0, 60)
        for _ in range(rng.randint(1, 2)):
            what = rng.choice(["crash", "crash", "preempt", "slow"])
            if what == "slow":
                troubles.append(Trouble(at_s=at, what="slow", node=node, factor=rng.uniform(0.05, 1)))
            else:
                troubles.append(Trouble(at_s=at, what="crash" if what == "crash" else "preempt", node=node, notice_s=rng.uniform(0, 30)))
                at += rng.choice([rng.uniform(0.01, 2), rng.uniform(2, 40)])
                troubles.append(Trouble(at_s=at, what="rejoin", node=node, disk=rng.choice([0.0, 0.0, 0.7, 1.0])))
            at += rng.uniform(0.1, 20)
    for region in rng.sample(regions, rng.randint(0, 2)):
        at = rng.uniform(0, 60)
        troubles += [Trouble(at_s=at, what="partition", region=region), Trouble(at_s=at + rng.uniform(0.1, 30), what="heal", region=region)]
    faulty = rng.choice(["none", "none", "silent", "liar"])
    settings = Settings(
        silent=int(faulty == "silent"), design=rng.choice(["spread", "spread", "replicas", "edge"]),
        routing=rng.choice(["nearest", "least-loaded", "power-of-two", "lp"]),
        spares=rng.choice([0, 2, 8]), gossip_s=rng.choice([0.5, 1.0]), fan_out=rng.choice([1, 2, 3]), loss=rng.choice([0.0, 0.02, 0.2]),
        suspect_s=rng.choice([6.0, 12.0]), rebalance_s=rng.choice([0.0, 7.0]), hysteresis=0.01, seed=seed,
    )  # fmt: skip
    troubles = away(troubles, seed, seats=faulty == "none")
    if seed % 4 == 0:
        troubles, settings, faulty = hired(troubles, settings, seed)
    policy = rng.choice(["greedy", "eplb", "replicate-hot", "round-robin"])
    requests = poisson(rng.randint(5, 40), rng.uniform(0.2, 3), seed)
    cluster = None
    if seed % 4 and seed % 7 == 3:
        cluster, long = uneven(), random.Random(f"long {seed}")
        requests = [replace(r, prompt_tokens=long.randint(17_000, 21_000)) if long.random() < 0.2 else r for r in requests]
    return study(requests, troubles, policy, cluster), settings, with_a_liar(seed) if faulty == "liar" else nothing


def hired(troubles: Sequence[Trouble], settings: Settings, seed: int) -> tuple[list[Trouble], Settings, str]:
    """The same where nodes are rented as load or prices ask; all members of the control plane are honest then, as it may have one."""
    rng = random.Random(f"hired {seed}")
    prices = [
        Trouble(at_s=rng.uniform(0, 60), what="price", node=f"{rng.choice('abc')}-{i}", usd_per_hour=rng.uniform(0.1, 60))
        for i in range(2) for _ in range(rng.randint(0, 6))
    ]  # fmt: skip
    least, start = rng.choice([1, 1, 3]), rng.choice([0, 3])
    common = f"min={least}:start={start}:startup-s={rng.choice([0.5, 3, 8])}:look-s={rng.choice([1, 3])}"
    text = rng.choice([
        f"fixed:{common}", f"reactive:{common}:target={rng.uniform(0.01, 0.5)}:down-s={rng.choice([0, 6])}",
        f"predictive:{common}:window-s=4:target={rng.uniform(0.1, 1)}:down-s={rng.choice([0, 6])}",
    ])  # fmt: skip
    moves = rng.choice([None, Arbitrage(margin=0.01), Arbitrage(margin=0.5, at_once=2)])
    design = rng.choice(["nodes", "nodes", "replicas", "spread"])
    settings = replace(settings, design=design, silent=0, autoscale=load_autoscaler(text), arbitrage=moves)
    return sorted([*troubles, *prices], key=lambda t: t.at_s), settings, "none"


def away(troubles: Sequence[Trouble], seed: int, seats: bool) -> list[Trouble]:
    """The same, but in half of the scenarios one node that goes away does not come back. seats: it may be one of the control plane's,
    which bears one member that is faulty and no other."""
    rng = random.Random(f"away {seed}")
    gone = sorted({t.node for t in troubles if t.what == "rejoin" and t.node is not None and (seats or t.node.endswith("-1"))})
    if not gone or rng.random() < 0.5:
        return list(troubles)
    node = rng.choice(gone)
    first = next(i for i, t in enumerate(troubles) if t.what == "rejoin" and t.node == node)
    return [t for i, t in enumerate(troubles) if i < first or t.node != node]


def hold(done: Finished) -> None:
    """What every run must keep: all answered once, with all their tokens, memory within budget (asserted inside at every event)."""
    server = done.server
    lost = [j.number for j in server.requests.jobs.values() if j.answered < 0]
    assert not lost, f"lost {lost}; groups {[(g.name, g.up, g.ready) for g in server.groups]}"
    assert all(j.deliveries == 1 for j in server.requests.jobs.values())
    assert all(j.produced == j.output and j.answered >= j.first > j.arrival >= 0 for j in server.requests.jobs.values())
    assert 0 < server.outcome.peak_share <= 1
    assert all(g.backlog_tokens == g.kv_used == 0 for g in server.groups), "what groups were told to do has all been done"
    one_placement_an_epoch(server)
    nobody_works_longer_than_it_lasts(done)
    nothing_is_where_nothing_is_rented(server)


def nothing_is_where_nothing_is_rented(server: Server) -> None:
    """No group holds experts or requests on a node that is not rented, never more nodes than there are, one rent of a node at a time."""
    if server.fleet is None:
        return
    pool = server.fleet.pool
    free = frozenset(range(len(server.plant.nodes))) - pool.rented
    assert server.placer.absent == free | pool.nodes("starting") and server.placer.absent <= server.placer.dead
    for group in server.groups:
        assert not any(group.holds(n) for n in server.placer.absent), f"{group.name} holds experts on {server.placer.absent}"
        assert not (group.up and group.home in free), f"{group.name} lives on {group.home}, which is not rented"
    for node in range(len(pool.state)):
        mine = [r for r in pool.rents if r.node == node]
        assert all(a.until is not None and a.until <= b.since for a, b in itertools.pairwise(mine)), f"node {node} is rented twice"
        assert all(r.until is not None for r in mine[:-1]) and not (node in pool.kept and mine[-1].until is not None)


def nobody_works_longer_than_it_lasts(done: Finished) -> None:
    """Neither over the whole study nor between any two samples, and no GPU's experts longer than its node."""
    meter, history, node_of = done.server.tally.meter, done.server.history, done.server.plant.node_of
    assert (meter.busy_s <= done.seconds + 1e-6).all() and (meter.busy_s > -1e-9).all()
    assert (meter.gpu_s <= meter.busy_s[node_of] + 1e-6).all() and (meter.gpu_s > -1e-9).all()
    for worked in (history.busy_s, history.gpu_s):
        assert (np.diff(worked, axis=0) <= np.diff(history.at_s)[:, None] + 1e-6).all()


def one_placement_an_epoch(server: Server) -> None:
    """Correct members never decide two values for one epoch, and nothing is carried out that they have not decided."""
    logs = [r.decided for r in server.control.replicas]
    for epoch in range(max(len(log) for log in logs)):
        assert len({log[epoch] for log in logs if epoch in log}) == 1, f"epoch {epoch}: {[log.get(epoch) for log in logs]}"
    carried_out = len(server.outcome.moves) + len(server.changes.migrations)
    assert carried_out <= len(server.control.waits_s) <= max(len(log) for log in logs)


RENTED = ("nodes ordered", "given back", "ordered in vain", "moved for a price")
COUNTED = ("suspected", "rejoined", "handed_over", "rebalances", "discarded", "superseded")


def main(count: int, first: int = 0) -> int:
    failed, seen = 0, dict.fromkeys((*COUNTED, "moves", "commits", "views changed", "messages lost", "GB restored", *RENTED), 0.0)
    for seed in range(first, first + count):
        try:
            done = simulate(*scenario(seed))
            hold(done)
            tell(done.server, seen)
        except Exception as e:
            failed += 1
            print(f"seed {seed}: {type(e).__name__}: {str(e)[:300]}", flush=True)
    print(f"{count - failed} of {count} scenarios hold; {', '.join(f'{v:,.0f} {k}' for k, v in seen.items())}")
    return 1 if failed else 0


def tell(server: Server, seen: dict[str, float]) -> None:
    """Adds up what a run went through."""
    for name in COUNTED:
        seen[name] += getattr(server.outcome, name)
    seen["moves"] += sum(n for _, _, n in server.outcome.moves)
    seen["commits"] += len(server.control.waits_s)
    seen["views changed"] += max(r.view for r in server.control.replicas)
    seen["messages lost"] += server.views.mail.lost + server.control.mail.lost
    seen["GB restored"] += server.shelves.restored_bytes / 1e9
    if server.fleet is not None:
        rents, moves = server.fleet.pool.rents, server.fleet.moves
        seen["nodes ordered"] += sum(r.since > 0 for r in rents)
        seen["given back"] += sum(r.until is not None for r in rents)
        seen["ordered in vain"] += sum(r.wasted for r in rents)
        seen["moved for a price"] += len(moves.done) if moves is not None else 0


if __name__ == "__main__":
    sys.exit(main(*(int(a) for a in sys.argv[1:])))
