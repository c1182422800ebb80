"""Serving over regions: times by hand, floors, troubles, and what a run may never do."""

from __future__ import annotations

import multiprocessing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sim.drive import replay
from sim.errors import UserError
from sim.events import Request
from sim.placement.policy import load as load_policy
from sim.swarm import trouble
from sim.swarm.choice import View, least_loaded, lp_shares, nearest, power_of_two, split
from sim.swarm.comparison import compare
from sim.swarm.figures import figures
from sim.swarm.fleet.bill import Bill
from sim.swarm.mail import WIRES
from sim.swarm.migration import Migration
from sim.swarm.server import Server
from sim.swarm.settings import Settings
from sim.swarm.shelves import Shelves
from sim.swarm.study import Study, simulate
from sim.swarm.trouble import Trouble
from sim.tasks import PS_PER_S, Task, Work
from tests.sim.swarm.campaign import hold, poisson, scenario, small, study

QUIET = Settings(rebalance_s=0.0)


def one(prompt: int = 30, output: int = 5) -> list[Request]:
    return [Request(0, prompt, output, output, PS_PER_S)]


# Times ----------------------------------------------------------------------------------------------


def test_a_request_alone_takes_what_its_parts_take() -> None:
    """One replica serves it on its home: forwarding, a prefill step, four decode steps, the answer."""
    s = replace(study(one(), cluster=small(nodes=1)), origins=("hub",))
    done = simulate(s, replace(QUIET, design="replicas"))
    hold(done)
    plant, group = s.plant, done.server.groups[0]
    assert plant.nodes[group.home] == "a"  # 40 ms away: nearest to the hub
    job = done.server.requests.jobs[0]
    way = plant.network.path("hub", "a").latency_s
    layers, home = plant.model.layers, group.home
    prefill = layers * plant.dense_s(home, 30, 0, 30 * 31 / 2) + plant.head_s(home, 1)
    first_s = (job.first - job.arrival) / PS_PER_S - way
    assert prefill < first_s < prefill + layers * 0.01  # experts come on top
    decode = sum(layers * plant.dense_s(home, 1, n, n + 1) + plant.head_s(home, 1) for n in range(30, 34))
    rest_s = (job.answered - job.first) / PS_PER_S - way
    assert decode < rest_s < decode + 4 * layers * 0.01


def test_only_prices_of_what_repeats_are_kept() -> None:
    """A step's work is like no other's: an hour's would fill memory for nothing."""
    plant = study([]).plant
    costs = plant.costs()
    again = Task(0, Work("message", bytes=64, variant="a-0 b-0"), WIRES)
    once = Task(1, plant.work("serve", 0.0, {"node.a-0": 1e9}), "serve.A")
    assert costs.task(again) is costs.task(again)
    assert costs.task(once) is not costs.task(once)


def test_no_token_beats_the_floor_and_the_baselines_do() -> None:
    s = study(poisson(12, 1.0))
    spread, replicas = simulate(s, QUIET), simulate(s, replace(QUIET, design="replicas"))
    far, near = figures("spread", spread, s), figures("replicas", replicas, s)
    assert far["floor_s_per_token"] > 0.1 and far["visits"] > 0 and far["wire_bytes"]["wan"] > near["wire_bytes"]["wan"]
    assert far["tpot_s"]["p50"] >= far["floor_s_per_token"]
    assert near["floor_s_per_token"] == 0 and near["tpot_s"]["p50"] < far["tpot_s"]["p50"] / 10
    plant = spread.server.plant
    assert far["floor_s_per_token"] <= plant.model.layers * max(plant.network.rtt_s("a-0", n) for n in plant.nodes)


