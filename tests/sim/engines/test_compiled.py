"""The compiled engine: literal times, what it refuses, what it tells, what it costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pytest

from sim.drive import Deadlock
from sim.engines import compiled
from sim.engines.compiled import run_compiled
from sim.engines.run import Run
from sim.errors import UserError
from sim.plan import PlanBuilder, plan_of
from sim.tasks import Task, Work
from tests.engine_support.driving import COSTS, LANES, join, play, spans, task, timer
from tests.engine_support.fakes import Demand, FakeCosts, Lane


def run(tasks: Sequence[Task], *, pools: Mapping[str, int] | None = None, **more: object) -> Run:
    return run_compiled(COSTS.bind(plan_of(tasks)), LANES, pools or {}, **more)


def test_lanes_dependencies_timers_and_joins() -> None:
    tasks = [task(0, "copy10"), task(1, "copy5", "b"), timer(2, 7, (1,)), join(3, (0, 2)), task(4, "late10", "a", (3,))]
    assert spans(run(tasks)) == {0: (0, 15), 1: (0, 10), 2: (10, 17), 3: (17, 17), 4: (17, 32)}


def test_pools_in_all_three_orders() -> None:
    for lane, second in (("b", 11), ("urgent", 11), ("pool", 0)):
        tasks = [task(0, "copy10", takes=(("x", 1),), releases=(0,)), task(1, "core1", lane, takes=(("x", 1),)), task(2, "core1", lane)]
        assert [s for s, _ in spans(run(tasks, pools={"x": 1})).values()] == [0, 10, second]


def test_changes_of_capacity_before_within_and_after_the_run() -> None:
    changes = [(7, "link", 2e12), (0, "cores", 0.0), (5, "link", 5e11), (9, "cores", 1e12), (10**9, "link", 1.0)]
    assert spans(run([task(0, "copy10"), task(1, "core1", "b")], changes=changes)) == {0: (0, 9), 1: (0, 10)}


def test_changes_of_one_instant_apply_in_the_order_given() -> None:
    assert spans(run([task(0, "copy10")], changes=[(5, "link", 5e12), (5, "link", 1e12)])) == {0: (0, 10)}


def test_a_plan_may_begin_later_and_number_from_anywhere() -> None:
    found = run([task(40, "copy5"), task(41, "copy1", "b", (40,))], begin_ps=100)
    assert spans(found) == {40: (100, 105), 41: (105, 106)}
    assert found.makespan_ps == 106 and found.busy_ps() == {"a": 5, "b": 1, "pool": 0, "urgent": 0}
    assert found.lane.tolist() == [0, 1] and found.lanes == ("a", "b", "pool", "urgent")


def test_an_empty_plan_takes_no_time() -> None:
    assert run([]).makespan_ps == 0


def test_sources_are_kept() -> None:
    plan = plan_of([task(0, "copy1")])
    assert run_compiled(COSTS.bind(plan), LANES, {}).sources == (plan,)


@pytest.mark.parametrize(
    "tasks",
    [
        [task(0, "copy1", takes=(("x", 1),)), task(1, "copy1", "b", takes=(("x", 1),)), join(2, (1,)), task(3, "copy1", "pool", (1,))],
        [task(0, "core1", "pool", takes=(("x", 1),)), task(1, "core1", "pool", takes=(("x", 1),)), timer(2, 5, takes=(("x", 1),))],
        [task(0, "core1", "urgent", takes=(("x", 1),)), task(1, "core1", "urgent", takes=(("x", 1),)), task(2, "core1", "urgent")],
    ],
)
def test_a_deadlock_tells_the_same_story_as_simpy(tasks: list[Task]) -> None:
    with pytest.raises(Deadlock) as expected:
        play(tasks, pools={"x": 1})
    with pytest.raises(Deadlock) as found:
        run(tasks, pools={"x": 1})
    assert str(found.value) == str(expected.value)
    assert "held by task" in str(found.value)


def test_a_stall_for_ever_is_a_deadlock() -> None:
    with pytest.raises(Deadlock, match="task 0 .* is stalled"):
        run([task(0, "copy10"), task(1, "copy1", "b", (0,))], changes=[(3, "link", 0.0)])


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        ([task(0, "copy1", "urgnt")], "lane of a task: unknown name 'urgnt'; did you mean 'urgent'"),
        ([task(0, "copy1", takes=(("slot", 1),))], "pool of a task: unknown name 'slot'; did you mean 'slots'"),
        ([task(0, "copy1"), task(1, "copy1", takes=(("slots", 3),))], "task 1: takes 3 of pool 'slots', which holds 2"),
        ([task(5, "copy1", takes=(("slots", 1), ("slots", 2)))], "task 5: takes 3 of pool 'slots', which holds 2"),
        ([task(0, "copy1", takes=(("slots", -1),))], "task 0: takes a negative number"),
        ([task(3, "copy1"), task(4, "copy1", deps=(2, 3))], "task 4: depends on 2, which was not submitted before it"),
        ([task(3, "copy1", deps=(3,))], "task 3: depends on 3, which was not submitted before it"),
        ([task(3, "copy1"), task(4, "copy1", releases=(3, 5))], "task 4: releases 5, which was not submitted"),
        ([task(3, "copy1", releases=(2,))], "task 3: releases 2, which was not submitted"),
    ],
)
def test_impossible_plans_are_refused(tasks: list[Task], message: str) -> None:
    with pytest.raises(UserError) as error:
        run(tasks, pools={"slots": 2})
    assert str(error.value).startswith(message)


def test_thousands_of_servers() -> None:
    """20 rounds of 3000 tasks at once; each server's share of the cores fits, so nobody slows anybody."""
    costs = FakeCosts({"cores": 3000e12}, {"op": (0, [Demand(0, 5.0, cap=1e12)])})
    builder = PlanBuilder()
    since = builder.mark()
    for _ in range(3000):
        builder.add(Work("op"), "many")
    builder.repeat(since, 19)
    found = run_compiled(costs.bind(builder.build()), [Lane("many", "ready", 3000)], {})
    assert found.makespan_ps == 100
    assert np.array_equal(found.start_ps, np.repeat(np.arange(20) * 5, 3000))


