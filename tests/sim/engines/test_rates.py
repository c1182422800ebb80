"""The sharing rule by hand, and the solver's bookkeeping."""

from __future__ import annotations

import numpy as np
import pytest

from sim.engines.layout import NEVER
from sim.engines.slots import Rates, step
from tests.engine_support.fakes import Demand, pack
from tests.engine_support.oracle import speeds
from tests.engine_support.running import Running

NONE = np.zeros(0, np.int64)


def settled(capacity: list[float], *tasks: list[Demand]) -> list[float]:
    running = Running(capacity, tasks)
    running.step(entering=range(len(tasks)))
    assert running.speeds() == pytest.approx([float(s) for s in speeds(tasks, capacity)], rel=1e-9)
    return running.speeds()


def test_tasks_that_fit_run_as_if_alone() -> None:
    assert settled([10.0], [Demand(0, 3.0, cap=5.0)], [Demand(0, 1.0, cap=5.0)]) == [1.0, 1.0]


def test_equal_users_share_equally() -> None:
    assert settled([10.0], [Demand(0, 3.0)], [Demand(0, 30.0)]) == [0.5, 0.5]


def test_heavy_users_share_by_weight() -> None:
    assert settled([12.0], [Demand(0, 1.0, weight=3.0)], [Demand(0, 1.0)]) == [0.75, 0.25]


def test_a_light_user_beside_ten_heavy_ones_keeps_its_speed() -> None:
    """A matrix product that needs 1 of 100 units/s beside ten copies that want all of it."""
    found = settled([100.0, 1.0], [Demand(0, 1.0), Demand(1, 1.0)], *[[Demand(0, 7.0)]] * 10)
    assert found[0] == 1.0
    assert found[1:] == pytest.approx([0.099] * 10)


def test_the_tightest_is_settled_first_and_wants_elsewhere_shrink() -> None:
    """r0: three want 3 of 1, a third each. That leaves r1 with 1/3 + 2/3: it fits."""
    found = settled([1.0, 1.0], [Demand(0, 1.0), Demand(1, 1.0)], [Demand(0, 1.0)], [Demand(0, 1.0)], [Demand(1, 2.0, cap=2 / 3)])
    assert found == pytest.approx([1 / 3, 1 / 3, 1 / 3, 1.0])


def test_what_a_later_cut_leaves_unused_is_handed_out_again() -> None:
    """r0, wanted 2.01 times, gives 0.495 to A and B. On r1 C then gets 0.7525, so it uses less of r0: A takes the rest."""
    found = settled([10.0, 100.0], [Demand(0, 10.0)], [Demand(0, 10.0), Demand(1, 50.0)], [Demand(0, 0.1), Demand(1, 100.0)])
    assert found == pytest.approx([0.497475, 0.495, 0.7525])


@pytest.mark.parametrize("nearly", [1.0, 1 - 1e-9])
def test_of_two_equally_tight_the_one_declared_first_is_settled_first(nearly: float) -> None:
    """Both are wanted twice, r1 by a billionth more where r0 falls short of that: a rounding error does not choose."""
    a = [Demand(0, 2.0), Demand(1, 1.0)]
    b = [Demand(0, 2.0, cap=nearly, weight=2.0), Demand(1, 1.0)]
    c, d = [Demand(1, 1.0, weight=2.0)], [Demand(1, 1e-9, cap=1e-9)]
    assert settled([1.0, 1.0], a, b, c, d) == pytest.approx([1 / 3, 5 / 9, 5 / 9, 1.0], abs=1e-6)
    swapped = [[demand._replace(resource=1 - demand.resource) for demand in t] for t in (a, b, c, d)]
    assert settled([1.0, 1.0], *swapped) == pytest.approx([1 / 2, 1 / 2, 1 / 2, 1.0], abs=1e-6)


@pytest.mark.parametrize("ps", [1, 7, 1000, 10**12, 123456789])
def test_float_noise_is_not_rounded_up(ps: int) -> None:
    """1000 units at 1e12 units/s are 1000.0000000000001 ps in floats."""
    assert Running([1e12], [[Demand(0, float(ps))]]).step(entering=[0]) == (ps, 1)


