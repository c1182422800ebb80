"""Odd studies: late requests, events after the end, nodes that come back with nothing, networks that lose nearly all."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sim.errors import UserError
from sim.events import Request
from sim.swarm import trouble
from sim.swarm.figures import figures
from sim.swarm.settings import Settings
from sim.swarm.study import Study, simulate
from sim.swarm.trouble import Trouble
from sim.tasks import PS_PER_S
from tests.sim.swarm.campaign import hold, poisson, small, study, uneven

REPLICAS = Settings(design="replicas", rebalance_s=0.0)


def at(*arrivals_s: float) -> list[Request]:
    return [Request(i, 50, 5, 5, round(s * PS_PER_S)) for i, s in enumerate(arrivals_s)]


def test_what_is_given_up_in_the_instant_in_which_it_ends_is_no_surprise() -> None:
    """With nine messages of ten lost, nodes are given up again and again, some as the timer rings that says something again."""
    hold(simulate(study(at(*(i / 10 for i in range(20)))), replace(REPLICAS, loss=0.9)))


def test_a_request_that_comes_after_a_long_silence_is_answered() -> None:
    hold(simulate(study(at(1, 500)), replace(REPLICAS, patience_s=60)))


def test_a_study_that_computes_goes_on_though_nothing_is_answered_for_long() -> None:
    long = [Request(0, 50, 400, 400, PS_PER_S)]
    done = simulate(study(long), Settings(rebalance_s=0.0, patience_s=60))
    assert done.seconds > 120
    hold(done)


def test_a_study_ends_with_its_last_answer_whatever_happens_later() -> None:
    later = [Trouble(at_s=100, what="crash", node="a-0"), Trouble(at_s=8e6, what="rejoin", node="a-0")]
    alone, followed = (simulate(study(at(1, 2), events), REPLICAS) for events in ((), later))
    assert alone.seconds == followed.seconds < 10


def test_a_node_that_comes_back_with_nothing_computes_nothing() -> None:
    """It is back before anybody misses it, with a request under way that would have been done before gossip tells of the new start."""
    away = [Trouble(at_s=1.2, what="crash", node="a"), Trouble(at_s=1.4, what="rejoin", node="a")]
    asked = study([Request(0, 50, 300, 300, PS_PER_S)], cluster=small(nodes=1, memory=800_000_000))
    calm, hit = (simulate(replace(asked, troubles=trouble.checked(tuple(t), asked.plant, "")), REPLICAS) for t in ([], away))
    job = calm.server.requests.jobs[0]
    assert asked.plant.nodes[job.first_home] == "a" and 1.2 < job.answered / PS_PER_S < 2
    hold(hit)
    assert hit.server.requests.jobs[0].moves == 1 and hit.server.requests.jobs[0].answered > job.answered + PS_PER_S


def test_a_study_without_requests_or_with_one_that_fits_nowhere_is_refused() -> None:
    with pytest.raises(UserError, match="there are none, and no --duration"):
        simulate(study([]), REPLICAS)
    with pytest.raises(UserError, match="request 0 has 1,000,000 tokens of prompt and 5 of output; the KV cache of a group holds 21,972"):
        simulate(study([Request(0, 1_000_000, 5, 5, 0)]), REPLICAS)


LONG = Request(30, 20_000, 20, 20, 4 * PS_PER_S)
"""More than the KV cache of any node of `uneven` holds, a-0 and b-1 apart."""


def long_one(troubles: list[Trouble]) -> Study:
    """LONG among others, all of which come in at the hub: a-0 is the nearest home."""
    found = study([*poisson(30, 2.0), LONG], troubles, cluster=uneven())
    return replace(found, origins=("hub",) * 31)


@pytest.mark.parametrize("design", ["spread", "replicas"])
def test_a_request_goes_to_a_home_that_can_hold_it(design: str) -> None:
    """Its home is lost with the request under way: b-1 is left, although others are nearer."""
    settings = Settings(design=design, rebalance_s=0.0, suspect_s=4.0, gossip_s=0.5)
    done = simulate(long_one([Trouble(at_s=4.1, what="crash", node="a-0")]), settings)
    hold(done)
    job = done.server.requests.jobs[LONG.request_id]
    assert done.server.plant.nodes[job.first_home] == "b-1"


@pytest.mark.parametrize("design", ["spread", "replicas"])
@pytest.mark.parametrize("back", [False, True])
def test_a_request_that_no_home_can_hold_waits_for_one(design: str, back: bool) -> None:
    """All others are answered meanwhile, and where none comes back the study ends and says what is lost."""
    events = [Trouble(at_s=4.1, what="crash", node=n) for n in ("a-0", "b-1")]
    events += [Trouble(at_s=60, what="rejoin", node="b-1")] if back else []
    asked = long_one(events)
    settings = Settings(design=design, rebalance_s=0.0, suspect_s=4.0, gossip_s=0.5, patience_s=100)
    done = simulate(asked, settings)
    found, job = figures(design, done, asked), done.server.requests.jobs[LONG.request_id]
    assert (found["answered"], found["lost"]) == (31 - (not back), int(not back))
    if back:
        hold(done)
        assert done.server.plant.nodes[job.first_home] == "b-1" and job.first > 60 * PS_PER_S
    else:
        assert done.seconds < 300 and job.first < 0


@pytest.mark.parametrize(
    ("what", "message"),
    [
        (["rejoin"], r"events\[0\]: rejoin of a-0 at 1 s; a crash or preempt of it must come before"),
        (["crash", "rejoin", "rejoin"], r"events\[2\]: rejoin of a-0 at 3 s"),
        (["heal"], r"events\[0\]: heal of A at 1 s; a partition of it must come before"),
    ],
)
def test_what_ends_nothing_is_refused(what: list[str], message: str) -> None:
    places = {"heal": {"region": "A"}}
    events = tuple(Trouble(at_s=i, what=w, **places.get(w, {"node": "a-0"})) for i, w in enumerate(what, 1))  # type: ignore[arg-type]
    with pytest.raises(UserError, match=message):
        trouble.checked(events, study(poisson(1, 1.0)).plant, "events.yaml")
