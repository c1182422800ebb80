"""Scores, against sums done by hand and tokens drawn one by one."""

from __future__ import annotations

import numpy as np
import pytest

from sim.placement import Gpus, Placement, Sample, measures


def held(rows: list[list[int]], gpus: int) -> Placement:
    """One layer: the GPUs of each expert."""
    found = np.zeros((1, len(rows), gpus), np.bool_)
    for e, where in enumerate(rows):
        found[0, e, where] = True
    return Placement(found)


def fleet(speed: list[float], region: list[int] | None = None) -> Gpus:
    n = len(speed)
    where = np.array(region or [0] * n)
    return Gpus(tuple(f"g{g}" for g in range(n)), where, where, np.array(speed), np.full(n, 8))


def test_copies_share_the_load_evenly() -> None:
    placement, counts = held([[0], [0, 1], [1]], 2), np.array([[6.0, 4.0, 2.0]])
    assert measures.gpu_loads(placement, counts, fleet([1, 1])).tolist() == [[8.0, 4.0]]
    assert measures.balancedness(placement, counts, fleet([1, 1])) == pytest.approx(6 / 8)


def test_a_slow_gpu_counts_by_its_time() -> None:
    placement, counts = held([[0], [0, 1], [1]], 2), np.array([[6.0, 4.0, 2.0]])
    assert measures.balancedness(placement, counts, fleet([2, 1])) == pytest.approx((12 / 3) / (8 / 2))
    assert measures.balancedness(placement, counts, fleet([1, 2])) == pytest.approx((12 / 3) / 8)


def test_layers_count_alike_and_silent_ones_not_at_all() -> None:
    placement = Placement(np.repeat(held([[0], [1]], 2).held, 3, axis=0))
    counts = np.array([[1000.0, 1000.0], [3.0, 1.0], [0.0, 0.0]])
    assert measures.balancedness(placement, counts, fleet([1, 1])) == pytest.approx((1 + 2 / 3) / 2)


def test_touched_counts_different_gpus() -> None:
    sample = Sample(np.array([[[0, 1]], [[0, 2]], [[2, 0]]], np.int16), np.zeros(3, np.int64))
    assert measures.gpus_touched(held([[0], [0], [1]], 2), sample, fleet([1, 1])) == pytest.approx((1 + 2 + 2) / 3)


def test_touched_with_copies_is_what_drawing_copies_gives() -> None:
    rng = np.random.default_rng(0)
    placement = held([[0, 1], [1, 2, 3], [2], [0, 3]], 4)
    sample = Sample(np.array([[[0, 1, 3]], [[1, 2, 3]]], np.int16), np.zeros(2, np.int64))
    draws = []
    for _ in range(20_000):
        token = sample.experts[rng.integers(2), 0]
        draws.append(len({int(rng.choice(np.flatnonzero(placement.held[0, e]))) for e in token}))
    assert measures.gpus_touched(placement, sample, fleet([1] * 4)) == pytest.approx(np.mean(draws), abs=0.02)


def test_a_region_with_copies_of_its_own_serves_itself() -> None:
    gpus = fleet([1, 1], [0, 1])
    sample = Sample(np.array([[[0, 1]]], np.int16), np.zeros(1, np.int64))
    both, apart = held([[0, 1], [0, 1]], 2), held([[0], [1]], 2)
    assert measures.regions_touched(both, sample, gpus) == 1
    assert measures.regions_touched(apart, sample, gpus) == 2
    half = held([[0, 1], [1]], 2)
    assert measures.regions_touched(half, sample, gpus) == pytest.approx((2 + 1) / 2)
    assert measures.gpu_loads(half, np.array([[4.0, 2.0]]), gpus).tolist() == [[2.0, 4.0]]


def test_moved_counts_copies_that_must_be_loaded() -> None:
    before, after = held([[0], [0, 1], [1]], 2), held([[1], [0], [1]], 2)
    assert after.moved(before) == 1
    assert before.moved(after) == 2
    assert after.moved(None) == 3


def test_placement_survives_json() -> None:
    placement = held([[0], [0, 1], [1]], 2)
    assert placement.to_json() == {"gpus": 2, "experts": 3, "layers": [[[0, 1], [1, 2]]]}
    assert Placement.from_json(placement.to_json(), "x") == placement
