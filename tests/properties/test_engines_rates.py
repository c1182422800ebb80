"""The sharing rule on random sets of running tasks."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim.engines.layout import ONE
from tests.engine_support.fakes import Demand
from tests.engine_support.graphs import caps, weights
from tests.engine_support.oracle import speeds
from tests.engine_support.running import Running


@st.composite
def running_sets(draw: st.DrawFn) -> Running:
    """Up to ten tasks on up to five resources, nearly all oversubscribed."""
    capacity = draw(st.lists(st.one_of(st.integers(1, 8).map(float), st.floats(0.5, 10.0)), min_size=1, max_size=5))
    demand = st.tuples(st.one_of(st.integers(1, 12).map(float), st.floats(0.01, 20.0)), caps, weights)
    tasks = []
    for _ in range(draw(st.integers(1, 10))):
        used = draw(st.lists(st.integers(0, len(capacity) - 1), unique=True, min_size=1, max_size=4))
        tasks.append([Demand(k, *draw(demand)) for k in used])
    return Running(capacity, tasks)


def capacity_of(r: Running) -> list[float]:
    return r.rates.resources["capacity"].tolist()


@given(running_sets())
def test_speeds_are_the_exact_ones(r: Running) -> None:
    r.step(entering=range(len(r.tasks)))
    exact = speeds(r.tasks, capacity_of(r))
    assert r.speeds() == pytest.approx([float(s) for s in exact], rel=1e-9)


@given(running_sets())
def test_never_over_capacity(r: Running) -> None:
    for i in range(len(r.tasks)):
        r.step(entering=[i])
        assert max(r.used()) <= ONE


@given(running_sets())
def test_work_conserving(r: Running) -> None:
    """A task below full speed uses a full resource: it cannot be sped up alone."""
    r.step(entering=range(len(r.tasks)))
    for i, speed in enumerate(r.speeds()):
        assert 0 < speed <= 1
        assert speed == 1 or any(r.full(d.resource) for d in r.tasks[i])


@given(running_sets(), st.randoms(use_true_random=False))
def test_speeds_depend_on_the_set_only(r: Running, random: object) -> None:
    """Bit for bit the same, in whatever order tasks came and went."""
    everyone = list(range(len(r.tasks)))
    r.step(entering=everyone)
    at_once = r.speeds()
    leaving = [i for i in everyone if random.random() < 0.5]  # type: ignore[attr-defined]
    r.step(leaving=leaving)
    for i in reversed(leaving):
        r.step(entering=[i])
    assert r.speeds() == at_once


@given(running_sets())
def test_an_empty_machine_has_no_sums(r: Running) -> None:
    r.step(entering=range(len(r.tasks)))
    r.step(leaving=range(len(r.tasks)))
    assert r.rates.counts[:5].tolist() == [0, 0, 0, 0, 0]
    for name in ("total", "used", "users"):
        assert not r.rates.resources[name].any()
    assert (r.rates.resources["head"] == -1).all()


@given(running_sets(), st.data())
def test_a_change_of_capacity_is_a_machine_of_that_capacity(r: Running, data: st.DataObject) -> None:
    """And setting it back restores every speed to the last bit."""
    r.step(entering=range(len(r.tasks)))
    before = r.speeds()
    k = data.draw(st.integers(0, len(r.rates.resources) - 1))
    old = capacity_of(r)[k]
    r.rates.set_capacity(k, data.draw(st.sampled_from([0.0, 0.3, 2.0, 50.0])))
    r.step()
    assert r.speeds() == pytest.approx([float(s) for s in speeds(r.tasks, capacity_of(r))], rel=1e-9)
    r.rates.set_capacity(k, old)
    r.step()
    assert r.speeds() == before


@given(st.integers(1, 12), st.integers(1, 300))
def test_a_light_user_beside_heavy_ones_keeps_its_speed(heavy: int, percent_of_a_fair_share: int) -> None:
    """It wants up to its fair share of what heavy users fight for."""
    fair = 1 / (heavy + 1)
    light = min(percent_of_a_fair_share, 100) / 100 * fair
    r = Running([10.0, 1.0], [[Demand(0, 10.0 * light), Demand(1, 1.0)], *([Demand(0, 10.0)] for _ in range(heavy))])
    r.step(entering=range(heavy + 1))
    assert r.speeds()[0] == pytest.approx(1.0, abs=1e-11)
    assert r.speeds()[1:] == pytest.approx([(1 - light) / heavy] * heavy, rel=1e-9)


@given(st.integers(2, 400))
def test_users_of_an_nth_each_fit(n: int) -> None:
    """Shares are rounded down: n tasks that are capped to an nth of a resource are not oversubscribed."""
    r = Running([float(n)], [[Demand(0, 3.0, cap=1.0)]] * n)
    r.step(entering=range(n))
    assert r.speeds() == [1.0] * n
    assert r.rates.resources["total"][0] <= ONE


@given(running_sets(), st.integers(1, 10**9))
def test_progress_is_anchored_only_when_the_speed_changes(r: Running, now: int) -> None:
    r.step(entering=range(len(r.tasks)))
    before = {i: r.speeds()[i] for i in range(len(r.tasks))}
    r.step(leaving=[0], now=now)
    after = r.speeds()
    anchors = r.rates.slots["anchor"]
    for i in range(1, len(r.tasks)):
        assert (anchors[i] == now) == (after[i] != before[i])


@given(st.lists(st.integers(1, 60), min_size=8, max_size=40), st.randoms(use_true_random=False))
def test_tasks_may_leave_in_any_order(lengths: list[int], random: object) -> None:
    """The heap of due times stays one (`Running.check`)."""
    r = Running([100.0], [[Demand(0, float(n), cap=1.0)] for n in lengths])
    r.step(entering=range(len(lengths)))
    there = list(range(len(lengths)))
    while there:
        r.step(leaving=[there.pop(random.randrange(len(there)))])  # type: ignore[attr-defined]


@given(running_sets())
def test_the_next_end_is_the_earliest(r: Running) -> None:
    end, n = r.step(entering=range(len(r.tasks)))
    ends = r.rates.slots["end"]
    assert end == ends.min()
    assert sorted(r.rates.lists[4, :n].tolist()) == np.flatnonzero(ends == end).tolist()
