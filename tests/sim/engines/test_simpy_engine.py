"""The reference engine, rule by rule, with literal times."""

from __future__ import annotations

import pytest

from sim.drive import Deadlock, drive
from sim.engines.simpy_engine import SimPyEngine
from sim.errors import UserError
from sim.events import Arrived, Changed, Failed, Finished, Request, Result, Started
from sim.plan import plan_of
from sim.tasks import Cancel
from tests.engine_support.driving import COSTS, LANES, Script, join, on, play, spans, statuses, task, timer


def test_a_lane_runs_one_task_after_another() -> None:
    _, run = play([task(0, "copy10"), task(1, "copy5"), task(2, "copy1")])
    assert spans(run) == {0: (0, 10), 1: (10, 15), 2: (15, 16)}
    assert run.makespan_ps == 16
    assert run.busy_ps() == {"a": 16, "b": 0, "pool": 0, "urgent": 0}


def test_two_lanes_share_a_link() -> None:
    _, run = play([task(0, "copy10"), task(1, "copy5", "b")])
    assert spans(run) == {0: (0, 15), 1: (0, 10)}


def test_ends_are_rounded_up_to_a_picosecond() -> None:
    _, run = play([task(0, "copy1"), task(1, "copy1", "b"), task(2, "copy1", "pool")])
    assert spans(run) == {0: (0, 3), 1: (0, 3), 2: (0, 3)}
    _, run = play([task(0, "copy5"), task(1, "copy10", "b"), task(2, "copy2", "b", (0,))])
    assert spans(run) == {0: (0, 10), 1: (0, 15), 2: (15, 17)}


def test_latency_passes_before_any_demand() -> None:
    _, run = play([task(0, "late10"), task(1, "copy5", "b")])
    assert spans(run) == {0: (0, 15), 1: (0, 5)}


def test_a_submitted_lane_is_blocked_by_its_head() -> None:
    _, run = play([task(0, "copy10", "b"), task(1, "core1", "a", (0,)), task(2, "core1", "a")])
    assert spans(run) == {0: (0, 10), 1: (10, 11), 2: (11, 12)}


def test_a_ready_lane_takes_whichever_is_ready() -> None:
    _, run = play([task(0, "copy10"), task(1, "core1", "pool", (0,)), task(2, "core5", "pool"), task(3, "core10", "pool")])
    assert spans(run) == {0: (0, 10), 1: (10, 11), 2: (0, 5), 3: (0, 10)}


def test_a_ready_lane_goes_by_priority_then_readiness_then_number() -> None:
    first = [task(0, "core5", "pool"), task(1, "core5", "pool"), timer(2, 1), timer(3, 2)]
    rest = [task(4, "core1", "pool", (3,)), task(5, "core1", "pool", (2,)), task(6, "core1", "pool", (2,)),
            task(7, "core1", "pool", (3,), priority=-1)]  # fmt: skip
    _, run = play([*first, *rest])
    assert {n: s for n, (s, _) in spans(run).items() if n >= 4} == {7: 5, 5: 5, 6: 6, 4: 6}


def test_a_ready_lane_skips_a_task_whose_pool_is_full_and_a_priority_lane_waits() -> None:
    def tasks(lane: str) -> list:
        return [task(0, "copy10", "a", takes=(("slots", 1),), releases=(0,)),
                task(1, "core1", lane, takes=(("slots", 1),), priority=0), task(2, "core1", lane, priority=1)]  # fmt: skip

    _, run = play(tasks("pool"), pools={"slots": 1})
    assert spans(run)[1] == (10, 11) and spans(run)[2] == (0, 1)
    _, run = play(tasks("urgent"), pools={"slots": 1})
    assert spans(run)[1] == (10, 11) and spans(run)[2] == (11, 12)


def test_takes_are_acquired_together_or_not_at_all() -> None:
    """Task 1 lacks one unit of y, hence does not sit on x: task 2 gets it."""
    _, run = play(
        [
            task(0, "copy10", "a", takes=(("y", 1),), releases=(0,)),
            task(1, "core1", "b", takes=(("x", 1), ("y", 1)), releases=(1,)),
            task(2, "core1", "urgent", takes=(("x", 1),), releases=(2,)),
        ],
        pools={"x": 1, "y": 1},
    )
    assert spans(run) == {0: (0, 10), 1: (10, 11), 2: (0, 1)}


