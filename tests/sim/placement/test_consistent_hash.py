"""Consistent hashing: fair shares, bounds, and what a new GPU costs."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.placement import Gpus, Placement, Problem
from sim.placement.consistent_hash import ConsistentHash


def fleet(gpus: int, slots: int) -> Gpus:
    zeros = np.zeros(gpus, np.int64)
    return Gpus(tuple(f"g{g}" for g in range(gpus)), zeros, zeros, np.ones(gpus), np.full(gpus, slots))


def widened(placement: Placement) -> Placement:
    return Placement(np.pad(placement.held, ((0, 0), (0, 0), (0, 1))))


@settings(max_examples=25)
@given(st.integers(2, 9), st.integers(8, 64), st.integers(1, 3), st.integers(0, 5), st.sampled_from((0.0, 0.25, 1.0)))
def test_a_new_gpu_takes_at_most_its_fair_share(gpus: int, experts: int, layers: int, seed: int, slack: float) -> None:
    windows, policy = np.ones((1, layers, experts)), ConsistentHash(slack=slack)
    before = policy.place(Problem(windows, fleet(gpus, experts), seed=seed))
    after = policy.place(Problem(windows, fleet(gpus + 1, experts), seed=seed, current=widened(before)))
    old = widened(before)
    bound, fair = (int(np.ceil(experts * (1 + x) / (gpus + 1))) for x in (slack, 0.0))
    forced = np.maximum(before.used - bound, 0).sum(axis=1)
    moved = (after.held & ~old.held).sum(axis=(1, 2))
    assert (moved <= np.maximum(forced, fair)).all()
    assert (after.used[:, gpus] <= bound).all()
    assert not (after.held & ~old.held)[:, :, :gpus].any(axis=(1, 2))[forced <= bound].any(), "only the newcomer gets copies"


@pytest.mark.parametrize("slack", [0.0, 0.25])
def test_without_a_current_placement_a_new_gpu_moves_about_its_share(slack: float) -> None:
    windows, policy = np.ones((1, 8, 256)), ConsistentHash(virtual=256, slack=slack)
    before = policy.place(Problem(windows, fleet(15, 256)))
    after = policy.place(Problem(windows, fleet(16, 256)))
    share = 8 * 256 / 16
    assert 0.3 * share < after.moved(widened(before)) < (4.0 if slack == 0 else 2.5) * share


@settings(max_examples=25)
@given(st.integers(1, 8), st.integers(4, 64), st.sampled_from((0.0, 0.1, 0.5)))
def test_no_gpu_is_above_its_bound(gpus: int, experts: int, slack: float) -> None:
    found = ConsistentHash(slack=slack).place(Problem(np.ones((1, 2, experts)), fleet(gpus, experts)))
    assert found.used.max() <= np.ceil(experts * (1 + slack) / gpus)


def test_copies_are_as_many_as_asked_and_as_slots_allow() -> None:
    policy = ConsistentHash(replicas=3)
    assert (policy.place(Problem(np.ones((1, 2, 16)), fleet(5, 16))).copies == 3).all()
    assert (policy.place(Problem(np.ones((1, 2, 16)), fleet(5, 7))).copies == 2).all()


def test_more_slots_get_more_experts() -> None:
    zeros = np.zeros(2, np.int64)
    gpus = Gpus(("small", "large"), zeros, zeros, np.ones(2), np.array([100, 300]))
    used = ConsistentHash(virtual=512).place(Problem(np.ones((1, 4, 300)), gpus)).used.sum(axis=0)
    assert used[0] / used.sum() == pytest.approx(0.25, abs=0.08)
