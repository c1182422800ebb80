"""Machines that are better in one respect."""

from __future__ import annotations

import pytest

from sim import machines, models
from sim.costs import CostModel
from sim.explain.upgrades import upgrades, with_capacity, with_latency, with_speed
from sim.machines.schema import Machine
from sim.tasks import Work

T4 = machines.load("t4")
MODEL = models.load("mixtral-8x7b")
COPY = Work("load_hidden", bytes=10**9)
ROWS = Work("post_attn", 64, 64, experts=8)


def solo_s(machine: Machine, lane: str, work: Work) -> float:
    return CostModel(machine, MODEL).solo_ps(lane, work) / 1e12


def latency_s(machine: Machine, lane: str, work: Work) -> float:
    return CostModel(machine, MODEL).row(lane, work)[0] / 1e12


def fluid_s(machine: Machine, lane: str, work: Work) -> float:
    return solo_s(machine, lane, work) - latency_s(machine, lane, work)


def test_a_capacity_speeds_up_what_it_binds_and_nothing_else() -> None:
    better = with_capacity(T4, "link.h2d", 1.25)
    assert fluid_s(better, "h2d", COPY) == pytest.approx(fluid_s(T4, "h2d", COPY) / 1.25, rel=1e-6)
    assert solo_s(better, "gpu", ROWS) == solo_s(T4, "gpu", ROWS)
    assert better.resources["link.h2d"].source.startswith("what if: 1.25 times")


def test_pacing_follows_the_link() -> None:
    lanes = tuple(lane.model_copy(update={"paced_bytes_per_s": 1e9}) if lane.name in ("h2d", "d2h") else lane for lane in T4.lanes)
    better = with_capacity(T4.model_copy(update={"lanes": lanes}), "link.h2d", 0.75)
    assert {name: lane.paced_bytes_per_s for name, lane in better.lane.items() if lane.paced_bytes_per_s} == {"h2d": 0.75e9, "d2h": 1e9}


def test_the_ops_of_one_lane_run_faster_up_to_what_its_resources_give() -> None:
    better = with_speed(T4, "gpu", 1.1)
    assert fluid_s(better, "gpu", ROWS) == pytest.approx(fluid_s(T4, "gpu", ROWS) / 1.1, rel=1e-6)
    assert latency_s(better, "gpu", ROWS) == latency_s(T4, "gpu", ROWS)
    assert solo_s(better, "h2d", COPY) == solo_s(T4, "h2d", COPY)
    assert fluid_s(with_speed(T4, "h2d", 1e3), "h2d", COPY) == pytest.approx(1e9 / T4.resources["link.h2d"].capacity, rel=1e-6)


def test_measured_curves_get_faster_too() -> None:
    row = T4.ops[0].model_copy(update={"lane": "h2d", "op": "page_to_gpu", "curve": ((1.0, 2.0), (10.0, 20.0))})
    (found,) = (r for r in with_speed(T4.model_copy(update={"ops": (row,)}), "h2d", 2.0).ops)
    assert found.curve == ((1.0, 1.0), (10.0, 10.0))


def test_latencies_shrink_alone() -> None:
    better = with_latency(T4, 2.0)
    assert latency_s(better, "gpu", ROWS) == pytest.approx(latency_s(T4, "gpu", ROWS) / 2)
    assert fluid_s(better, "gpu", ROWS) == pytest.approx(fluid_s(T4, "gpu", ROWS))


def test_one_upgrade_for_each_thing_in_use() -> None:
    found = upgrades(T4, {"link.h2d", "gpu.flops"}, {"h2d"}, 1.1)
    assert [(u.name, u.kind) for u in found] == [
        ("gpu.flops", "hardware"), ("link.h2d", "hardware"), ("ops on h2d", "software"), ("launches", "software"),
    ]  # fmt: skip
    link = found[1]
    assert (link.unit, link.before, link.after) == ("B/s", T4.resources["link.h2d"].capacity, pytest.approx(1.1 * (link.before or 0)))


def test_the_link_between_ranks_counts_as_used() -> None:
    two = machines.load("2xt4")
    peers = next(lane.peers for lane in two.lanes if lane.peers)
    assert peers in [u.name for u in upgrades(two, set(), {"gpu"}, 1.1)]
