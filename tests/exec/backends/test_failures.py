"""Broken plans are caught, faults are survived, errors end the run."""

from __future__ import annotations

import threading
import time
import traceback

import pytest

from exec import decoder
from exec.backends.cpu import CpuBackend
from exec.runtime import Fault, HazardError, TaskFailed
from exec.session import run
from sim.drive import Deadlock
from sim.events import Failed
from sim.schedulers import registry
from sim.schedulers.policy import Policy
from tests.exec.backends.support import SPEC, assert_equals_plain, execute, machine, weights, workload

POLICY, WORK = Policy(batch=4, microbatch=2, cache_tokens=99), workload((5, 9, 3, 8), 4)


def _no_lanes():
    return not [t for t in threading.enumerate() if t.name.startswith("lane-")]


def test_an_op_that_raises_ends_the_run_with_its_traceback(monkeypatch):
    original = decoder.post_attn
    calls = []

    def broken_post_attn(spec, *args):
        calls.extend([time.monotonic()] * (spec.hidden == SPEC.hidden))  # warming up uses another size
        if len(calls) == 9:
            raise FloatingPointError("the router has melted")
        return original(spec, *args)

    monkeypatch.setattr(decoder, "post_attn", broken_post_attn)
    with pytest.raises(TaskFailed, match=r"post_attn, decode step 1.* failed on lane 'gpu': FloatingPointError: the router") as caught:
        execute("cgopipe", POLICY, WORK)
    assert "broken_post_attn" in "".join(traceback.format_tb(caught.value.__cause__.__traceback__))
    assert _no_lanes()


@pytest.mark.parametrize("scheduler", registry.names())
def test_a_pass_with_a_fault_is_repeated_and_comes_out_right(scheduler, monkeypatch):
    """The layer's first decode copy (or product) fails once; the scheduler launches the pass again."""
    original, failed = CpuBackend.run, []

    def fails_once(self, task, interrupt):
        if task.phase == "decode" and task.step == 2 and task.layer == 1 and not failed:
            failed.append(task.number)
            raise Fault("a bit flipped", 0.0)
        return original(self, task, interrupt)

    monkeypatch.setattr(CpuBackend, "run", fails_once)
    work = workload((5, 9, 3, 8), (4, 2, 5, 3), known=False)
    outcome = execute(scheduler, POLICY, work, keep_logits=True, poison=True)
    assert failed
    tokens = execute(scheduler, POLICY, work).tokens
    assert outcome.tokens == tokens
    for request in tokens:  # a repeated sampling may leave a row of logits behind; the tokens are the last word
        assert len(outcome.logits[request]) >= len(tokens[request])


def test_the_whole_run_is_given_up_after_a_fault_in_a_plan_handed_out_whole(monkeypatch):
    original = CpuBackend.run

    def fails(self, task, interrupt):
        if task.op == "offload_qkv":
            raise Fault("link down", 0.5)
        return original(self, task, interrupt)

    monkeypatch.setattr(CpuBackend, "run", fails)
    outcome = execute("cgopipe", POLICY, WORK)
    assert {r: len(t) for r, t in outcome.tokens.items()} == dict.fromkeys(range(4), 1)
    assert _no_lanes()


def test_a_copy_on_its_way_is_not_waited_for(monkeypatch):
    """The op raises while a copy of a minute has begun."""
    began = threading.Event()
    original = CpuBackend.run

    def run_op(self, task, interrupt):
        if task.op == "layer_to_gpu" and task.layer == 1:
            began.set()
        if task.op == "post_attn":
            assert began.wait(10)
            raise FloatingPointError("the router has melted")
        result = original(self, task, interrupt)
        if task.op == "layer_to_gpu":
            self.links["h2d"].bytes_per_s = task.work.bytes / 60  # the next copy takes a minute
        return result

    monkeypatch.setattr(CpuBackend, "run", run_op)
    with pytest.raises(TaskFailed, match="FloatingPointError"):  # a lane that waits out its copy is RuntimeStuck
        execute("deepspeed", POLICY, WORK)
    assert _no_lanes()


class _Greedy(registry.load("cgopipe")):
    """CGOPipe without weight slots: pages go wherever their turn comes, whoever still reads there."""

    def __init__(self, model, policy, *, seed=0):
        super().__init__(model, policy, seed=seed)
        self.pools = {**self.pools, "gpu_pages": 10_000, "pinned_slots": 10_000}


def test_a_plan_without_weight_slots_is_caught(monkeypatch):
    original = decoder.post_attn

    def slow(*args):
        time.sleep(0.003)
        return original(*args)

    monkeypatch.setattr(decoder, "post_attn", slow)
    requests, prompts, _ = WORK
    with pytest.raises((HazardError, TaskFailed)) as caught:
        run(SPEC, weights(), machine(), _Greedy(SPEC, POLICY), requests, prompts)
    assert "buffer 'w." in str(caught.value) or "which holds layer" in str(caught.value)
    assert _no_lanes()


def test_weight_slots_make_the_link_wait():
    """With the pool, no page of a half starts before the last post_attn of the layer that was there has ended."""
    outcome = execute("cgopipe", POLICY, WORK)
    (plan,) = outcome.run.sources
    end = dict(zip(outcome.run.number.tolist(), outcome.run.end_ps.tolist(), strict=True))
    start = dict(zip(outcome.run.number.tolist(), outcome.run.start_ps.tolist(), strict=True))
    readers: dict[str, int] = {}
    checked = 0
    for task in plan.tasks():
        if task.op == "page_to_gpu":
            assert start[task.number] >= readers.get(task.writes[0], 0)
            checked += task.writes[0] in readers
        for name in task.reads:
            if task.op == "post_attn":
                readers[name] = max(readers.get(name, 0), end[task.number])
    assert checked > 10


class _Forgetful(registry.load("cgopipe")):
    """One layer of weight slots: the next layer's first page waits for the layer's end, which waits
    for hidden states behind that page."""

    def __init__(self, model, policy, *, seed=0):
        super().__init__(model, policy, seed=seed)
        self.pools = {**self.pools, "gpu_pages": self.pools["gpu_pages"] // 2}


def test_a_schedule_that_cannot_go_on_tells_its_story():
    requests, prompts, _ = WORK
    with pytest.raises(Deadlock, match=r"on lane 'h2d' waits for .*pool 'gpu_pages'"):
        run(SPEC, weights(), machine(), _Forgetful(SPEC, POLICY), requests, prompts)
    assert _no_lanes()


def test_failures_reach_the_scheduler_in_number_order(monkeypatch):
    original, seen = CpuBackend.run, []

    def fails(self, task, interrupt):
        if task.op == "attn_decode" and task.step == 1 and task.layer == 0:
            raise Fault("no cores left")
        return original(self, task, interrupt)

    class Listening(registry.load("cgopipe")):
        def on(self, now, event):
            if isinstance(event, Failed):
                seen.append(event)
            return super().on(now, event)

    monkeypatch.setattr(CpuBackend, "run", fails)
    requests, prompts, _ = WORK
    run(SPEC, weights(), machine(), Listening(SPEC, POLICY), requests, prompts)
    assert seen[0].reason == "no cores left"
    assert seen[1].reason == f"dependency {seen[0].task} failed"


def test_plain_equality_holds_after_all_this():
    assert_equals_plain(execute("cgopipe", POLICY, WORK, keep_logits=True), WORK)
