"""ThreadEngine: order on lanes, pools, joins, timers, events, arrivals."""

from __future__ import annotations

import gc
import sys
import threading

import numpy as np
import pytest

from exec.runtime import ThreadEngine
from sim.drive import Deadlock, Log, replay
from sim.engines.run import DONE
from sim.events import Arrived, Finished, Request, Result, Started
from sim.machines.schema import Lane
from sim.plan import PlanBuilder, plan_of
from sim.tasks import Work
from tests.exec.runtime.support import Commands, Functions, Profile, lane_threads, machine, run, task, until


def test_a_submitted_lane_blocks_at_its_head():
    backend = Functions({0: lambda *_: until(lambda: 3 in backend.starts)})
    tasks = [task(0, "b"), task(1, "a", deps=(0,)), task(2, "a"), task(3, "c")]
    run(Commands(tasks), backend, machine("a", "b", "c"))
    assert backend.starts.index(1) < backend.starts.index(2)


@pytest.mark.parametrize("order", ["ready", "priority"])
def test_a_lane_that_is_not_in_order_takes_what_is_ready_and_most_urgent(order):
    backend = Functions({0: lambda *_: until(lambda: (("end", 3)) in backend.notes), 5: lambda *_: None})
    tasks = [task(0, "b"), task(1, "a", deps=(0,)), task(2, "a"), task(3, "a", priority=-1)]
    run(Commands(tasks), backend, machine(Lane(name="a", kind="compute", order=order), "b"))
    assert [n for n in backend.starts if n != 0] == [3, 2, 1]


def _pool_tasks():
    """0 holds the only unit until 3 ends; 1 wants it; 2, less urgent, wants nothing."""
    return [
        task(0, "b", takes=(("slots", 1),)),
        task(1, "a", deps=(0,), takes=(("slots", 1),), releases=(1,)),
        task(2, "a", deps=(0,), priority=1),
        task(3, "c", deps=(0,), releases=(0,)),
    ]


@pytest.mark.parametrize(("order", "expected"), [("ready", [2, 1]), ("priority", [1, 2]), ("submitted", [1, 2])])
def test_a_full_pool_is_skipped_or_waited_for_as_the_lane_says(order, expected):
    waits_for = {3: lambda *_: until(lambda: order != "ready" or ("end", 2) in backend.notes)}
    backend = Functions(waits_for)
    run(Commands(_pool_tasks()), backend, machine(Lane(name="a", kind="compute", order=order), "b", "c", pools={"slots": 1}))
    assert [n for n in backend.starts if n in (1, 2)] == expected
    assert backend.notes.index(("end", 3)) < backend.notes.index(("start", 1))


def test_a_pool_makes_another_lane_wait_until_the_release():
    backend = Functions()
    tasks = [task(n, "a" if n % 2 else "b", takes=(("slots", 2),), releases=(n,)) for n in range(40)]
    run(Commands(tasks), backend, machine("a", "b"), pools={"slots": 3})
    running = 0
    for what, _ in backend.notes:
        running += 1 if what == "start" else -1
        assert running <= 1


def test_servers_run_side_by_side():
    both = threading.Barrier(2, timeout=10)
    backend = Functions({0: lambda *_: both.wait() and None, 1: lambda *_: both.wait() and None})
    run(Commands([task(0), task(1), task(2)]), backend, machine(Lane(name="a", kind="compute", servers=2)))
    assert backend.entered == ["a", "a"]
    assert sorted(backend.starts) == [0, 1, 2]


def test_joins_close_at_once_and_cascade():
    tasks = [task(0), task(1, None, "join", deps=(0,)), task(2, None, "join", deps=(1,), notify=True), task(3, deps=(2,))]
    scheduler = Commands(tasks)
    made = run(scheduler, Functions(), machine("a"))
    assert made.start_ps[1] == made.end_ps[1] == made.end_ps[2] == made.end_ps[0]
    assert scheduler.seen == [(made.end_ps[0], Finished(2))]


def test_a_join_may_hold_and_release():
    """Join 1 takes what task 0 holds; join 2, which may go first, gives it back."""
    tasks = [
        task(0, takes=(("slots", 1),)),
        task(1, None, "join", takes=(("slots", 1),), releases=(1,)),
        task(2, None, "join", deps=(0,), releases=(0,)),
        task(3, deps=(1,)),
    ]
    made = run(Commands(tasks), Functions(), machine("a", pools={"slots": 1}))
    assert made.number.tolist() == [0, 1, 2, 3]
    assert (made.status == DONE).all()


def test_timers_end_when_they_are_due():
    ms = 10**9
    tasks = [task(0, None, "timer", latency_ps=3 * ms, notify=True), task(1, None, "timer", latency_ps=ms, notify=True), task(2, deps=(0,))]
    scheduler = Commands(tasks)
    made = run(scheduler, Functions(), machine("a"))
    assert [e.task for e in scheduler.events] == [1, 0]
    assert made.end_ps[0] - made.start_ps[0] == 3 * ms
    assert made.start_ps[2] >= made.end_ps[0]


