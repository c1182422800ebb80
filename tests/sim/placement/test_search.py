"""The search: its bookkeeping against sums from scratch, and what it finds against all placements of tiny problems."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings

from sim.placement import Gpus, Placement, Problem, measures
from sim.placement.layer import layer_of
from sim.placement.policy import load
from sim.placement.search import anneal
from sim.placement.sets import token_sets
from tests.sim.placement.problems import clustered, counted, problems


@settings(max_examples=15)
@given(problem=problems(tokens=True))
def test_what_the_search_keeps_is_what_a_sum_from_scratch_gives(problem: Problem) -> None:
    assert problem.sample is not None
    gpus = problem.gpus
    start = load("eplb:mode=global").place(problem).held[0]
    sets = token_sets(problem.sample, 0)
    loads = problem.windows[:, 0] + 1
    state = layer_of(start, loads, np.full(len(loads), 1 / len(loads)), gpus.speed, sets, gpus.node)
    found = anneal(state, 0.5, 0.0, 3000, problem.seed)
    fresh = layer_of(state.held, loads, state.weight, gpus.speed, sets, gpus.node)
    for name in ("x", "copies", "loads", "y", "miss", "near", "used"):
        assert getattr(state, name) == pytest.approx(getattr(fresh, name), abs=1e-9), name
    assert (found.sum(axis=0) == start.sum(axis=0)).all() and found.any(axis=1).all()
    worth = [_worth(h, problem, loads) for h in (start, found)]
    assert worth[1] >= worth[0] - 1e-9


def _worth(held: np.ndarray, problem: Problem, loads: np.ndarray) -> float:
    """The objective: mean balancedness over the loads - half the nodes touched."""
    assert problem.sample is not None
    placement, flat = Placement(held[None]), problem.gpus
    one_region = Gpus(flat.names, flat.node, np.zeros(len(flat), np.int64), flat.speed, flat.slots)
    balance = np.mean([measures.balancedness(placement, row[None], one_region) for row in loads])
    sample = type(problem.sample)(problem.sample.experts[:, :1], problem.sample.window)
    return float(balance - 0.5 * measures.touched(placement, sample, one_region, flat.node))


def everything(slots: list[int], experts: int) -> list[np.ndarray]:
    """All placements of one layer that fill the slots."""
    rows = [list(itertools.combinations(range(experts), s)) for s in slots]
    found = []
    for choice in itertools.product(*rows):
        held = np.zeros((experts, len(slots)), np.bool_)
        for g, chosen in enumerate(choice):
            held[list(chosen), g] = True
        if held.any(axis=1).all():
            found.append(held)
    return found


@pytest.mark.parametrize("seed", range(3))
def test_against_all_placements_optimal_is_best_and_robust_near(seed: int) -> None:
    rng = np.random.default_rng(seed)
    windows = np.floor(rng.lognormal(3, 1, (1, 1, 5)))
    zeros = np.zeros(3, np.int64)
    gpus = Gpus(("a", "b", "c"), zeros, zeros, np.array([1.0, 1.0, 0.5]), np.array([2, 3, 2]))
    problem = Problem(windows, gpus)
    filled = [[2, 3, 2], [1, 3, 2], [2, 2, 2], [2, 3, 1]]
    best = [max(measures.balancedness(Placement(h[None]), windows[0], gpus) for h in everything(slots, 5)) for slots in filled]
    assert measures.balancedness(load("robust").place(problem), windows[0], gpus) > best[0] - 0.03
    told: list[str] = []
    assert measures.balancedness(load("optimal:limit-s=20").place(problem, told.append), windows[0], gpus) >= max(best) - 1e-6
    assert told == ["layer 1 of 1: within 0.00% of the optimum"]


def test_optimal_leaves_large_layers_to_the_search_and_says_so() -> None:
    problem = Problem(np.ones((1, 1, 256)), Gpus.even(32, 256, 32))
    told: list[str] = []
    load("optimal").place(problem, told.append).check(problem)
    assert len(told) == 1 and "nothing is proven" in told[0]


def test_affinity_finds_the_groups_that_tokens_use() -> None:
    sample = clustered()
    problem = Problem(counted(sample, 16), Gpus.even(4, 16), sample)
    found = load("affinity").place(problem)
    assert measures.gpus_touched(found, sample, problem.gpus) == pytest.approx(1.0)
    assert measures.gpus_touched(load("round-robin").place(problem), sample, problem.gpus) > 1.5


def test_affinity_keeps_tokens_on_their_gpu_from_layer_to_layer() -> None:
    sample = clustered(layers=3)
    problem = Problem(counted(sample, 16), Gpus.even(4, 16), sample)
    held = load("affinity").place(problem).held
    homes = [held[layer].argmax(axis=1)[sample.experts[:, layer, 0]] for layer in range(3)]
    assert (homes[0] == homes[1]).all() and (homes[1] == homes[2]).all()


def test_joint_is_between_balance_and_affinity() -> None:
    sample = clustered(tokens=1200, seed=1)
    problem = Problem(counted(sample, 16), Gpus.even(2, 16), sample)
    points = []
    for name in ("robust", "joint:pull=0.1", "affinity"):
        placement = load(name).place(problem)
        balance = measures.balancedness(placement, problem.windows[0], problem.gpus)
        points.append((measures.gpus_touched(placement, sample, problem.gpus), balance))
    assert points[0][0] > points[1][0] >= points[2][0] - 1e-9
    assert points[0][1] >= points[1][1] - 1e-9 and points[1][1] >= points[2][1] - 1e-9


def test_robust_separates_experts_that_rise_together() -> None:
    """Pooled, four experts are alike; in each window two of them carry everything. Only apart are both windows even."""
    windows = np.array([[[9.0, 9.0, 1.0, 1.0]], [[1.0, 1.0, 9.0, 9.0]]])
    problem = Problem(windows, Gpus.even(2, 4))
    held = load("robust").place(problem).held[0]
    assert held[0].argmax() != held[1].argmax() and held[2].argmax() != held[3].argmax()


def test_robust_with_a_limit_moves_no_more_and_gains_most() -> None:
    rng = np.random.default_rng(0)
    windows = np.floor(rng.lognormal(4, 1, (3, 6, 16)))
    problem = Problem(windows, Gpus.even(4, 16, 4))
    now = load("eplb").place(Problem(windows[:1], problem.gpus))
    problem = problem.with_current(now)
    full, half = load("robust").place(problem), load("robust:moves=0.5").place(problem).check(problem)
    assert half.moved(now) <= full.moved(now) / 2
    score = [np.mean([measures.balancedness(p, w, problem.gpus) for w in windows]) for p in (now, half, full)]
    assert score[1] - score[0] > 0.5 * (score[2] - score[0]) > 0
    assert load("robust:moves=3").place(problem).moved(now) <= 3


def test_renaming_equal_gpus_keeps_what_is_loaded() -> None:
    windows = np.floor(np.random.default_rng(0).lognormal(3, 1, (1, 4, 12)))
    problem = Problem(windows, Gpus.even(4, 12))
    placement = load("robust").place(problem)
    turned = Placement(np.ascontiguousarray(placement.held[:, :, [2, 0, 3, 1]]))
    assert load("robust").place(problem.with_current(turned)).moved(turned) == 0


def test_hierarchical_keeps_hot_experts_in_every_region() -> None:
    gpus = Gpus(tuple("abcd"), np.array([0, 0, 1, 1]), np.array([0, 0, 1, 1]), np.ones(4), np.full(4, 2))
    windows = np.array([[[8.0, 7.0, 2.0, 2.0, 1.0, 1.0]]])
    held = load("hierarchical").place(Problem(windows, gpus)).held[0]
    assert held[0, :2].any() and held[0, 2:].any() and held[1, :2].any() and held[1, 2:].any()
    assert (held[2:, :2].any(axis=1) ^ held[2:, 2:].any(axis=1)).all()
