"""Lazy resources: the same rule and the same picoseconds, with few users and with many."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim.drive import Deadlock
from sim.engines import slots
from sim.engines.layout import ONE, WEIGHT_ONE
from sim.engines.slots import Rates, step
from sim.tasks import Task, Work
from tests.engine_support.fakes import Demand, FakeCosts, Lane, pack
from tests.engine_support.graphs import Case, caps, cases, weights
from tests.engine_support.oracle import Oracle, speeds


@contextmanager
def lazy_from(users: int) -> Iterator[None]:
    was, slots.MANY = slots.MANY, users
    try:
        yield
    finally:
        slots.MANY = was


class Crowd:
    """Tasks that enter and leave one resource of capacity 1 and a second of 10, checked after every step."""

    def __init__(self, tasks: Sequence[Sequence[Demand]], capacity: Sequence[float] = (1.0, 10.0), many: int = 2) -> None:
        with lazy_from(many):
            self.rates = Rates(np.array(capacity), len(tasks))
        self.rates.extend(pack([(0, demands) for demands in tasks]))
        self.tasks, self.running = tasks, set[int]()

    def step(self, leaving: Sequence[int] = (), entering: Sequence[int] = (), now: int = 0) -> tuple[int, int]:
        rows = np.array(entering, np.int64)
        found = step(*self.rates.arrays, now, np.array(leaving, np.int64), rows, rows, np.ones(len(rows)))
        self.running = (self.running - set(leaving)) | set(entering)
        self.check()
        return found

    def check(self) -> None:
        r = self.rates
        for k, row in enumerate(r.resources):
            if not row["is_lazy"]:
                assert row["root"] == row["shown"] == -1
                continue
            light = weight = heavy = 0
            for s in self.running:
                for d in self.demands(s):
                    if d["resource"] == k and d["share"] > 0:
                        is_heavy = d["share"] > d["weight"] * row["level"]
                        assert (r.slots["lazy"][s] == k) == is_heavy
                        assert row["low"] <= d["share"] / d["weight"] if is_heavy else row["high"] >= d["share"] / d["weight"]
                        light += 0 if is_heavy else int(d["share"])
                        weight += int(d["weight"]) if is_heavy else 0
                        heavy += is_heavy
            assert (row["light"], row["weight"], row["heavy"]) == (light, weight, heavy)
            self.check_heap(int(row["root"]), heavy)

    def demands(self, s: int) -> Sequence[np.void]:
        row = self.rates.classes[self.rates.slots["cls"][s]]
        return list(self.rates.demands[row["first"] : row["last"]])

    def check_heap(self, root: int, size: int) -> None:
        table, seen, todo = self.rates.slots, 0, [root]
        assert table["heap"][root] >= 0
        while todo:
            s = todo.pop()
            seen += 1
            assert s == root or table["heap"][s] == -1
            before, below = s, table["child"][s]
            while below >= 0:
                assert table["before"][below] == before and table["target"][below] >= table["target"][s]
                todo.append(below)
                before, below = below, table["after"][below]
        assert seen == size

    def exact(self) -> bool:
        there = sorted(self.running)
        found = [self.rates.speed(s) for s in there]
        exact = speeds([self.tasks[s] for s in there], self.rates.resources["capacity"].tolist())
        return found == pytest.approx([float(v) for v in exact], rel=1e-9)


demand = st.tuples(st.one_of(st.integers(1, 6).map(float), st.floats(0.01, 20.0)), caps, weights)
crowds = st.lists(
    st.one_of(
        demand.map(lambda d: [Demand(0, *d)]),
        demand.map(lambda d: [Demand(0, *d), Demand(1, 1e-3)]),  # the second resource fits, until many want it all
        st.tuples(demand, demand).map(lambda two: [Demand(0, *two[0]), Demand(1, *two[1])]),
    ),
    min_size=2, max_size=14,
)  # fmt: skip


@given(crowds, st.randoms(use_true_random=False), st.sampled_from([2, 5]))
def test_speeds_are_the_exact_ones_whoever_comes_and_goes(tasks: list[list[Demand]], random: object, many: int) -> None:
    crowd = Crowd(tasks, many=many)
    now = 0
    for _ in range(12):
        inside = sorted(crowd.running)
        leaving = [s for s in inside if random.random() < 0.3]  # type: ignore[attr-defined]
        entering = [s for s in range(len(tasks)) if s not in crowd.running and random.random() < 0.4]  # type: ignore[attr-defined]
        now += random.randrange(1, 10**9)  # type: ignore[attr-defined]
        if leaving or entering:
            crowd.step(leaving, entering, now)
            assert crowd.exact()
    crowd.step(leaving=sorted(crowd.running), now=now + 1)
    assert not crowd.rates.resources["is_lazy"].any() and crowd.rates.counts[[0, 1, 2, 3, 5, 8]].tolist() == [0] * 6
    assert not any(crowd.rates.resources[name].any() for name in ("total", "used", "users"))


def equal_users(n: int) -> list[list[Demand]]:
    return [[Demand(0, 1.0)] for _ in range(n)]


def test_many_users_are_lazy_and_few_are_not() -> None:
    crowd = Crowd(equal_users(40), many=32)
    crowd.step(entering=range(31))
    assert not crowd.rates.resources["is_lazy"][0]
    crowd.step(entering=[31], now=5)
    assert crowd.rates.resources["is_lazy"][0] and crowd.rates.counts[0] == 1
    crowd.step(leaving=range(16), now=9)
    assert crowd.rates.resources["is_lazy"][0]  # so that coming and going about the limit costs little
    crowd.step(leaving=[16], now=9)
    assert not crowd.rates.resources["is_lazy"][0] and crowd.rates.counts[0] == 15


def test_who_ties_two_resources_together_wakes_them() -> None:
    """Both have users enough of their own; then one comes that uses both, and goes again."""
    tasks = [*equal_users(4), *([Demand(1, 10.0)] for _ in range(4)), [Demand(0, 1.0), Demand(1, 1.0)]]
    crowd = Crowd(tasks)
    crowd.step(entering=range(8))
    assert crowd.rates.resources["is_lazy"].tolist() == [1, 1]
    crowd.step(entering=[8], now=3)
    assert crowd.rates.resources["is_lazy"].tolist() == [0, 0] and crowd.exact()
    crowd.step(leaving=[8], now=4)
    assert crowd.rates.resources["is_lazy"].tolist() == [1, 1] and crowd.exact()


def test_a_neighbour_that_fills_up_wakes() -> None:
    """Users of the lazy one use a little of another, which then is oversubscribed by others."""
    tasks = [[Demand(0, 1.0), Demand(1, 0.5)] for _ in range(4)] + [[Demand(1, 10.0)], [Demand(1, 10.0)]]
    crowd = Crowd(tasks)
    crowd.step(entering=range(4))
    assert crowd.rates.resources["is_lazy"].tolist() == [1, 0]
    crowd.step(entering=[4, 5], now=2)
    assert crowd.rates.resources["is_lazy"].tolist() == [0, 0] and crowd.exact()


def test_progress_on_a_common_clock() -> None:
    crowd = Crowd(equal_users(4))
    assert crowd.step(entering=range(4)) == (4 * 10**12, 4)
    assert crowd.rates.left(2, 10**12) == 0.75
    assert crowd.step(leaving=[0, 1], now=10**12) == (25 * 10**11, 2)
    assert crowd.rates.left(3, 2 * 10**12) == pytest.approx(0.25)
    assert crowd.rates.lists[4, :2].tolist() in ([2, 3], [3, 2])


def test_a_change_of_capacity_keeps_the_fraction_done() -> None:
    crowd = Crowd(equal_users(4))
    crowd.step(entering=range(4))
    crowd.rates.set_capacity(0, 2.0)
    assert crowd.step(now=2 * 10**12) == (3 * 10**12, 4)
    assert crowd.rates.resources["is_lazy"][0]


def test_classes_and_slots_that_come_later_leave_the_clock_alone() -> None:
    """SimPy's solver grows while it runs, the compiled one's does not."""
    rates = Rates(np.array([1.0, 1.0, 1.0]), 40)
    rates.extend(pack([(0, [Demand(0, 1.0)])]))
    rows = np.arange(40)
    first = step(*rates.arrays, 0, rows[:0], rows, np.zeros(40, np.int64), np.ones(40))
    clock = rates.resources[["clock", "since", "level", "weight", "root"]].copy()
    rates.reserve(80)
    rates.extend(pack([(0, [Demand(2, 1.0), Demand(1, 1.0), Demand(0, 1.0)])]))
    assert (rates.resources[["clock", "since", "level", "weight", "root"]] == clock).all() and rates.resources["is_lazy"][0]
    none = np.zeros(0, np.int64)
    assert step(*rates.arrays, 7, none, none, none, np.zeros(0)) == first
    end, n = step(*rates.arrays, 10**12, rows[:39], none, none, np.zeros(0))
    assert (end, n) == (10**12 + 975 * 10**9, 1)


many_servers = st.lists(st.tuples(st.sampled_from(("ready", "priority", "submitted")), st.integers(4, 12)), min_size=1, max_size=3)


@st.composite
def busy(draw: st.DrawFn) -> Case:
    """Many tasks at once on one tight resource; a second that sometimes ties them together."""
    lanes = tuple(Lane(f"lane{i}", *row) for i, row in enumerate(draw(many_servers)))
    scale = draw(st.sampled_from([1e-12, 1e-9, 1e-3]))
    rows = {}
    for op in "abcdefg":
        amount, cap, weight = draw(demand)
        demands = [Demand(0, amount * scale, cap, weight)]
        if draw(st.integers(0, 2)) == 0:
            demands.append(Demand(1, draw(st.floats(0.01, 1.0)) * scale))
        rows[op] = (draw(st.sampled_from([0, 0, 3, 700])), demands)
    tasks = []
    for number in range(draw(st.integers(8, 30))):
        deps = draw(st.lists(st.integers(0, number - 1), max_size=1)) if number > 6 else []
        tasks.append(Task(number, Work(draw(st.sampled_from("abcdefg"))), draw(st.sampled_from(lanes)).name, deps=tuple(deps)))
    changes = draw(st.lists(st.tuples(st.integers(0, 10**6), st.sampled_from(["r0", "r1"]), st.sampled_from([0.5, 1.0, 2.0])), max_size=2))
    return Case(lanes, {}, FakeCosts({"r0": 1.0, "r1": 4.0}, rows), tuple(tasks), tuple(changes))


@given(st.one_of(busy(), cases(bodies=True)))
def test_both_engines_see_the_same_picoseconds(case: Case) -> None:
    with lazy_from(2):
        try:
            reference = case.simpy()
        except Deadlock:
            return
        assert reference.same_times(case.compiled())


@given(busy())
def test_the_oracle_agrees(case: Case) -> None:
    with lazy_from(2):
        run = case.compiled()
    ends = dict(zip(run.number.tolist(), run.end_ps.tolist(), strict=True))
    exact = Oracle(case.lanes, case.pools, case.costs, case.changes, ends).run(case.tasks)
    assert exact == dict(zip(run.number.tolist(), zip(run.start_ps.tolist(), run.end_ps.tolist(), strict=True), strict=True))


def test_three_hundred_blocks_on_one_memory() -> None:
    """A thousand tiles of 300 blocks that want twice the memory; ends as exact to 1e-9."""
    rng = np.random.default_rng(0)
    rows = {f"op{i}": (0, [Demand(0, float(rng.uniform(0.5, 2.0)), 0.0067), Demand(1, 1.0, 0.003)]) for i in range(50)}
    tasks = tuple(Task(n, Work(f"op{n % 50}"), "blocks") for n in range(1000))
    case = Case((Lane("blocks", "ready", 300),), {}, FakeCosts({"memory": 1.0, "flops": 1.0}, rows), tasks, ())
    run = case.compiled()
    assert run.same_times(case.simpy())
    total = sum(case.costs.row(t.work)[1][0].amount for t in tasks)
    assert run.makespan_ps >= total * 1e12 * (1 - 1e-9)
    with lazy_from(10**6):
        eager = case.compiled()
    assert run.end_ps.tolist() == pytest.approx(eager.end_ps.tolist(), rel=1e-9, abs=2)


def test_units() -> None:
    """Shares and weights are integers, and the level of n equal users is an nth of the whole."""
    crowd = Crowd(equal_users(5))
    crowd.step(entering=range(5))
    assert crowd.rates.resources["level"][0] == ONE / (5 * WEIGHT_ONE)