def test_capacity_zero_stalls_its_users_only() -> None:
    running = Running([10.0, 0.0], [[Demand(0, 1.0)], [Demand(0, 1.0), Demand(1, 1.0)], [Demand(1, 0.0), Demand(0, 2.0)]])
    assert running.step(entering=[0, 1, 2]) == (200_000_000_000, 1)
    assert running.speeds() == [0.5, 0.0, 0.5]
    assert running.rates.slots["end"].tolist() == [200_000_000_000, NEVER, 400_000_000_000]


def test_a_task_with_no_capacity_anywhere_is_never_due() -> None:
    running = Running([0.0], [[Demand(0, 1.0)]])
    assert running.step(entering=[0]) == (NEVER, 0)
    running.rates.set_capacity(0, 2.0)
    assert running.step(now=7) == (500_000_000_007, 1)


def test_an_end_too_far_away_is_never() -> None:
    assert Running([1.0], [[Demand(0, 1e9)]]).step(entering=[0]) == (NEVER, 0)


def test_a_neighbour_that_is_not_connected_does_not_move_an_anchor() -> None:
    running = Running([1.0, 1.0], [[Demand(0, 1.0)], [Demand(0, 1.0)], [Demand(1, 1.0)], [Demand(1, 1.0)]])
    running.step(entering=[0, 1, 2])
    running.step(entering=[3], now=100)
    assert running.rates.slots["anchor"].tolist() == [0, 0, 100, 100]
    running.step(leaving=[3], now=300)
    assert running.rates.slots["anchor"].tolist()[:3] == [0, 0, 300]
    assert running.rates.left(2, 300) == pytest.approx(1 - 200e-12)


def test_progress_is_read_between_anchors() -> None:
    running = Running([1.0], [[Demand(0, 1.0)], [Demand(0, 1.0)]])
    running.step(entering=[0, 1])
    assert running.rates.left(0, 10**12) == 0.5


def test_a_partial_task_is_due_earlier() -> None:
    rates = Rates(np.array([1.0]), 1)
    rates.extend(pack([(0, [Demand(0, 1.0)])]))
    one = np.zeros(1, np.int64)
    assert step(*rates.arrays, 5, NONE, one, one, np.array([0.25])) == (250_000_000_005, 1)


def test_classes_added_later_are_priced_at_present_capacities() -> None:
    """And a class with more demands than any before widens the lists of users under running tasks."""
    rates = Rates(np.array([1.0, 1.0, 1.0]), 2)
    assert rates.extend(pack([(0, [Demand(0, 1.0)])])) == 0
    one = np.ones(1)
    step(*rates.arrays, 0, NONE, np.array([0]), np.array([0]), one)
    rates.set_capacity(2, 0.5)
    assert rates.extend(pack([(3, []), (0, [Demand(0, 1.0), Demand(1, 1.0), Demand(2, 1.0)])])) == 1
    assert rates.classes["solo"].tolist() == [1e12, 0.0, 2e12]
    step(*rates.arrays, 0, NONE, np.array([1]), np.array([2]), one)
    assert rates.slots["speed"].tolist() == [0.5, 1.0]


def test_more_slots_keep_those_that_run() -> None:
    rates = Rates(np.array([1.0]), 1)
    rates.extend(pack([(0, [Demand(0, 1.0)])]))
    step(*rates.arrays, 0, NONE, np.array([0]), np.array([0]), np.ones(1))
    rates.reserve(8)
    assert step(*rates.arrays, 10, NONE, np.array([5]), np.array([0]), np.ones(1)) == (1_999_999_999_990, 1)
    assert rates.lists[4, 0] == 0


@pytest.mark.parametrize(
    ("demands", "message"),
    [
        ([Demand(0, -1.0)], "amounts"),
        ([Demand(0, np.inf)], "amounts"),
        ([Demand(0, 1.0, cap=0.0)], "caps"),
        ([Demand(0, 1.0, weight=0.0)], "weights"),
        ([Demand(0, 1.0, weight=1e6)], "weights"),
        ([Demand(0, 1.0), Demand(0, 2.0)], "each resource once"),
    ],
)
def test_prices_that_the_rule_does_not_cover_are_programming_errors(demands: list[Demand], message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        Rates(np.array([1.0]), 1).extend(pack([(0, demands)]))


def test_capacities_are_finite() -> None:
    with pytest.raises(AssertionError, match="finite"):
        Rates(np.array([np.inf]), 1)