def test_a_newcomer_waits_for_the_running_step_and_not_for_the_stretch() -> None:
    long = Request(0, 20, 60, 60, 0)
    late = Request(1, 20, 2, 2, PS_PER_S // 10)
    s = study([long, late], cluster=small(nodes=1))
    done = simulate(s, replace(QUIET, design="replicas"))
    first = replace(late, request_id=0)
    alone = simulate(replace(study([first], cluster=small(nodes=1)), origins=s.origins[1:]), replace(QUIET, design="replicas"))
    hold(done)
    wait = done.server.requests.jobs[1].first - alone.server.requests.jobs[0].first
    step = (done.server.requests.jobs[0].answered - done.server.requests.jobs[0].first) / 59
    assert -0.5 * step < wait < 2.5 * step
    assert done.server.tally.tokens == 62 == sum(j.output for j in done.server.requests.jobs.values())


def test_a_slow_node_slows_its_group_and_nobody_tells_the_scheduler() -> None:
    requests = poisson(6, 5.0)
    slow = [Trouble(at_s=0, what="slow", node=f"{r}-{i}", factor=0.25) for r in "abc" for i in range(2)]
    settings = replace(QUIET, design="replicas")
    fast, late = simulate(study(requests), settings), simulate(study(requests, slow), settings)
    a, b = (figures("replicas", d, study(requests))["tpot_s"]["p50"] for d in (fast, late))
    assert 2.0 < b / a <= 4.05
    assert late.server.outcome.suspected == 0


@pytest.mark.parametrize("factor", [1.0, 0.25])
def test_a_crash_takes_back_what_its_step_was_not_given(factor: float) -> None:
    """A's home works from the request's arrival to the crash, not to the end of its stretch of 64 steps; B makes it all again."""
    crash_s = 1.3
    events = [Trouble(at_s=0, what="slow", node="a", factor=factor), Trouble(at_s=crash_s, what="crash", node="a")]
    s = replace(study([Request(0, 30, 3000, 3000, PS_PER_S)], events, cluster=small(nodes=1)), origins=("hub",))
    done = simulate(s, replace(QUIET, design="replicas", suspect_s=4.0, gossip_s=0.5))
    hold(done)
    job, busy_s = done.server.requests.jobs[0], done.server.tally.meter.busy_s
    way = s.plant.network.path("hub", "a").latency_s
    assert busy_s[0] == pytest.approx(factor * (crash_s - 1 - way), rel=1e-3)
    assert job.moves == 1 and job.group == "B" and 0 < busy_s[1] < done.seconds - 4.5 and busy_s[2] == 0


def test_newcomers_do_not_make_a_home_work_longer() -> None:
    """The stretches that are cut are taken back of all nodes and GPUs: what is left is the same work whoever comes in."""
    long = Request(0, 20, 400, 400, 0)
    late = [Request(i, 1, 1, 1, PS_PER_S // 10 + i * PS_PER_S // 50) for i in range(1, 8)]
    alone, visited = (simulate(study(r, cluster=small(nodes=1)), replace(QUIET, design="replicas")) for r in ([long], [long, *late]))
    hold(visited)
    a, b = alone.server.tally.meter, visited.server.tally.meter
    assert b.busy_s[0] == pytest.approx(a.busy_s[0], rel=0.05) and b.gpu_s[:2].sum() == pytest.approx(a.gpu_s[:2].sum(), rel=0.1)


def test_loading_experts_and_serving_share_the_links() -> None:
    """A long visit and a load of the same bytes over one link: both take twice as long as alone."""
    s = study(one())
    plant = s.plant
    held = np.zeros((4, 8, 12), np.bool_)
    held[:, :, 0] = True
    target = held.copy()
    target[0, :, 4] = True
    from itertools import count

    from sim.drive import drive
    from sim.engines.simpy_engine import SimPyEngine
    from sim.events import Event, Started
    from sim.swarm.jobs import Tally
    from sim.tasks import Command, Task

    shelves = Shelves(plant)
    shelves.holds(held, 0)
    migration = Migration(plant, shelves, held, target, count(), Tally(), frozenset(range(6)))

    class Both:
        ends: dict[int, int] = {}

        def on(self, now: int, event: Event) -> list[Command]:
            if isinstance(event, Started):
                loads = migration.start()
                size = 8 * plant.model.expert_bytes
                return [*loads, Task(50, plant.transfer("a-0", "b-0", size), "wires", notify=True)]
            self.ends[event.task] = now  # type: ignore[union-attr]
            return []

    engine = SimPyEngine(plant.lanes(), {}, plant.costs(), profile=plant.costs())
    drive(Both(), engine)
    alone_s = 8 * plant.model.expert_bytes / 1e8
    assert [t / PS_PER_S for t in Both.ends.values()] == pytest.approx([2 * alone_s + 0.0802] * 2, rel=1e-3)


# Troubles -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("design", ["spread", "replicas", "edge"])
def test_a_crash_in_the_middle_loses_nothing(design: str) -> None:
    crash = [Trouble(at_s=6, what="crash", node="a-0"), Trouble(at_s=14, what="rejoin", node="a-0")]
    s = study(poisson(60, 2.0), crash)
    done = simulate(s, replace(QUIET, design=design, suspect_s=4.0, gossip_s=0.5))
    hold(done)
    assert done.server.outcome.suspected == 1 and done.server.outcome.rejoined == 1
    assert sum(n for _, _, n in done.server.outcome.moves) > 0


def test_nobody_waits_for_a_node_that_never_comes_back() -> None:
    gone = [Trouble(at_s=6, what="crash", node="a-0")]
    done = simulate(study(poisson(60, 2.0), gone), replace(QUIET, design="replicas", suspect_s=4.0, gossip_s=0.5))
    hold(done)
    assert max(j.answered - j.arrival for j in done.server.requests.jobs.values()) / PS_PER_S < 12
    assert done.server.outcome.handed_over > 0


def test_a_node_that_was_only_out_of_reach_keeps_its_copies() -> None:
    cut = [Trouble(at_s=5, what="partition", region="B"), Trouble(at_s=25, what="heal", region="B")]
    done = simulate(study(poisson(60, 2.0), cut), replace(QUIET, design="replicas", suspect_s=4.0, gossip_s=0.5))
    hold(done)
    assert done.server.outcome.suspected == 2 and sum(n for _, _, n in done.server.outcome.moves) == 0
    assert all(g.up for g in done.server.groups)


def test_notice_of_preemption_moves_experts_before_they_are_gone() -> None:
    gone = [Trouble(at_s=40, what="preempt", node="c-1", notice_s=30)]
    done = simulate(study(poisson(80, 1.0), gone, "eplb"), replace(QUIET, suspect_s=4.0, gossip_s=0.5, spares=24))
    hold(done)
    moves = done.server.outcome.moves
    assert moves[0][0] < 40 and moves[0][2] > 0
    node = done.server.plant.nodes.index("c-1")
    assert not done.server.groups[0].held[:, :, done.server.plant.node_of == node].any()


def test_the_placement_follows_the_load_once_and_then_stays() -> None:
    s = study(poisson(60, 1.0), policy="greedy")
    uniform = Study(s.plant, s.routes, load_policy("eplb"), s.requests, s.origins)
    s.routes.counts = np.ones_like(s.routes.counts)  # the first placement knows nothing
    done = simulate(uniform, replace(QUIET, rebalance_s=10.0, hysteresis=0.1, spares=16))
    hold(done)
    assert 1 <= done.server.outcome.rebalances <= 2


def test_a_run_repeats_and_its_log_replays_on_a_fresh_scheduler() -> None:
    s, settings, _ = scenario(3)
    a, b = simulate(s, settings), simulate(s, settings)
    assert a.log.digest() == b.log.digest() and a.run.end_ps.tolist() == b.run.end_ps.tolist()
    replay(a.log, Server(s.plant, s.routes, s.policy, settings, lambda number: s.origins[number]))
    assert simulate(s, replace(settings, seed=99)).log.digest() != a.log.digest()


def test_designs_that_run_in_processes_of_their_own_come_to_the_same() -> None:
    s, settings, _ = scenario(3)
    told: list[str] = []
    here, together = (compare(s, replace(settings, design="edge"), told.append, apart) for apart in (False, True))
    assert [r["design"] for r in here[1]] == ["edge", "replicas"]
    assert [{**r, "wall_s": 0.0} for r in here[1]] == [{**r, "wall_s": 0.0} for r in together[1]]
    assert here[0].log.digest() == together[0].log.digest() == together[1][0]["log_digest"]
    assert together[2] > here[2] and told[-1] == "waiting for a full replica per region"


@pytest.mark.parametrize("seed", [119, 161, 247, 960, *range(1000, 1021)])
def test_failure_campaign(seed: int) -> None:
    """In the first three one member ran a view ahead for ever; in the fourth a group that was down had its nodes taken up again."""
    hold(simulate(*scenario(seed)))


def test_nothing_fits_is_said() -> None:
    with pytest.raises(UserError, match="does not fit into the cluster of small"):
        compare(study(one(), cluster=small(nodes=1, memory=100_000_000)), QUIET, print, apart=True)
    assert not multiprocessing.active_children()


def test_costs_follow_prices_and_down_time() -> None:
    events = [
        Trouble(at_s=1000, what="crash", node="a-0"), Trouble(at_s=2000, what="rejoin", node="a-0"),
        Trouble(at_s=1800, what="price", node="b-0", usd_per_hour=7.2),
    ]  # fmt: skip
    assert Bill.of(study(one()).plant, events, 3600).usd == pytest.approx(6 * 3.6 - 1.0 + 1.8)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("events: [{at_s: 1, what: crash, node: x}]", r"events\[0\].node: no GPU node 'x'; have a-0"),
        ("events: [{at_s: 1, what: partition, node: a-0}]", "region: missing"),
        ("events: [{at_s: 1, what: price, node: a-0}]", "usd_per_hour: missing"),
        ("events: [{at_s: 1, what: explode, node: a-0}]", r"events\[0\].what"),
        ("events: [{at_s: 1, what: heal, region: Z}]", "no region 'Z'"),
    ],
)
def test_a_bad_events_file_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "events.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        trouble.load(path, study(one()).plant)


# Choices --------------------------------------------------------------------------------------------


def view(**changes: object) -> View:
    held = np.zeros((1, 3, 4), np.bool_)
    held[0, 0] = True
    held[0, 1, [1, 2]] = held[0, 2, 3] = True
    found = View(held, np.array([0.1, 0.0, 0.3, 0.3]), np.array([0.5, 0.9, 0.1, 0.2]), lambda: held / held.sum(axis=2, keepdims=True))
    return replace(found, **changes)  # type: ignore[arg-type]


def test_copies_are_chosen_by_distance_or_load() -> None:
    assert nearest(view()).tolist() == [[1, 1, 3]]
    assert least_loaded(view()).tolist() == [[2, 2, 3]]


def test_two_choices_avoid_the_busiest_and_spread_the_rest() -> None:
    drawn = np.array([power_of_two(view(draw=d))[0] for d in range(600)])
    share = np.bincount(drawn[:, 0], minlength=4) / 600
    assert share[1] == 0 and share.argmax() == 2 and share[2] == pytest.approx(1 / 2, abs=0.07)  # best of two of four: in half of the draws
    assert set(drawn[:, 1]) == {2} and set(drawn[:, 2]) == {3}


def test_a_split_evens_out_and_is_drawn_in_proportion() -> None:
    held = view().held
    counts, speed = np.array([[6.0, 2.0, 4.0]]), np.array([1.0, 1.0, 1.0, 1.0])
    shares = lp_shares(held, counts, speed)
    assert shares.sum(axis=2) == pytest.approx(np.ones((1, 3)))
    assert (counts[0] @ shares[0]).max() == pytest.approx(4.0)  # expert 2 has one copy
    drawn = np.array([split(view(draw=d, shares=lambda: shares))[0, 0] for d in range(800)])
    assert np.bincount(drawn, minlength=4) / 800 == pytest.approx(shares[0, 0], abs=0.07)
