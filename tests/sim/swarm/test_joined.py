"""Serving joined with what is between nodes: changes wait for a quorum, views are gossip, restores are chunks, the lost is resaid."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from sim.placement.policy import load as load_policy
from sim.swarm.control import seats
from sim.swarm.figures import figures
from sim.swarm.settings import Settings
from sim.swarm.shelves import CHUNK_BYTES, Manifest, Shelves
from sim.swarm.study import Finished, Study, simulate
from sim.swarm.trouble import Trouble
from tests.sim.swarm.campaign import hold, poisson, small, study

BUSY = Settings(rebalance_s=5.0, hysteresis=0.1, spares=16, gossip_s=0.5, suspect_s=6.0)


def shifted(silent: int = 0) -> Finished:
    """The first placement knows nothing of the load, so that a better one is wanted after 5 s."""
    s = study(poisson(40, 1.0))
    s.routes.counts = np.ones_like(s.routes.counts)
    done = simulate(Study(s.plant, s.routes, load_policy("eplb"), s.requests, s.origins), replace(BUSY, silent=silent))
    hold(done)
    return done


# The control plane ----------------------------------------------------------------------------------


def test_seats_are_the_coordinator_and_a_node_of_each_region() -> None:
    plant = study(poisson(1, 1.0)).plant
    assert seats(plant, 1) == ("hub", "a-0", "b-0", "c-0")
    assert seats(plant, 2) == seats(plant, 9) == ("hub", "a-0", "b-0", "c-0", "a-1", "b-1", "c-1")
    assert seats(study(poisson(1, 1.0), cluster=small(nodes=1)).plant, 5) == ("hub", "a", "b", "c")


def test_a_change_waits_for_a_quorum_over_the_links() -> None:
    done = shifted()
    network, names = done.server.plant.network, done.server.control.names
    rtts = sorted(network.rtt_s("hub", n) for n in names[1:])
    waits = done.server.control.waits_s
    assert waits and min(waits) >= rtts[1] and max(waits) < 3 * rtts[2]  # its own word and two others', three phases
    asked = done.server.settings.rebalance_s
    assert done.server.outcome.moves[0][0] > asked + waits[0]
    assert done.server.control.mail.bytes > 0


def test_a_quorum_is_all_that_is_needed_and_without_one_the_old_placement_goes_on() -> None:
    assert len(shifted(silent=1).server.control.waits_s) >= 1
    none = shifted(silent=2)
    assert none.server.outcome.rebalances >= 1 and none.server.control.waits_s == []
    assert none.server.outcome.moves == [] and len(none.server.changes.wanted) == 1


# Gossip ---------------------------------------------------------------------------------------------


def test_views_are_as_old_as_gossip_makes_them() -> None:
    s = study(poisson(150, 2.0))
    settings = replace(BUSY, design="replicas", routing="least-loaded", rebalance_s=0.0, suspect_s=60.0)
    ages = [simulate(s, replace(settings, gossip_s=p)).server.views.mean_age_s for p in (0.5, 2.0, 8.0)]
    assert None not in ages and 0.25 < ages[0] < 2.0 < ages[1] * 2 < ages[2]  # type: ignore[operator]
    oracle = simulate(s, replace(settings, fresh_loads=True)).server.views
    alone = replace(settings, fan_out=1, loss=0.5)
    assert oracle.mail.sent > 0 and simulate(s, alone).server.views.mean_age_s > ages[0]  # type: ignore[operator]


def test_a_node_is_missed_by_gossip_alone() -> None:
    s = study(poisson(60, 2.0), [Trouble(at_s=6, what="crash", node="a-0")])
    done = simulate(s, replace(BUSY, design="replicas", rebalance_s=0.0))
    hold(done)
    known = done.server.views.entry("hub", 0)
    assert known is not None and known.stamp < 6.5e12 and done.server.placer.dead == {0}


def test_the_last_words_of_a_node_that_is_given_up_are_no_old_view() -> None:
    s = study(poisson(60, 0.5), [Trouble(at_s=6, what="crash", node="a-1")])
    done = simulate(s, replace(BUSY, rebalance_s=0.0))
    assert done.server.placer.dead == {1} and done.seconds > 60
    assert done.server.views.mean_age_s is not None and done.server.views.mean_age_s < 2.0  # of all six it would be a sixth of the run


# Checkpoints ----------------------------------------------------------------------------------------


def restored(disk: float) -> Finished:
    events = [Trouble(at_s=6, what="crash", node="a-0"), Trouble(at_s=16, what="rejoin", node="a-0", disk=disk)]
    done = simulate(study(poisson(60, 2.0), events), replace(BUSY, rebalance_s=0.0))
    hold(done)
    return done


def test_a_replacement_is_given_the_chunks_that_its_disk_lacks() -> None:
    new, half, same = (figures("spread", restored(d), study(poisson(1, 1.0))) for d in (0.0, 0.5, 1.0))
    assert new["restored_bytes"] > half["restored_bytes"] > same["restored_bytes"]
    assert same["deduplicated_bytes"] > half["deduplicated_bytes"] > new["deduplicated_bytes"]
    assert new["from_store_bytes"] <= new["restored_bytes"] <= new["wire_bytes"]["wan"] + new["wire_bytes"]["region"]


@pytest.mark.parametrize("at_s", [15.2, 15.5, 17.0])  # the dense weights are on their way, then those of two layers
def test_a_source_that_crashes_in_the_middle_of_a_restore_and_stays_away_is_replaced(at_s: float) -> None:
    """C comes back empty and fetches from A, which C's group does not use, and which is gone for good before all is there."""
    events = [Trouble(at_s=4, what="crash", node="c"), Trouble(at_s=14, what="rejoin", node="c")]
    events.append(Trouble(at_s=at_s, what="crash", node="a"))
    s = study(poisson(60, 2.0), events, cluster=small(nodes=1, memory=800_000_000))
    done = simulate(s, replace(BUSY, design="replicas", rebalance_s=0.0))
    hold(done)
    assert {g.name: (g.up, g.ready) for g in done.server.groups} == {"A": (False, False), "B": (True, True), "C": (True, True)}
    assert [(group, copies) for _, group, copies in done.server.outcome.moves] == [("C", 32)] and not done.server.changes.migrations
    model = s.plant.model
    whole = model.dense_bytes + 32 * model.expert_bytes
    assert done.server.shelves.from_store_bytes == 0 and whole < done.server.shelves.restored_bytes < 1.5 * whole  # B has it all


