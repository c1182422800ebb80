"""Every built-in scheduler passes the battery; a scheduler that breaks a rule is caught by that rule."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import count
from typing import Any

import pytest

from sim.events import Event, Failed, Finished, Request
from sim.plan import Plan, plan_of
from sim.schedulers import registry
from sim.schedulers.cgopipe import CGOPipe
from sim.tasks import Command, Task, Time, Work
from sim.testing import MORE, RULES, check
from sim.testing.cases import cases

SOME = [c for c in cases() if c.name in ("one batch", "refill")]
BATCH = [c for c in cases() if c.name == "one batch"]
REFILL = [c for c in cases() if c.name == "refill"]


@pytest.mark.parametrize("name", registry.names())
def test_built_in_schedulers_pass(name: str) -> None:
    verdicts = check(registry.load(name))
    assert [v.name for v in verdicts] == [*RULES, *MORE]
    assert [v for v in verdicts if not v.passed] == []


def test_another_seed_draws_other_runs_and_is_passed_too() -> None:
    assert [c.requests for c in cases(1)] != [c.requests for c in cases(0)]
    assert all(v.passed for v in check(CGOPipe, seed=1, runs=[c for c in cases(1) if c.name in ("refill", "tight cache")]))


def edited(edit: Callable[[Task], Task]) -> type[CGOPipe]:
    """CGOPipe whose tasks are changed on their way out."""

    class Edited(CGOPipe):
        def on(self, now: Time, event: Event) -> Sequence[Command]:
            return [plan_of([edit(t) for t in c.tasks()]) if isinstance(c, Plan) else c for c in super().on(now, event)]

    return Edited


def broken(make: type[Any], runs: Sequence[Any] = tuple(SOME)) -> dict[str, str]:
    """Stories of the rules that `make` breaks."""
    return {v.name: v.story for v in check(make, runs=runs) if not v.passed}


def on_op(op: str, **change: Any) -> type[CGOPipe]:
    """CGOPipe with one field of the tasks of one op replaced; a function gets the task."""

    def edit(t: Task) -> Task:
        if t.op != op:
            return t
        return replace(t, **{k: v(t) if callable(v) else v for k, v in change.items()})

    return edited(edit)


def work_of(**change: Any) -> Callable[[Task], Work]:
    return lambda t: t.work._replace(**{k: v(t.work) for k, v in change.items()})


def test_waiting_for_a_task_that_does_not_exist_breaks_dependencies() -> None:
    assert "which was not handed out before it" in broken(on_op("sample", deps=lambda t: (*t.deps, 10**6)), BATCH)["dependencies"]


def test_a_lane_that_is_not_declared_breaks_lanes() -> None:
    assert "queues on lane 'aside'; the scheduler declares gpu, cpu, h2d, d2h, pin" in broken(on_op("sample", lane="aside"), BATCH)["lanes"]


def test_units_that_never_come_back_break_termination() -> None:
    stories = broken(on_op("kv_to_cpu", releases=()), BATCH)
    assert "kv_lines" in stories["termination"] and "did not end" in stories["failure"]


def test_units_that_are_kept_at_the_end_break_pools() -> None:
    def keep(t: Task) -> Task:
        return replace(t, takes=(("kv_lines", 2),)) if t.op == "sample" and t.step == 4 and not t.notify else t

    assert "were never given back" in broken(edited(keep), BATCH)["pools"]


def test_a_pool_that_is_not_declared_breaks_pools() -> None:
    assert "'turnstile', which the scheduler does not declare" in broken(on_op("embed", takes=(("turnstile", 1),)), BATCH)["pools"]


def test_reading_too_early_breaks_read_after_write() -> None:
    stories = broken(on_op("load_hidden", deps=()))
    assert "reads it from" in stories["read after write"] and "attn_host" in stories["read after write"]


def test_reading_what_nobody_wrote_breaks_read_after_write() -> None:
    assert "nobody wrote it" in broken(on_op("sample", reads=("attn_host.77",)), BATCH)["read after write"]


def test_weight_pages_without_their_slots_break_write_after_read() -> None:
    stories = broken(on_op("page_to_gpu", takes=()))
    assert "writes it from" in stories["write after read"] and "buffer w." in stories["write after read"]


def test_pinned_slots_without_their_pool_break_write_after_read() -> None:
    assert "buffer pin." in broken(on_op("page_to_pin", takes=()))["write after read"]


def test_two_writers_at_once_break_write_after_write() -> None:
    stories = broken(on_op("page_to_pin", writes=lambda t: (*t.writes, "token.0")))
    assert "buffer token.0" in stories["write after write"]


def test_a_layer_that_is_computed_twice_breaks_tokens_once() -> None:
    class Twice(CGOPipe):
        def decode(self, p: Any) -> None:
            super().decode(p)
            p.pre_attn(0, p.rows[0])

    assert "step" in broken(Twice)["tokens once"]


def test_a_step_too_many_breaks_tokens_once() -> None:
    class OneMore(CGOPipe):
        def _whole_batch(self, length: int) -> Plan:
            return super()._whole_batch(length + 1)

    assert "got 6 tokens, not 5" in broken(OneMore, BATCH)["tokens once"]


@pytest.mark.parametrize(("op", "told"), [("attn_decode", "it reads"), ("attn_prefill", "context should be")])
def test_a_wrong_context_breaks_tokens_once(op: str, told: str) -> None:
    assert told in broken(on_op(op, work=work_of(context=lambda w: w.context + 1)), BATCH)["tokens once"]


def test_a_context_that_does_not_grow_breaks_tokens_once() -> None:
    class Still(CGOPipe):
        def _whole_batch(self, length: int) -> Plan:
            plan = super()._whole_batch(length)
            first = {(t.layer, t.microbatch): t.work for t in reversed([*plan.tasks()]) if t.op == "attn_decode"}
            return plan_of([replace(t, work=first[t.layer, t.microbatch]) if t.op == "attn_decode" else t for t in plan.tasks()])

    assert "entries" in broken(Still, BATCH)["tokens once"]


def test_too_few_experts_break_tokens_once() -> None:
    assert "has 3 experts" in broken(on_op("post_attn", work=work_of(experts=lambda w: w.experts - 1)), BATCH)["tokens once"]


@pytest.mark.parametrize("op", ["offload_qkv", "load_hidden", "kv_to_cpu", "hidden_to_cpu", "hidden_to_gpu"])
def test_wrong_bytes_break_bytes_moved(op: str) -> None:
    assert f" {op} (" in broken(on_op(op, work=work_of(bytes=lambda w: w.bytes + 1)), BATCH)["bytes moved"]


def test_a_page_that_is_left_out_breaks_weights_present() -> None:
    def leave_out(t: Task) -> Task:
        return replace(t, reads=tuple(b for b in t.reads if not b.endswith(".2") or b[0] != "w")) if t.op == "post_attn" else t

    assert "bytes of streamed experts" in broken(edited(leave_out))["weights present"]


def test_pages_of_another_layer_break_weights_present() -> None:
    stories = broken(on_op("page_to_gpu", layer=lambda t: (t.layer + 1) % 3), BATCH)
    assert "which holds another page" in stories["weights present"]


def test_weights_that_are_still_coming_break_weights_present() -> None:
    hasty = on_op("post_attn", deps=lambda t: t.deps if t.microbatch or len(t.requests) == 1 else ())
    assert "brings until" in broken(hasty, BATCH)["weights present"]


def test_another_page_in_the_pinned_slot_breaks_weights_present() -> None:
    stories = broken(on_op("page_to_pin", page=lambda t: (t.page + 1) % 4))
    assert "which holds another page" in stories["weights present"]


def test_understated_memory_breaks_memory() -> None:
    class Modest(CGOPipe):
        def memory(self, requests: Sequence[Request]) -> dict[str, dict[str, int]]:
            stated = super().memory(requests)
            return {**stated, "cpu": {**stated["cpu"], "kv": stated["cpu"]["kv"] // 2}}

    assert "memory 'cpu' holds" in broken(Modest)["memory"]


def test_going_on_for_ever_breaks_termination() -> None:
    class Restless(CGOPipe):
        def on(self, now: Time, event: Event) -> Sequence[Command]:
            tick = Task(self._launch.next, Work("timer", latency_ps=1), notify=True)
            self._launch.add(tick.work, None)
            self._launch.build()
            return [tick]

    assert "events and still going" in broken(Restless, BATCH)["termination"]


def test_an_exception_is_told() -> None:
    class Clumsy(CGOPipe):
        def decode(self, p: Any) -> None:
            raise ZeroDivisionError("oh")

    assert "raised ZeroDivisionError: oh" in broken(Clumsy, BATCH)["termination"]


def test_state_beyond_the_object_breaks_same_seed_and_replay() -> None:
    numbers = count()

    class Moody(CGOPipe):
        def __init__(self, *args: Any, **how: Any) -> None:
            super().__init__(*args, **how)
            self._mood = next(numbers)

        def on(self, now: Time, event: Event) -> Sequence[Command]:
            mood = self._mood % 7
            return [plan_of([replace(t, priority=mood) for t in c.tasks()]) if isinstance(c, Plan) else c for c in super().on(now, event)]

    stories = broken(Moody, BATCH)
    assert "two runs with seed 0" in stories["same seed"]
    assert "commands hash" in stories["replay"]


def test_taking_a_failure_for_an_end_breaks_failure() -> None:
    class Careless(CGOPipe):
        def on(self, now: Time, event: Event) -> Sequence[Command]:
            if isinstance(event, Failed):
                return super().on(now, Finished(event.task)) if event.task in self._open else ()
            return super().on(now, event)

    assert "failure" in broken(Careless, REFILL)


def test_a_class_of_its_own_needs_no_base() -> None:
    """The battery asks for lanes, pools, on and memory only."""

    class Wrapped:
        lanes = CGOPipe.lanes

        def __init__(self, *args: Any, **how: Any) -> None:
            self._inner = CGOPipe(*args, **how)
            self.pools: Mapping[str, int] = self._inner.pools

        def on(self, now: Time, event: Event) -> Sequence[Command]:
            return self._inner.on(now, event)

        def memory(self, requests: Sequence[Request]) -> dict[str, dict[str, int]]:
            return self._inner.memory(requests)

    assert broken(Wrapped) == {}
