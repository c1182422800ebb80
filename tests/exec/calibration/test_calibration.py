"""Calibration: what it makes of its measurements. The measurements themselves are scored by `exec validate`."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from exec.calibration import copies, curves, host, insitu, measure, profile, storage
from exec.calibration.links import relink
from exec.weights import random_weights
from sim import machines
from sim.costs import CostModel
from sim.demands import curve_at, ratio_at
from sim.tasks import Work
from tests.exec import profiles, tiny


def test_a_profile_survives_its_file(tmp_path: Path) -> None:
    made = profiles.machine()
    profile.write(made, tmp_path / "p.yaml")
    assert machines.load(tmp_path / "p.yaml") == made
    assert list(tmp_path.iterdir()) == [tmp_path / "p.yaml"]


def test_every_component_of_every_op_is_measured() -> None:
    spec = tiny.spec()
    rows = list(curves.measure(spec, random_weights(spec, 0), "gpu", 1))
    assert all(s > 0 for row in rows for _, s in row.curve)
    made = profiles.machine()
    ops = (*(op for op in made.ops if op.lane != "gpu"), *rows)
    costs = CostModel(made.model_copy(update={"ops": ops}), spec)
    for op in ("embed", "pre_attn", "attn_prefill", "attn_decode", "post_attn", "sample"):
        assert costs.solo_ps("gpu", Work(op, tokens=8, sequences=8, context=64, experts=spec.experts)) > 0, op


def test_copies_cost_cpu_time_and_paced_ones_a_little_more() -> None:
    row = copies.measure("h2d", 2e9)
    sizes, seconds = zip(*row.curve, strict=True)
    assert sizes == tuple(float(s) for s in copies.SIZES) and min(seconds) > 0
    assert seconds[-1] > seconds[0] and 0 <= row.latency_s < 0.1


def test_other_links_of_the_same_computer() -> None:
    made = profiles.machine()
    fast = relink(made, {"h2d": 4e9})
    assert fast.lane["h2d"].paced_bytes_per_s == 4e9 and fast.resources["link.h2d"].capacity == 4e9
    native = relink(made, {"h2d": 0, "d2h": 0, "nvme": 0})
    assert native.clock == "measured" and native.lane["h2d"].paced_bytes_per_s is None
    copy = Work("page_to_gpu", bytes=1_000_000)
    spec = tiny.spec()
    assert CostModel(fast, spec).solo_ps("h2d", copy) == pytest.approx(250_000_000, rel=0.01)
    assert CostModel(native, spec).solo_ps("h2d", copy) == pytest.approx(100_000_000, rel=0.01)  # the core that copies: the curve
    assert relink(made, {}).model_dump() == made.model_dump()


def test_ratios_are_of_sums_over_octaves_with_enough_tasks() -> None:
    size = np.array([8.0, 9, 10, 100, 110, 120, 4000])
    measured = np.array([2.0, 2.0, 2.0, 1.0, 3.0, 2.0, 5.0])
    (a, ra), (b, rb) = insitu._ratios(size, measured, np.ones(7), np.ones(7))
    assert (a, b) == (9.0, 110.0) and ra == pytest.approx(2.0)  # one task alone makes no point
    assert 1.9 < rb < 2.0  # the largest is cut to the 98th percentile


def test_runs_in_which_the_lane_limits_count_alone_where_there_are_any() -> None:
    size, share = np.full(7, 10.0), np.array([0.9, 0.9, 0.9, 0.2, 0.2, 0.2, 0.2])
    ((_, ratio),) = insitu._ratios(size, np.where(share > 0.5, 1.0, 3.0), np.ones(7), share)
    assert ratio == pytest.approx(1.0)
    ((_, ratio),) = insitu._ratios(size, np.full(7, 3.0), np.ones(7), np.full(7, 0.2))
    assert ratio == pytest.approx(3.0)


def test_ratios_are_read_on_a_logarithmic_scale_and_flat_outside() -> None:
    ratios = ((10.0, 2.0), (1000.0, 1.0))
    assert [ratio_at(ratios, s) for s in (1, 10, 100, 1000, 1e6)] == pytest.approx([2, 2, 1.5, 1, 1])
    assert ratio_at((), 5) == 1.0


def test_curves_are_lines_between_points_and_go_on_beyond_the_last() -> None:
    curve = ((1.0, 10.0), (3.0, 20.0), (5.0, 40.0))
    assert [curve_at(curve, x) for x in (0, 1, 2, 5, 7)] == [10, 10, 15, 40, 60]


@pytest.mark.parametrize("scale", [0.6, 1.0, 2.0])
def test_traffic_is_what_explains_the_slowdown(scale: float) -> None:
    rate, other, capacity = 10e9, 12e9, 16e9
    want = scale * rate
    share = want if want + other <= capacity else max(capacity - other, min(want, capacity / 2))
    assert host._fit(rate, other, want / share, capacity) == pytest.approx(scale if want / share >= host.NOTICED else 0.0, abs=0.02)


def test_timing_counts_only_the_call(monkeypatch) -> None:
    clock, before = SimpleNamespace(now=0.0, perf_counter=lambda: clock.now), []
    monkeypatch.setattr(measure, "time", clock)

    def passes(seconds: float) -> None:
        clock.now += seconds

    seconds = measure.solo(lambda: passes(2.0), lambda: (before.append(1), passes(10.0)), budget_s=0.01, least=3, most=3)
    assert len(before) == 3 and seconds == 2.0


def test_works_side_by_side_all_get_their_turns() -> None:
    calls = [0, 0]

    def bump(i: int) -> None:
        calls[i] += 1

    seconds = measure.together([lambda: bump(0), lambda: bump(1)], budget_s=0.05)
    assert len(seconds) == 2 and min(calls) >= 4


def test_whoever_had_no_time_has_run_once_all_the_same() -> None:
    """As on a computer that was halted in between: a profile must not hold the median of nothing."""
    assert all(s >= 0 for s in measure.together([lambda: None, lambda: None], budget_s=0.0))


@pytest.mark.parametrize("pace", [None, 1e9])
def test_loads_from_disk_are_measured(pace: float | None) -> None:
    row, rate = storage.measure(pace)
    assert (row.lane, row.op) == ("nvme", "*") and 0 <= row.latency_s < 1 and rate > 1e6
    sizes, seconds = zip(*row.curve, strict=True)
    assert sizes == tuple(float(s) for s in storage.SIZES) and min(seconds) > 0
    made = profiles.machine()
    made = made.model_copy(update={"ops": tuple(row if op.lane == "nvme" else op for op in made.ops)})
    load = Work("read_expert", bytes=10_000_000)
    assert CostModel(made, tiny.spec()).solo_ps("nvme", load) >= 20_000_000_000, "the rig's pace"
