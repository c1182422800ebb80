"""What holds for every policy: coverage, budgets, determinism, stability, scale."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.errors import UserError
from sim.placement import Gpus, Placement, Policy, Problem
from sim.placement.optimal import Optimal
from sim.placement.policy import load, names
from tests.sim.placement.problems import problems, whole_layer_problems

SLOW = {"max-flow": "max-flow:time-limit-s=30:polish-steps=50", "optimal": "optimal:limit-s=600"}
POLICIES = [SLOW.get(n, n) for n in names()] + [
    "eplb:mode=hierarchical", "eplb:mode=global", "consistent-hash:replicas=2", "affinity:unit=node", "joint:pull=2", "robust:moves=0.5",
]  # fmt: skip
"""Every policy there is, so that a new one is held to all that stands here."""
EXAMPLES = settings(max_examples=8)


def drawn(data: st.DataObject, policy: Policy) -> Problem:
    if policy.whole_layers:
        return data.draw(whole_layer_problems())
    return data.draw(problems(most_experts=6, most_gpus=3) if isinstance(policy, Optimal) else problems())


@pytest.mark.parametrize("name", POLICIES)
@EXAMPLES
@given(data=st.data())
def test_every_expert_has_a_copy_within_budgets_and_always_the_same(name: str, data: st.DataObject) -> None:
    policy = load(name)
    problem = drawn(data, policy)
    first = policy.place(problem).check(problem, policy.whole_layers)
    assert policy.place(problem) == first


@pytest.mark.parametrize("name", POLICIES)
@EXAMPLES
@given(data=st.data())
def test_unchanged_load_moves_nothing(name: str, data: st.DataObject) -> None:
    policy = load(name)
    problem = drawn(data, policy)
    now = policy.place(problem)
    assert policy.place(problem.with_current(now)).moved(now) == 0


@pytest.mark.parametrize("name", POLICIES)
@EXAMPLES
@given(data=st.data())
def test_the_unit_of_load_does_not_matter(name: str, data: st.DataObject) -> None:
    policy = load(name)
    problem = drawn(data, policy)
    assert policy.place(replace(problem, windows=problem.windows * 1000)) == policy.place(problem)


@pytest.mark.parametrize("name", ["greedy", "eplb", "replicate-hot", "robust", "joint"])
def test_balances_what_round_robin_does_not(name: str) -> None:
    from sim.placement import measures

    windows = np.tile(np.repeat([9.0, 5.0, 2.0, 1.0], 4), (1, 2, 1))
    problem = Problem(windows, Gpus.even(4, 16))
    before = measures.balancedness(load("round-robin").place(problem), windows[0], problem.gpus)
    assert before == pytest.approx(17 / 36)
    assert measures.balancedness(load(name).place(problem), windows[0], problem.gpus) > 0.95


def test_placement_refuses_what_does_not_fit() -> None:
    problem = Problem(np.ones((1, 1, 4)), Gpus.even(2, 4))
    held = load("round-robin").place(problem).held
    lost, full = held.copy(), held.copy()
    lost[0, 0] = False
    full[0, :, 0] = True
    with pytest.raises(AssertionError, match="expert 0: has no copy"):
        Placement(lost).check(problem)
    with pytest.raises(AssertionError, match="holds 2 copies more than its memory"):
        Placement(full).check(problem)


def test_slots_of_one_layer_cannot_be_lent_to_another() -> None:
    problem = Problem(np.ones((1, 2, 4)), Gpus.even(2, 4))
    held = load("round-robin").place(problem).held.copy()
    held[0, :, 0], held[0, :, 1] = True, False
    held[1, :, 0], held[1, :, 1] = False, True
    with pytest.raises(AssertionError, match="layer 0 gpu 0: holds 2 copies more than its slots"):
        Placement(held).check(problem)
    Placement(held).check(problem, whole_layers=True)


@pytest.mark.parametrize(("text", "message"), [
    ("eplp", "did you mean 'eplb'"), ("eplb:mod=auto", "did you mean 'mode'"), ("eplb:mode=x", "must be one of auto, global"),
    ("consistent-hash:replicas=two", "must be a whole number"), ("greedy:x=1", "has no options"), ("robust:nominal=2", "must be 0 to 1"),
    ("joint:unit=rack", "must be one of gpu, node, region"), ("optimal:limit-s=0", "must be above 0"),
])  # fmt: skip
def test_bad_names_and_options_are_told(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load(text)


def test_too_few_slots_are_refused() -> None:
    with pytest.raises(UserError, match="slots: 3 on 1 GPUs; 4 experts"):
        Problem(np.ones((1, 1, 4)), Gpus(("g",), np.zeros(1, np.int64), np.zeros(1, np.int64), np.ones(1), np.array([3])))
