"""What goes wrong in a lane: faults that schedulers hear of, errors that end the run, cancels, hazards."""

from __future__ import annotations

import os
import signal
import threading
import time
import traceback

import pytest

from exec.runtime import Fault, HazardError, Interrupted, RuntimeStuck, TaskFailed, ThreadEngine
from exec.runtime.records import record_of
from exec.runtime.servers import LaneThreads, join
from sim.drive import drive
from sim.engines.run import CANCELLED, DONE, FAILED
from sim.events import Failed, Finished
from sim.machines.schema import Lane
from sim.tasks import Cancel
from tests.exec.runtime.support import Commands, Functions, Profile, lane_threads, machine, run, task, until, until_interrupted


def _raise(error):
    def op(*_):
        raise error

    return op


def test_a_fault_fails_the_task_and_its_dependents_in_number_order():
    tasks = [
        task(0, "a", takes=(("slots", 1),)),
        task(1, "b", deps=(0,)),
        task(2, "a", deps=(1,)),
        task(3, "b"),
        task(4, "b", deps=(3,), takes=(("slots", 1),), releases=(4,), notify=True),
        task(5, None, "join", deps=(0, 3)),
    ]
    scheduler = Commands(tasks)
    made = run(scheduler, Functions({0: _raise(Fault("disk on fire", 0.5))}), machine("a", "b", pools={"slots": 1}))
    failures = [e for e in scheduler.events if isinstance(e, Failed)]
    assert failures == [
        Failed(0, "disk on fire", 0.5),
        Failed(1, "dependency 0 failed"),
        Failed(2, "dependency 1 cancelled"),
        Failed(5, "dependency 0 failed"),
    ]
    assert Finished(4) in scheduler.events  # the hold of task 0 went back
    assert made.status.tolist() == [FAILED, CANCELLED, CANCELLED, DONE, DONE, CANCELLED]


def test_a_dependency_on_a_failed_task_fails_at_submission():
    scheduler = Commands([task(0)], lambda now, e: [task(1, deps=(0,)), task(2)] if e == Failed(0, "no") else ())
    made = run(scheduler, Functions({0: _raise(Fault("no"))}), machine("a"))
    assert scheduler.events == [Failed(0, "no"), Failed(1, "dependency 0 failed")]
    assert made.status.tolist() == [FAILED, CANCELLED, DONE]


def test_an_error_interrupts_the_other_lanes_and_keeps_its_traceback():
    def broken_op(*_):
        until(lambda: ("start", 1) in backend.notes)
        return 1 / 0

    backend = Functions({0: broken_op, 1: until_interrupted})
    with pytest.raises(TaskFailed, match=r"task 0 \(op, decode step 1, layer 2\) failed on lane 'a': ZeroDivisionError") as caught:
        run(Commands([task(0, "a", phase="decode", step=1, layer=2), task(1, "b"), task(2, "b")]), backend, machine("a", "b"))
    assert "broken_op" in "".join(traceback.format_tb(caught.value.__cause__.__traceback__))
    assert not lane_threads()
    assert 2 not in backend.starts


def test_a_lane_that_does_not_come_back_is_named_with_its_task(monkeypatch):
    busy, over = threading.Event(), threading.Event()

    def serve(_, server):
        server.task = record_of(task(7, op="gemm"))
        busy.set()
        over.wait()

    lane = LaneThreads(Lane(name="gpu", kind="compute"), threading.Lock())
    lane.start(serve)
    busy.wait()
    monkeypatch.setattr("exec.runtime.servers.JOIN_TIMEOUT_S", 0.0)
    try:
        with pytest.raises(RuntimeStuck, match=r"lane-gpu-0: task 7 \(gemm\)"):
            join([lane])
    finally:
        over.set()
    monkeypatch.undo()
    join([lane])
    assert not lane_threads()


def test_a_lane_that_cannot_be_entered_ends_the_run():
    class Closed(Functions):
        def enter_lane(self, lane):
            if lane.name == "b":
                raise OSError("no such lane here")

    with pytest.raises(OSError, match="no such lane here"):
        run(Commands([task(0)]), Closed(), machine("a", "b"))
    assert not lane_threads()


def test_a_scheduler_that_raises_leaves_no_thread():
    def react(now, event):
        raise RuntimeError("scheduler is confused")

    backend = Functions({1: until_interrupted})
    with pytest.raises(RuntimeError, match="confused"):
        run(Commands([task(0, "a", notify=True), task(1, "b")], react), backend, machine("a", "b"))
    assert not lane_threads()


def test_ctrl_c_stops_all_lanes():
    def interrupted(task, interrupt):
        os.kill(os.getpid(), signal.SIGINT)
        until_interrupted(task, interrupt)

    # A shell starts what runs in its background with SIGINT ignored, and Python leaves that so.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            run(Commands([task(0)]), Functions({0: interrupted}), machine("a", "b"))
    finally:
        signal.signal(signal.SIGINT, before)
    assert not lane_threads()


