"""Where a lane's time goes, on runs small enough to be read."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings

from sim.columns import columns_of
from sim.drive import Deadlock
from sim.explain.lanes import LaneTime, lane_times
from sim.explain.limits import spans
from sim.tasks import PS_PER_S, Task
from tests.engine_support.driving import COSTS, LANES, play, task, timer
from tests.engine_support.graphs import Case, cases


def split(*tasks: Task, handed_out: tuple[int, ...] = (), **more: Any) -> dict[str, LaneTime]:
    """The lanes' picoseconds."""
    _, run = play(tasks, **more)
    found = lane_times(run, columns_of(run.sources), spans(run, COSTS).solo_ps, np.array(handed_out or [0] * len(run)), LANES)
    return {name: LaneTime(*(round(v * PS_PER_S, 6) for v in (t.busy_s, t.sharing_s, t.pool_s, t.order_s, t.bubble_s)))
            for name, t in found.items()}  # fmt: skip


def test_a_lane_with_nothing_to_do_is_a_bubble() -> None:
    found = split(task(0, "copy10", "a"), task(1, "core5", "b", [0]), task(2, "copy5", "a", [1]))
    assert found["a"] == LaneTime(15, 0, 0, 0, 5)
    assert found["b"] == LaneTime(5, 0, 0, 0, 15)
    assert found["urgent"] == LaneTime(0, 0, 0, 0, 20)


def test_two_that_share_are_slowed_not_idle() -> None:
    found = split(task(0, "copy10", "a"), task(1, "copy10", "b"))
    assert found["a"] == LaneTime(10, 10, 0, 0, 0)
    assert found["a"].blocked_s == 10


def test_a_head_that_is_not_ready_blocks_who_is() -> None:
    """Tasks 2 and 3 could run at once, for 7 ps; they stand behind task 1, which waits 10 ps for lane b."""
    found = split(task(0, "core10", "b"), task(1, "copy5", "a", [0]), task(2, "copy5", "a"), task(3, "copy2", "a"))
    assert found["a"] == LaneTime(12, 0, 0, 7, 3)


def test_what_stands_behind_a_head_blocks_only_from_when_it_is_ready() -> None:
    found = split(task(0, "core10", "b"), timer(1, 8), task(2, "copy5", "a", [0]), task(3, "copy5", "a", [1]))
    assert found["a"] == LaneTime(10, 0, 0, 2, 8)


def test_a_lane_of_ready_tasks_has_no_head_to_wait_for() -> None:
    found = split(task(0, "core10", "b"), task(1, "copy5", "pool", [0]), task(2, "copy5", "pool"))
    assert found["pool"] == LaneTime(10, 0, 0, 0, 5)


def test_a_full_pool_blocks_the_task_in_turn() -> None:
    """Task 1 could start at 10 and has no room until the timer gives it back at 17."""
    tasks = (task(0, "copy10", "a", takes=(("slots", 1),)), task(1, "copy5", "a", takes=(("slots", 1),)), timer(2, 7, [0], releases=(0,)))
    assert split(*tasks, pools={"slots": 1})["a"] == LaneTime(15, 0, 7, 0, 0)


def test_a_task_waits_for_a_pool_only_once_it_is_handed_out() -> None:
    tasks = (task(0, "copy10", "a", takes=(("slots", 1),)), task(1, "copy5", "a", takes=(("slots", 1),)), timer(2, 7, [0], releases=(0,)))
    assert split(*tasks, pools={"slots": 1}, handed_out=(0, 13, 0))["a"] == LaneTime(15, 0, 4, 0, 3)


@given(cases(changes=False))
@settings(max_examples=60)
def test_the_parts_are_the_whole(case: Case) -> None:
    try:
        run = case.compiled()
    except Deadlock:
        return
    found = lane_times(run, columns_of(run.sources), spans(run, case.costs).solo_ps, np.zeros(len(run), np.int64), case.lanes)
    for t in found.values():
        parts = (t.busy_s, t.sharing_s, t.pool_s, t.order_s, t.bubble_s)
        assert min(parts) >= -1e-9 * run.makespan_ps / PS_PER_S
        assert sum(parts) == pytest.approx(run.makespan_ps / PS_PER_S, rel=1e-9)