def test_a_task_costs_less_than_300_bytes_with_its_plan_its_run_and_all_scratch() -> None:
    builder = PlanBuilder()
    previous = builder.add(Work("copy1"), "a", takes=[("x", 1)], releases=[0], reads=["u"], writes=["v"])
    since = builder.mark()
    for lane in ("a", "b", "pool", "urgent"):
        previous = builder.add(Work("copy1"), lane, [previous], takes=[("x", 1)], releases=[builder.next], reads=["u"], writes=["v"])
    builder.repeat(since, 2000)
    plan = builder.build()
    found = run_compiled(COSTS.bind(plan), LANES, {"x": 1})
    scratch = compiled.state(compiled.graph(COSTS.bind(plan), found.lanes, {"x": 1}), LANES, {"x": 1})
    assert (plan.nbytes + found.nbytes + sum(a.nbytes for a in scratch)) / len(plan) < 300
    assert found.makespan_ps == len(plan)


def test_a_ready_lane_goes_by_priority_then_readiness_then_number() -> None:
    tasks = [task(0, "core5", "pool"), task(1, "core5", "pool"), timer(2, 1), timer(3, 2),
             task(4, "core1", "pool", (3,)), task(5, "core1", "pool", (2,)), task(6, "core1", "pool", (2,)),
             task(7, "core1", "pool", (3,), priority=-1)]  # fmt: skip
    assert {n: s for n, (s, _) in spans(run(tasks)).items() if n >= 4} == {7: 5, 5: 5, 6: 6, 4: 6}


def test_takes_of_one_pool_add_up() -> None:
    tasks = [task(0, "copy10", takes=(("x", 2),), releases=(0,)), task(1, "core1", "b", takes=(("x", 1), ("x", 1)))]
    assert spans(run(tasks, pools={"x": 3}))[1] == (10, 11)


def test_a_hold_is_given_back_once() -> None:
    """Tasks 1 and 2 both release what 0 holds, and 3 has not taken anything yet when 1 releases it."""
    tasks = [task(0, "copy1", takes=(("x", 1),)), task(1, "copy1", "a", releases=(0,)), task(2, "copy1", "a", releases=(0,)),
             task(3, "core10", "b", (2,), takes=(("x", 1),)), task(4, "core1", "pool", (2,), takes=(("x", 1),), releases=(4,)),
             timer(5, 9, releases=(3,)), timer(6, 2, releases=(3,))]  # fmt: skip
    assert spans(run(tasks, pools={"x": 1})) == {0: (0, 1), 1: (1, 2), 2: (2, 3), 3: (3, 13), 4: (9, 10), 5: (0, 9), 6: (0, 2)}