def test_chunks_come_once_from_the_nearest_and_a_cut_transfer_keeps_whole_ones() -> None:
    plant = study(poisson(1, 1.0)).plant
    shelves = Shelves(plant)
    held = np.zeros((4, 8, 12), np.bool_)
    held[0, 0, 0] = held[0, 0, 11] = True  # expert 0 on a-0 and c-1
    shelves.holds(held, 5)
    blobs = ["expert/0/0", "expert/0/1"]
    names = shelves.missing(1, [*blobs, blobs[0]], 3 * plant.model.expert_bytes)
    assert len(names) == len(set(names)) + len(plant.manifest.parts[blobs[0]])
    names = shelves.missing(1, blobs, 2 * plant.model.expert_bytes)
    sources = shelves.sources(1, names, frozenset(range(6)))
    parts = plant.manifest.parts
    assert {k: tuple(v) for k, v in sources.items()} == {"a-0": parts[blobs[0]], "hub": parts[blobs[1]]}
    assert set(shelves.sources(1, names, frozenset({1, 5}))) == {"c-1", "hub"}
    wanted = [*plant.manifest.parts["dense"]]
    shelves.sent(7, "hub", 1, wanted)
    assert shelves.ended(7, 0.5) == wanted[len(wanted) // 2 :] == shelves.missing(1, ["dense"], 0)
    assert shelves.ended(7) == []


def test_a_manifest_names_chunks_by_content() -> None:
    model = study(poisson(1, 1.0)).plant.model
    a, b = Manifest.of(model), Manifest.of(model)
    assert a.root == b.root and Manifest.of(replace(model, name="another")).root != a.root
    assert sum(a.sizes.values()) == pytest.approx(model.moe_layers * model.experts * model.expert_bytes + model.dense_bytes)
    assert max(a.sizes.values()) <= CHUNK_BYTES


# Losses ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("design", ["spread", "edge"])
def test_lost_messages_cost_time_and_nothing_else(design: str) -> None:
    s = study(poisson(40, 2.0))
    settings = replace(BUSY, design=design, rebalance_s=0.0, suspect_s=30.0)
    clean, lossy = simulate(s, settings), simulate(s, replace(settings, loss=0.2))
    hold(clean)
    hold(lossy)
    assert clean.server.outcome.discarded == 0 < lossy.server.outcome.discarded
    mean = [np.mean([j.answered - j.arrival for j in d.server.requests.jobs.values()]) for d in (clean, lossy)]
    assert mean[1] > mean[0]
    assert lossy.server.views.mail.lost > clean.server.views.mail.lost