def test_takes_of_one_pool_add_up() -> None:
    tasks = [task(0, "copy10", "a", takes=(("x", 2),), releases=(0,)), task(1, "core1", "b", takes=(("x", 1), ("x", 1)))]
    _, run = play(tasks, pools={"x": 3})
    assert spans(run)[1] == (10, 11)


def test_a_hold_lasts_until_the_named_task_ends() -> None:
    _, run = play(
        [task(0, "copy1", takes=(("x", 1),)), task(1, "core10", "pool", (0,), releases=(0,)), task(2, "copy1", takes=(("x", 1),))],
        pools={"x": 1},
    )
    assert spans(run)[2] == (11, 12)


def test_joins_cascade_within_an_instant() -> None:
    seen, run = play([task(0, "copy5"), join(1, (0,), notify=True), join(2, (1,), notify=True), task(3, "copy1", "b", (2,))])
    assert seen == [(5, Finished(1)), (5, Finished(2))]
    assert spans(run) == {0: (0, 5), 1: (5, 5), 2: (5, 5), 3: (5, 6)}


def test_a_timer_counts_from_its_dependencies() -> None:
    _, run = play([task(0, "copy5"), timer(1, 7, (0,)), timer(2, 0)])
    assert spans(run) == {0: (0, 5), 1: (5, 12), 2: (0, 0)}


def test_zero_time_tasks_end_in_the_next_round_of_the_instant() -> None:
    seen, run = play([task(0, "copy0", notify=True), task(1, "copy0", notify=True), timer(2, 0, notify=True), task(3, "copy1", "b", (1,))])
    assert spans(run) == {0: (0, 0), 1: (0, 0), 2: (0, 0), 3: (0, 1)}
    assert [e.task for _, e in seen] == [2, 0, 1]  # the join closes in the first round, lane a does one a round


def test_events_of_an_instant_come_by_round_then_number() -> None:
    tasks = [*(task(n, "core5", "pool", notify=True) for n in (0, 1)), timer(2, 5, notify=True), join(3, (1,), notify=True)]
    seen, _ = play(tasks, lambda now, event: [timer(10, 0, notify=True), timer(11, 0)] if event.task == 0 else ())
    assert [(now, e.task) for now, e in seen] == [(5, 0), (5, 1), (5, 2), (5, 3), (5, 10)]


def test_external_events_come_before_those_of_tasks() -> None:
    requests = [Request(0, 4, 4, arrival_ps=5), Request(1, 4, 4, arrival_ps=5), Request(2, 4, 4)]
    seen, _ = play([task(0, "copy5", notify=True)], arrivals=requests, changes=[(5, "cores", 3e12)], profile=COSTS)
    assert seen == [
        (0, Started(COSTS)), (0, Arrived(requests[2])),
        (5, Changed("cores", 3e12)), (5, Arrived(requests[0])), (5, Arrived(requests[1], last=True)), (5, Finished(0)),
    ]  # fmt: skip


def test_what_an_event_submits_starts_in_the_same_instant() -> None:
    seen, run = play([task(0, "copy5", notify=True)], lambda now, event: [task(1, "copy5"), task(2, "copy1", "b", (0,))])
    assert spans(run) == {0: (0, 5), 1: (5, 11), 2: (5, 7)}


def test_results_are_asked_for_where_notify_is_set() -> None:
    seen, _ = play([task(0, "copy5"), task(1, "copy1", notify=True, requests=(3, 4))], outcomes=lambda t: Result(ended=t.requests))
    assert seen == [(6, Finished(1, Result(ended=(3, 4))))]


def test_a_change_of_capacity_keeps_the_fraction_done() -> None:
    seen, run = play([task(0, "copy10")], changes=[(5, "link", 5e11), (7, "link", 2e12)])
    assert spans(run) == {0: (0, 9)}  # half at 5, 6 of 10 at 7, the rest at double speed
    assert seen == [(5, Changed("link", 5e11)), (7, Changed("link", 2e12))]