def test_cancel_interrupts_a_running_task_and_gives_up_its_dependents():
    backend = Functions({0: until_interrupted, 1: lambda *_: until(lambda: ("start", 0) in backend.notes)})
    tasks = [task(0, "a", takes=(("slots", 1),)), task(1, "b", notify=True), task(2, "b", deps=(0,)), task(3, "a", takes=(("slots", 1),))]
    scheduler = Commands(tasks, lambda now, e: [Cancel(0, "too slow")] if e == Finished(1) else ())
    made = run(scheduler, backend, machine("a", "b", pools={"slots": 1}))
    assert scheduler.events == [Finished(1), Failed(0, "too slow", 0.25), Failed(2, "dependency 0 cancelled")]
    assert made.status.tolist() == [CANCELLED, DONE, CANCELLED, DONE]


def test_cancel_of_a_waiting_task_a_timer_and_an_ended_task():
    ms = 10**9
    backend = Functions({0: lambda *_: until(lambda: any(isinstance(e, Failed) and e.task == 3 for e in scheduler.events))})
    tasks = [task(0, "a"), task(1, "b", notify=True), task(2, "a"), task(3, None, "timer", latency_ps=10_000 * ms), task(4, "a")]
    cancels = [Cancel(1), Cancel(2, "not needed"), Cancel(3, "early")]
    scheduler = Commands(tasks, lambda now, e: cancels if e == Finished(1) else ())
    made = run(scheduler, backend, machine("a", "b"))
    assert [(e.task, e.reason) for e in scheduler.events if isinstance(e, Failed)] == [(2, "not needed"), (3, "early")]
    assert 2 not in backend.starts
    assert made.status.tolist() == [DONE, DONE, CANCELLED, CANCELLED, DONE]


def test_a_cancelled_op_that_ends_anyway_counts_as_cancelled():
    backend = Functions({0: lambda _, interrupt: until(lambda: bool(interrupt)), 1: lambda *_: until(lambda: 0 in backend.starts)})
    scheduler = Commands([task(0), task(1, "b", notify=True)], lambda now, e: [Cancel(0)] if e == Finished(1) else ())
    run(scheduler, backend, machine("a", "b"))
    assert Failed(0, "cancelled", 1.0) in scheduler.events


def test_cancel_of_an_unknown_task_is_refused():
    with pytest.raises(ValueError, match=r"Cancel\(5\): no such task"):
        run(Commands([Cancel(5)]), Functions(), machine("a"))


@pytest.mark.parametrize(
    ("first", "second", "does"),
    [
        ({"reads": ("w.0.1",)}, {"writes": ("w.0.1",)}, "writes it while task 0 .* reads it"),
        ({"writes": ("w.0.1",)}, {"reads": ("w.0.1",)}, "reads it while task 0 .* writes it"),
        ({"writes": ("w.0.1",)}, {"writes": ("w.0.1",)}, "writes it while task 0 .* writes it"),
    ],
)
def test_two_tasks_on_one_buffer_are_caught(first, second, does):
    backend = Functions({0: until_interrupted})
    with pytest.raises(HazardError, match=rf"buffer 'w.0.1': task 1 \(op\) {does}"):
        run(Commands([task(0, "a", **first), task(1, "b", **second)]), backend, machine("a", "b"))
    assert not lane_threads()


def test_readers_may_share_and_a_task_may_update_in_place():
    both = threading.Barrier(2, timeout=10)
    backend = Functions({0: lambda *_: both.wait() and None, 1: lambda *_: both.wait() and None})
    tasks = [task(0, "a", reads=("x",)), task(1, "b", reads=("x",))]
    tasks += [task(2, "a", deps=(1,), reads=("x",), writes=("x",)), task(3, "b", deps=(2,), reads=("x",))]
    made = run(Commands(tasks), backend, machine("a", "b"))
    assert made.status.tolist() == [DONE] * 4


def test_an_interrupt_of_its_own_is_an_error():
    with pytest.raises(TaskFailed, match="Interrupted"):
        run(Commands([task(0)]), Functions({0: _raise(Interrupted())}), machine("a"))


def test_wait_after_an_error_raises_it_again():
    with ThreadEngine(machine("a"), Functions({0: _raise(KeyError("x"))}), Profile(), []) as engine:
        for _ in range(2):
            with pytest.raises(TaskFailed):
                drive(Commands([task(0)]), engine)


def test_what_needs_the_buffers_of_a_cancelled_op_waits_for_it():
    """The simulator ends a cancelled task at once, so a plan that follows has no dependency on it."""
    stopped = threading.Event()

    def slow_to_stop(_, interrupt):
        until(lambda: bool(interrupt))
        time.sleep(0.05)
        stopped.set()
        raise Interrupted(0.5)

    backend = Functions({0: slow_to_stop, 1: lambda *_: until(lambda: 0 in backend.starts), 2: lambda *_: stopped.is_set() or 1 / 0})
    tasks = [task(0, "a", writes=("w.0.0",)), task(1, "b", notify=True)]
    more = [Cancel(0), task(2, "b", reads=("w.0.0",)), task(3, "b", writes=("w.0.0",))]
    made = run(Commands(tasks, lambda now, e: more if e == Finished(1) else ()), backend, machine("a", "b"))
    assert made.status.tolist() == [CANCELLED, DONE, DONE, DONE]
