"""Nodes that are rented as load and prices ask: nothing is lost, nothing is paid twice, and nobody sees the future."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from sim.drive import replay
from sim.errors import UserError
from sim.events import Request
from sim.swarm.figures import figures
from sim.swarm.fleet import arbitrage, policy
from sim.swarm.fleet.bill import Bill
from sim.swarm.fleet.fleet import Fleet
from sim.swarm.fleet.sizes import Sizes
from sim.swarm.placing import Placer, scopes
from sim.swarm.server import Server
from sim.swarm.settings import Settings
from sim.swarm.study import Finished, Study, simulate
from sim.swarm.trouble import Trouble
from sim.tasks import PS_PER_S
from tests.sim.swarm.campaign import hold, poisson, small, study

SOON = "startup-s=3:look-s=1"
FAST = f"{SOON}:down-s=5"
NODES = Settings(design="nodes", routing="power-of-two", gossip_s=0.5, suspect_s=6.0, rebalance_s=0.0)


def pool(nodes: int = 2) -> Study:
    return study(burst(), cluster=small(nodes=nodes, memory=800_000_000, rtt_s=0.01))


def burst(later: int = 0) -> list[Request]:
    """A few requests, many from 20 to 30 s, few again to the end, others there where `later` is told."""
    calm = poisson(40, 0.5, seed=1)
    busy = [replace(r, arrival_ps=r.arrival_ps + 20 * PS_PER_S) for r in poisson(90, 9.0, seed=2, output=30)]
    moved = [replace(r, arrival_ps=r.arrival_ps + later * PS_PER_S // 10) if r.arrival_ps > 45 * PS_PER_S else r for r in calm]
    found = sorted([*moved, *busy], key=lambda r: (r.arrival_ps, r.prompt_tokens))
    return [replace(r, request_id=i) for i, r in enumerate(found)]


def run(text: str, s: Study | None = None, settings: Settings = NODES, moves: str = "none") -> Finished:
    return simulate(s or pool(), replace(settings, autoscale=policy.load(text), arbitrage=arbitrage.load(moves)))


def fleet(done: Finished) -> Fleet:
    assert done.server.fleet is not None
    return done.server.fleet


# What every run keeps ---------------------------------------------------------------------------------


@pytest.mark.parametrize("design", ["nodes", "replicas", "spread"])
def test_load_brings_nodes_and_its_end_takes_them_away(design: str) -> None:
    done = run(
        f"reactive:target=0.05:{FAST}", settings=replace(NODES, design=design, routing="nearest" if design == "spread" else NODES.routing)
    )
    hold(done)
    rents = fleet(done).pool.rents
    grown = [r for r in rents if r.since > 0 and r.serves is not None]
    assert grown and all(r.up is not None and r.since + 3 * PS_PER_S == r.up < r.serves for r in grown)  # type: ignore[operator]
    assert len(fleet(done).pool.rented) <= 6 and fleet(done).ups > 0
    if design == "nodes":
        assert any(r.until is not None for r in grown) and done.server.outcome.handed_over == 0


def test_the_pool_has_a_limit_and_a_floor() -> None:
    done = run(f"reactive:target=0.01:min=2:max=3:{FAST}", pool(3))
    hold(done)
    edges = sorted({t for r in fleet(done).pool.rents for t in (r.since, r.until) if t is not None})
    at = [sum(r.since <= t and (r.until is None or t < r.until) for r in fleet(done).pool.rents) for t in edges]
    assert max(at) == 3 and min(at) >= 2


def test_kept_nodes_hold_the_control_plane_and_are_never_given_back() -> None:
    done = run(f"reactive:target=0.05:min=3:{FAST}", pool(3))
    hold(done)
    kept = fleet(done).pool.kept
    assert len(kept) == 3 and set(done.server.control.names) == {"hub", *(done.server.plant.nodes[n] for n in kept)}
    assert done.server.control.committee.f == 1
    assert [r.until for r in fleet(done).pool.rents if r.node in kept] == [None] * 3


def test_a_node_that_is_not_to_be_had_is_paid_for_in_vain_and_another_is_ordered() -> None:
    """The nodes of A are gone when the burst comes, but for the one that serves; one of B goes while it starts."""
    s = pool()
    gone = [Trouble(at_s=1, what="crash", node="a-1"), Trouble(at_s=24.0, what="crash", node="b-0")]
    s = replace(s, troubles=tuple(gone))
    done = run(f"reactive:target=0.05:{FAST}", s)
    hold(done)
    names = done.server.plant.nodes
    assert "a-1" not in {names[r.node] for r in fleet(done).pool.rents}
    vain = [r for r in fleet(done).pool.rents if names[r.node] == "b-0" and r.since < 24 * PS_PER_S]
    assert vain and vain[0].until is not None and len({r.node for r in fleet(done).pool.rents}) >= 3


def test_notice_drains_a_node_and_another_takes_its_place() -> None:
    gone = [Trouble(at_s=40, what="preempt", node="a-1", notice_s=25)]
    done = run(f"reactive:target=0.05:start=2:{SOON}", replace(pool(), troubles=tuple(gone)))
    hold(done)
    [rent] = [r for r in fleet(done).pool.rents if done.server.plant.nodes[r.node] == "a-1"]
    assert rent.until is not None and 15 * PS_PER_S < rent.until < 40 * PS_PER_S
    assert done.server.outcome.suspected == done.server.outcome.handed_over == 0


def test_a_group_whose_draining_home_dies_takes_newcomers_at_its_next_one() -> None:
    """What had its first token at the old home is counted from there."""
    requests = [*poisson(60, 12.0, seed=2, output=800, prompt=400)]
    requests += [replace(r, arrival_ps=r.arrival_ps + 30 * PS_PER_S) for r in poisson(30, 1.0, seed=3)]
    s = study(
        [replace(r, request_id=i) for i, r in enumerate(requests)], [Trouble(at_s=5, what="preempt", node="b-0", notice_s=2)],
        cluster=small(memory=450_000_000, rtt_s=0.01),
    )  # fmt: skip
    done = run(f"fixed:min=6:{SOON}", s, replace(NODES, design="replicas"), moves="on")
    hold(done)
    jobs, names = done.server.requests.jobs.values(), s.plant.nodes
    assert "b-0" in {names[j.first_home] for j in jobs if j.first < 5 * PS_PER_S}
    assert "b-1" in {names[j.first_home] for j in jobs if j.arrival > 30 * PS_PER_S}


def test_a_queue_that_died_with_its_node_is_not_counted() -> None:
    crash = [Trouble(at_s=6, what="crash", node="a-1")]
    calm = [Request(300, 40, 12, 12, 60 * PS_PER_S)]
    crowd = [replace(r, prompt_tokens=min(r.prompt_tokens, 24_000)) for r in poisson(300, 100.0, seed=2, output=30, prompt=6000)]
    s = study([*crowd, *calm], crash, cluster=small(memory=450_000_000, rtt_s=0.01))
    done = run(f"fixed:min=1:start=2:{SOON}", s)
    hold(done)
    assert any(t.waiting for t in fleet(done).gauge.told.values()) and fleet(done).past[-1].waiting == 0


def test_a_draining_node_that_starts_anew_is_given_back() -> None:
    """It is back before it is missed, and its machine says nothing of leaving any more."""
    away = [Trouble(at_s=10.2, what="preempt", node="a-1", notice_s=1.0), Trouble(at_s=11.2, what="rejoin", node="a-1")]
    s = study(poisson(150, 3.0, seed=2, output=60), away, cluster=small(rtt_s=0.01))
    settings = replace(NODES, design="spread", routing="nearest", gossip_s=0.3)
    done = run("fixed:min=3:start=3:startup-s=3:look-s=2", s, settings, moves="on:margin=1e6")
    hold(done)
    assert not fleet(done).pool.nodes("draining")


@pytest.mark.parametrize(
    ("text", "design", "memory", "message"),
    [
        ("fixed:min=50", "nodes", 800_000_000, "--autoscale: min: is 50; must be 6 or less"),
        ("fixed:start=7", "nodes", 800_000_000, "--autoscale: start: is 7; must be 6 or less"),
        ("fixed:max=1", "spread", 110_000_000, "--autoscale: max: is 1; must be [2-6] or more"),
    ],
)
def test_limits_that_no_pool_can_keep_are_refused(text: str, design: str, memory: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        run(text, study(poisson(2, 1.0), cluster=small(memory=memory)), replace(NODES, design=design))


def test_whether_a_node_may_go_is_asked_of_the_home_that_its_group_has() -> None:
    """A and B hold every expert beside the dense weights while those are on A, the nearest; a group that lives on B needs C too."""
    values = small(nodes=1, memory=116_000_000).model_dump(exclude_none=True)
    values["gpus"]["large"] = values["gpus"]["G"] | {"memory_bytes": 200_000_000}
    values["nodes"]["b"]["gpu"] = "large"
    s = study(poisson(2, 1.0), cluster=type(pool().plant.cluster).model_validate(values))
    [group] = simulate(s, replace(NODES, design="spread", routing="nearest")).server.groups
    sizes, found = Sizes(Placer(s.plant, s.routes, s.policy, NODES), scopes(s.plant, "spread")), []
    for home in (0, 1):
        group.move(home, group.held)
        found.append((2,) in sizes.shrinks(frozenset({0, 1, 2}), [group]))
    assert found == [True, False]


def test_a_run_repeats_and_replays() -> None:
    s, settings = pool(), replace(NODES, autoscale=policy.load(f"predictive:window-s=2:target=0.2:{FAST}"))
    a, b = simulate(s, settings), simulate(s, settings)
    assert a.log.digest() == b.log.digest() and fleet(a).ups > 0
    replay(a.log, Server(s.plant, s.routes, s.policy, settings, lambda number: s.origins[number]))


@pytest.mark.parametrize("name", ["predictive:window-s=2:target=0.2", "reactive:target=0.05"])
def test_nobody_sees_what_comes_later(name: str) -> None:
    """Requests from 45 s on come at other times: no look before that, and no order, is another."""
    a, b = (run(f"{name}:{FAST}", replace(pool(), requests=tuple(burst(later)))) for later in (0, 37))
    before = [[s for s in fleet(d).past if s.at_s < 45] for d in (a, b)]
    assert before[0] == before[1] and [s.arrived for s in fleet(a).past] != [s.arrived for s in fleet(b).past]
    orders = [[(r.node, r.since, r.up) for r in fleet(d).pool.rents if r.since < 45 * PS_PER_S] for d in (a, b)]
    assert orders[0] == orders[1] and len(orders[0]) > 1


# Money ------------------------------------------------------------------------------------------------


def second_by_second(done: Finished, events: Sequence[Trouble], step_s: float = 0.25) -> float:
    """Dollars of GPU nodes, added up in small steps: is it rented now, is it up now, what does it cost now?"""
    plant, total = done.server.plant, 0.0
    for at_s in np.arange(step_s / 2, done.seconds, step_s):
        for rent in fleet(done).pool.rents:
            until_s = done.seconds if rent.until is None else rent.until / PS_PER_S
            mine = [e for e in events if e.node == plant.nodes[rent.node] and e.at_s <= at_s]
            states = [e.what for e in mine if e.what in ("crash", "preempt", "rejoin")]
            usd = [e.usd_per_hour for e in mine if e.what == "price"]
            if rent.since / PS_PER_S <= at_s < until_s and (not states or states[-1] == "rejoin"):
                total += (usd[-1] if usd else 3.6) * step_s / 3600
    return total


def market() -> list[Trouble]:
    """A is cheap until 20 s, B from then on; one of its nodes is taken away and comes again."""
    prices = [(0, "a", 2.0), (0, "b", 4.0), (20, "a", 90.0), (20, "b", 1.0), (60, "b", 1.5)]
    out = [Trouble(at_s=at, what="price", node=f"{r}-{i}", usd_per_hour=usd) for at, r, usd in prices for i in range(2)]
    return [*out, Trouble(at_s=55, what="preempt", node="b-0", notice_s=10), Trouble(at_s=57, what="rejoin", node="b-0")]


@pytest.mark.parametrize(("text", "moves"), [("fixed:min=2", "on:margin=0.1"), ("reactive:target=0.05", "none")])
def test_the_bill_is_rent_times_price(text: str, moves: str) -> None:
    s = replace(pool(), troubles=tuple(sorted(market(), key=lambda e: e.at_s)))
    done = run(f"{text}:{SOON}", s, moves=moves)
    hold(done)
    bill = Bill.of(s.plant, s.troubles, done.seconds, fleet(done).pool)
    assert bill.usd == pytest.approx(second_by_second(done, s.troubles), rel=0.02)
    whole = Bill.of(s.plant, s.troubles, done.seconds)
    assert whole.node_hours * 3600 == pytest.approx(6 * done.seconds - 2) and bill.node_hours < whole.node_hours


def test_replicas_move_to_where_it_is_cheaper_once_and_all_is_answered() -> None:
    s = replace(pool(), troubles=tuple(sorted(market()[:-2], key=lambda e: e.at_s)))
    moved, still = (run(f"fixed:min=2:{SOON}", s, moves=m) for m in ("on:margin=0.1", "none"))
    hold(moved)
    found, without = figures("nodes", moved, s), figures("nodes", still, s)
    names = s.plant.nodes
    assert fleet(moved).moves is not None
    assert [(names[m.old.node][0], names[m.new.node][0]) for m in fleet(moved).moves.done] == [("a", "b")] * 2  # type: ignore[union-attr]
    assert found["price_moves"] == 2 and 0 < found["migration_usd"] < found["cost_usd"] < without["cost_usd"]
    assert without["migration_usd"] == without["price_moves"] == 0 and moved.server.outcome.handed_over == 0


def test_a_move_that_costs_more_than_it_saves_is_not_made() -> None:
    s = replace(pool(), troubles=tuple(sorted(market()[:-2], key=lambda e: e.at_s)))
    moves = fleet(run(f"fixed:min=2:{SOON}", s, moves="on:margin=100000")).moves
    assert moves is not None and not moves.done and not moves.under_way


# Power ------------------------------------------------------------------------------------------------


def test_idle_power_counts_where_it_is_stated() -> None:
    s = pool()
    values = s.plant.cluster.model_dump(exclude_none=True)
    values["gpus"]["G"] |= {"idle_watts": 40, "idle_source": "made up"}
    stated = study(burst(), cluster=type(s.plant.cluster).model_validate(values))
    plain, idle = (figures("nodes", run(f"fixed:min=2:{SOON}", x), x) for x in (s, stated))
    assert plain["idle_energy_wh"] is None and plain["busy_energy_wh"] == idle["busy_energy_wh"] > 0
    worked_h = idle["busy_energy_wh"] / 200  # two GPUs of 100 W
    assert idle["idle_energy_wh"] == pytest.approx(80 * (idle["node_hours"] - worked_h))