def test_capacity_zero_stalls_until_it_changes_again() -> None:
    _, run = play([task(0, "copy10"), task(1, "copy10", "b")], changes=[(10, "link", 0.0), (1000, "link", 1e12)])
    assert spans(run) == {0: (0, 1010), 1: (0, 1010)}
    _, run = play([task(0, "copy10")], changes=[(0, "link", 0.0), (3, "link", 1e12)])
    assert spans(run) == {0: (0, 13)}


def test_a_task_that_is_due_when_its_resource_stops_has_ended() -> None:
    _, run = play([task(0, "copy10")], changes=[(10, "link", 0.0)])
    assert spans(run) == {0: (0, 10)}


def test_a_stall_for_ever_is_a_deadlock_with_its_story() -> None:
    with pytest.raises(Deadlock, match=r"task 0 \(copy10\) on lane 'a' is stalled"):
        play([task(0, "copy10")], changes=[(4, "link", 0.0)])


def test_a_cycle_of_pool_waits_tells_its_story() -> None:
    tasks = [task(0, "copy1", "a", takes=(("x", 1),)), task(1, "copy1", "b", takes=(("y", 1),)),
             task(2, "copy1", "a", takes=(("y", 1),), releases=(0, 2)), task(3, "copy1", "b", takes=(("x", 1),), releases=(1, 3)),
             task(4, "copy1", "pool", (2, 3))]  # fmt: skip
    with pytest.raises(Deadlock) as story:
        play(tasks, pools={"x": 1, "y": 1})
    assert str(story.value).splitlines() == [
        "3 tasks are open and nothing can happen any more",
        "  task 2 (copy1) on lane 'a' waits for 1 of pool 'y' (0 free, held by task 1)",
        "  task 3 (copy1) on lane 'b' waits for 1 of pool 'x' (0 free, held by task 0)",
        "  task 4 (copy1) on lane 'pool' waits for tasks 2, 3 to be done",
    ]


# --- failure and cancel ---


def test_a_failure_is_told_and_its_dependents_are_given_up_in_number_order() -> None:
    tasks = [task(0, "copy10"), task(1, "copy1", "b", (0,)), task(2, "copy1", "a"), join(3, (1, 2)), task(4, "copy1", "b", (0, 1))]
    seen, run = play(tasks, failures=[(0, 0.4)])
    assert seen == [
        (4, Failed(0, "failed", 0.4)), (4, Failed(1, "dependency 0 failed")),
        (4, Failed(3, "dependency 1 cancelled")), (4, Failed(4, "dependency 0 failed")),
    ]  # fmt: skip
    assert statuses(run) == {0: "failed", 1: "cancelled", 2: "done", 3: "cancelled", 4: "cancelled"}
    assert spans(run) == {0: (0, 4), 1: (4, 4), 2: (4, 5), 3: (4, 4), 4: (4, 4)}


def test_who_waited_for_two_given_up_tasks_is_given_up_once_and_so_are_those_behind() -> None:
    seen, run = play([task(0, "copy10"), join(1, (0,)), join(2, (0, 1)), join(3, (2,))], failures=[(0, 0.4)])
    assert [event for _, event in seen] == [
        Failed(0, "failed", 0.4), Failed(1, "dependency 0 failed"), Failed(2, "dependency 0 failed"), Failed(3, "dependency 2 cancelled"),
    ]  # fmt: skip
    assert statuses(run) == {0: "failed", 1: "cancelled", 2: "cancelled", 3: "cancelled"}


@pytest.mark.parametrize(("op", "fraction", "end"), [("late10", 0.5, 10), ("late10", 0.0, 5), ("copy10", 1.0, 10), ("copy0", 0.5, 0)])
def test_a_failure_comes_when_that_part_of_the_work_is_done(op: str, fraction: float, end: int) -> None:
    seen, _ = play([task(0, op)], failures=[(0, fraction)])
    assert seen == [(end, Failed(0, "failed", fraction))]