def test_only_notify_raises_finished_and_the_result_travels():
    backend = Functions({0: lambda *_: Result(ended=(7,))})
    scheduler = Commands([task(0, notify=True), task(1)])
    run(scheduler, backend, machine("a"))
    assert scheduler.events == [Finished(0, Result(ended=(7,)))]


def test_now_never_goes_back():
    tasks = [task(n, "ab"[n % 2], notify=True) for n in range(400)]
    scheduler = Commands(tasks)
    run(scheduler, Functions(), machine("a", "b"))
    times = [now for now, _ in scheduler.seen]
    assert times == sorted(times)
    assert len(times) == 400


def test_started_comes_first_then_requests_by_arrival():
    requests = [Request(0, 5, 2), Request(1, 5, 2, arrival_ps=2 * 10**9), Request(2, 5, 2)]
    seen = []
    with ThreadEngine(machine("a"), Functions(), Profile(), requests) as engine:
        while (happened := engine.wait()) is not None:
            seen.append(happened)
    assert isinstance(seen[0][1], Started)
    assert [(now, e.request.request_id, e.last) for now, e in seen[1:]] == [(0, 0, False), (0, 2, False), (2 * 10**9, 1, True)]
    assert all(isinstance(e, Arrived) for _, e in seen[1:])


def test_plans_and_tasks_run_alike_and_commands_may_follow():
    builder = PlanBuilder()
    first = builder.add(Work("op"), "a", writes=("x",))
    builder.add(Work("op"), "b", (first,), reads=("x",), notify=True, requests=(3, 4), phase="decode", step=2, layer=1, microbatch=0)
    seen = {}
    backend = Functions({1: lambda t, _: seen.update(reads=list(t.reads), requests=t.requests, phase=t.phase, step=t.step, layer=t.layer)})
    more = plan_of([task(2, "a", deps=(1,)), task(3, "b", deps=(2, 0))])
    scheduler = Commands([builder.build()], lambda now, e: [more] if e == Finished(1) else ())
    made = run(scheduler, backend, machine("a", "b"))
    assert made.number.tolist() == [0, 1, 2, 3]
    assert seen == {"reads": ["x"], "requests": (3, 4), "phase": "decode", "step": 2, "layer": 1}
    assert (np.diff(made.start_ps) >= 0).all()


def test_stamps_enclose_the_work_and_dependents_start_after():
    import time

    backend = Functions({0: lambda *_: time.sleep(0.01)})
    made = run(Commands([task(0, "a"), task(1, "b", deps=(0,))]), backend, machine("a", "b"))
    assert made.end_ps[0] - made.start_ps[0] >= 10 * 10**9
    assert made.start_ps[1] >= made.end_ps[0]


@pytest.mark.parametrize(
    ("commands", "says"),
    [
        ([task(1), task(0)], "numbers must ascend"),
        ([task(0, deps=(9,))], "depends on task 9, which was not submitted before it"),
        ([task(0, "nowhere")], "lane: unknown name 'nowhere'; have a"),
        ([task(0, takes=(("slots", 3),))], "takes 3 of pool 'slots', which holds 2"),
        ([task(0, takes=(("slots", 1), ("slots", 2)))], "takes 3 of pool 'slots'"),
        ([task(0, takes=(("slots", -1),))], "takes -1 of pool 'slots'"),
        ([task(0, takes=(("cups", 1),))], "pool: unknown name 'cups'; have slots"),
    ],
)
def test_commands_that_break_the_rules_are_refused(commands, says):
    with pytest.raises(ValueError, match=says):
        run(Commands(commands), Functions(), machine("a", pools={"slots": 2}))
    assert not lane_threads()


def test_a_deadlock_tells_its_story():
    tasks = [
        task(0, "a", takes=(("slots", 1),)),
        task(1, "b", "page_to_gpu", deps=(0,), takes=(("slots", 1),), phase="decode", step=1, layer=2, page=3),
        task(2, "a", deps=(1,), releases=(0,)),
    ]
    with pytest.raises(Deadlock) as caught:
        run(Commands(tasks), Functions(), machine("a", "b", pools={"slots": 1}))
    story = str(caught.value)
    assert "2 tasks are open" in story
    assert "task 2 (op) on lane 'a' waits for task 1 (page_to_gpu)" in story
    assert "task 1 (page_to_gpu, decode step 1, layer 2, page 3) on lane 'b' waits for 1 of pool 'slots'" in story
    assert "(0 of 1 free, held by task 0)" in story
    assert not lane_threads()


def test_threads_switch_interval_and_collector_are_put_back():
    before = threading.enumerate(), sys.getswitchinterval(), gc.isenabled()
    inside = []
    backend = Functions({0: lambda *_: inside.append((sys.getswitchinterval(), gc.isenabled()))})
    run(Commands([task(0)]), backend, machine("a", "b"))
    assert inside[0][0] < before[1] and not inside[0][1]
    assert (threading.enumerate(), sys.getswitchinterval(), gc.isenabled()) == before


def test_any_log_replays_through_a_fresh_scheduler():
    def scheduler():
        first = [task(n, "ab"[n % 2], notify=True) for n in range(20)]
        return Commands(first, lambda now, e: [task(100, "a")] if e == Finished(19) else ())

    log = Log()
    run(scheduler(), Functions(), machine("a", "b"), log=log)
    replay(log, scheduler())