def test_timers_and_joins_fail_too() -> None:
    seen, _ = play([timer(0, 8), join(1)], failures=[(0, 0.5), (1, 0.0)])
    assert seen == [(0, Failed(1, "failed", 0.0)), (4, Failed(0, "failed", 0.5))]


def test_a_failed_task_gives_its_own_holds_back() -> None:
    _, run = play([task(0, "copy10", takes=(("x", 1),)), task(1, "core1", "b", takes=(("x", 1),))], pools={"x": 1}, failures=[(0, 0.5)])
    assert spans(run)[1] == (5, 6)


def test_a_cancelled_task_still_releases_what_it_names() -> None:
    tasks = [task(0, "copy1", takes=(("x", 1),)), timer(1, 50, (0,), releases=(0,)), task(2, "core1", "b", takes=(("x", 1),))]
    _, run = play([*tasks, timer(3, 5, notify=True)], on(Finished(3), Cancel(1)), pools={"x": 1})
    assert spans(run) == {0: (0, 1), 1: (1, 5), 2: (5, 6), 3: (0, 5)}


@pytest.mark.parametrize(("victim", "fraction", "span"), [("copy10", 0.6, (0, 6)), ("late10", 0.1, (0, 6)), ("timer", 0.6, (0, 6))])
def test_cancel_ends_a_running_task_at_once(victim: str, fraction: float, span: tuple[int, int]) -> None:
    first = timer(0, 10) if victim == "timer" else task(0, victim)
    seen, run = play([first, task(1, "copy1"), timer(2, 6, notify=True)], on(Finished(2), Cancel(0, "too slow")))
    assert (6, Failed(0, "too slow", pytest.approx(fraction))) in seen
    assert spans(run)[0] == span and statuses(run)[0] == "cancelled"


def test_cancel_frees_the_lane_and_the_link() -> None:
    tasks = [task(0, "copy10"), task(1, "copy10", "b"), task(2, "core1"), timer(3, 4, notify=True)]
    _, run = play(tasks, on(Finished(3), Cancel(0)))
    assert spans(run) == {0: (0, 4), 1: (0, 12), 2: (4, 5), 3: (0, 4)}


def test_cancel_of_a_waiting_task_and_its_dependents() -> None:
    tasks = [task(0, "copy10"), task(1, "copy10"), task(2, "copy1", "b", (1,)), task(3, "core1")]
    seen, run = play([*tasks, Cancel(1)])
    assert seen == [(0, Failed(1, "cancelled")), (0, Failed(2, "dependency 1 cancelled"))]
    assert spans(run) == {0: (0, 10), 1: (0, 0), 2: (0, 0), 3: (10, 11)}


def test_cancel_in_the_latency_phase() -> None:
    seen, run = play([task(0, "late10"), timer(1, 3, notify=True), task(2, "copy1")], on(Finished(1), Cancel(0)))
    assert (3, Failed(0, "cancelled", 0.0)) in seen
    assert spans(run)[2] == (3, 4)


def test_cancel_in_the_very_instant_in_which_the_fluid_phase_begins() -> None:
    seen, run = play([task(0, "late10"), timer(1, 5, notify=True), task(2, "copy10")], on(Finished(1), Cancel(0)))
    assert (5, Failed(0, "cancelled", 0.0)) in seen
    assert spans(run)[2] == (5, 15)


def test_cancel_of_what_has_ended_changes_nothing() -> None:
    seen, run = play([task(0, "copy5", notify=True)], lambda now, event: [Cancel(0)])
    assert seen == [(5, Finished(0))] and statuses(run) == {0: "done"}


def test_dependencies_on_the_past() -> None:
    """A done one is satisfied, a failed one fails the task that names it."""
    later = on(Finished(2), task(5, "copy1", "b", (0,)), task(6, "copy1", "b", (1,)), join(7, (6,)))
    seen, run = play([task(0, "copy1"), task(1, "copy10"), timer(2, 9, notify=True)], later, failures=[(1, 0.5)])
    assert statuses(run) == {0: "done", 1: "failed", 2: "done", 5: "done", 6: "cancelled", 7: "cancelled"}
    assert seen[-2:] == [(9, Failed(6, "dependency 1 failed")), (9, Failed(7, "dependency 6 cancelled"))]


def test_a_plan_may_depend_on_earlier_commands() -> None:
    later = plan_of([task(4, "core1", "pool", (0, 1, 3)), task(5, "copy1", "b", (4, 1)), task(6, "copy1", "b", (2,))])
    tasks = [task(0, "copy1"), task(1, "copy10"), task(2, "core10", "pool"), timer(3, 5, notify=True)]
    seen, run = play(tasks, on(Finished(3), later), failures=[(2, 0.8)])
    assert spans(run)[4] == (11, 12) and spans(run)[5] == (12, 13)
    assert statuses(run)[6] == "cancelled" and seen[-1] == (8, Failed(6, "dependency 2 failed"))


# --- submissions that are not possible ---


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        ([task(0, "copy1", "urgnt")], "task 0: lane: unknown name 'urgnt'; did you mean 'urgent'"),
        ([task(0, "copy1", takes=(("slot", 1),))], "task 0: pool: unknown name 'slot'; did you mean 'slots'"),
        ([task(0, "copy1", takes=(("slots", 3),))], "task 0: takes 3 of pool 'slots', which holds 2"),
        ([task(0, "copy1", takes=(("slots", -1),))], "task 0: takes -1 of pool 'slots'"),
        ([task(3, "copy1", deps=(2,))], "task 3: depends on 2, which was not submitted before it"),
        ([task(3, "copy1", releases=(4,))], "task 3: releases 4, which was not submitted"),
        ([task(3, "copy1"), task(3, "copy1")], "task 3: numbers ascend"),
        ([Cancel(9)], "cancel of task 9: no such task"),
    ],
)
def test_impossible_commands_are_refused_at_submission(tasks: list, message: str) -> None:
    engine = SimPyEngine(LANES, {"slots": 2}, COSTS)
    with pytest.raises(UserError) as error:
        engine.submit(tasks)
    assert str(error.value).startswith(message)


def test_the_engine_itself_refuses_bad_settings() -> None:
    with pytest.raises(UserError, match="resource of a capacity change: unknown name 'lnk'; did you mean 'link'"):
        SimPyEngine(LANES, {}, COSTS, changes=[(0, "lnk", 1.0)])
    with pytest.raises(UserError, match="finite and not negative"):
        SimPyEngine(LANES, {}, COSTS, changes=[(0, "link", -1.0)])
    with pytest.raises(UserError, match="pools.x: capacity -1 is negative"):
        SimPyEngine(LANES, {"x": -1}, COSTS)
    with pytest.raises(UserError, match="a name stands twice"):
        SimPyEngine([*LANES, LANES[0]], {}, COSTS)
    with pytest.raises(UserError, match="failure of task 0 at 1.5"):
        SimPyEngine(LANES, {}, COSTS, failures=[(0, 1.5)])


def test_more_tasks_at_once_than_servers_were_expected() -> None:
    """Fluid tasks without a lane run without a limit: the solver's slots grow."""
    tasks = [task(n, "copy1", None) for n in range(300)]
    _, run = play(tasks)
    assert set(spans(run).values()) == {(0, 300)}


def test_the_engine_is_done_once_and_for_all() -> None:
    engine = SimPyEngine(LANES, {}, COSTS)
    engine.submit([task(0, "copy1")])
    drive(Script(), engine)
    assert engine.wait() is None and engine.now == 1


def test_time_zero_is_one_instant() -> None:
    """What answers Started does not start before the arrivals of time 0 are told."""
    requests = [Request(0, 4, 4)]

    def answer(now: int, event: object) -> list:
        if isinstance(event, Started):
            return [task(1, "copy5")]
        return [Cancel(1)] if isinstance(event, Arrived) else []

    seen, run = play([], answer, profile=COSTS, arrivals=requests, changes=[(0, "link", 5e11)])
    assert seen == [(0, Started(COSTS)), (0, Changed("link", 5e11)), (0, Arrived(requests[0], last=True)), (0, Failed(1, "cancelled"))]
    assert statuses(run) == {1: "cancelled"}
