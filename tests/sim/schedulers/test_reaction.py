"""What a scheduler does when sequences end, requests wait, and tasks fail."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from sim.errors import UserError
from sim.events import Arrived, Changed, Failed, Finished, Request, Result
from sim.plan import Plan
from sim.schedulers.base import Scheduler
from sim.schedulers.cgopipe import CGOPipe
from sim.schedulers.policy import Policy
from sim.tasks import Cancel, Command, Task
from sim.testing.cases import tiny_model


def start(requests: Sequence[Request], *, last: bool = True, **policy: object) -> tuple[Scheduler, Sequence[Command]]:
    sizes = {"batch": 4, "microbatch": 2, "cache_tokens": 99, **policy}
    scheduler = CGOPipe(tiny_model(2), Policy.model_validate(sizes))
    commands: Sequence[Command] = ()
    for r in requests:
        assert not commands, "one batch is handed out, when it is complete"
        commands = scheduler.on(0, Arrived(r, last and r is requests[-1]))
    return scheduler, commands


def open_ended(n: int, longest: int = 9) -> list[Request]:
    return [Request(i, 5, longest) for i in range(n)]


def one(commands: Sequence[Command]) -> Plan:
    (plan,) = commands
    assert isinstance(plan, Plan)
    return plan


def samples(plan: Plan) -> list[Task]:
    return [t for t in plan.tasks() if t.op == "sample"]


def report(scheduler: Scheduler, plan: Plan, ended: set[int] = frozenset()) -> Sequence[Command]:  # type: ignore[assignment]
    """Every sampling of `plan` ends; all but the last must get no answer."""
    commands: Sequence[Command] = ()
    for t in samples(plan):
        assert not commands
        commands = scheduler.on(1, Finished(t.number, Result(ended=tuple(set(t.requests) & ended))))
    return commands


def served(plan: Plan) -> list[tuple[int, ...]]:
    return [t.requests for t in samples(plan)]


def labels(plan: Plan) -> set[tuple[str, int, int]]:
    return {(t.phase, t.step, t.attempt) for t in plan.tasks() if t.phase}


def test_lengths_that_are_not_known_make_one_plan_a_pass() -> None:
    scheduler, commands = start(open_ended(4))
    prefill = one(commands)
    assert labels(prefill) == {("prefill", 0, 0)} and served(prefill) == [(0, 2), (1, 3)]
    assert all(t.notify for t in samples(prefill)) and prefill.notify.sum() == 2
    decode = one(report(scheduler, prefill))
    assert labels(decode) == {("decode", 1, 0)} and served(decode) == [(0, 2), (1, 3)]
    assert decode.first == prefill.first + len(prefill)


def test_what_ended_leaves_its_rows() -> None:
    scheduler, commands = start(open_ended(4))
    step = one(report(scheduler, one(report(scheduler, one(commands))), ended={0, 1, 3}))
    assert served(step) == [(2,)]
    (attend,) = (t for t in step.tasks() if t.op == "attn_decode" and t.layer == 0)
    assert (attend.work.tokens, attend.work.context, attend.microbatch) == (1, 5 + 2, 0)
    assert report(scheduler, step, ended={2}) == ()


def test_a_micro_batch_left_over_streams_every_page() -> None:
    scheduler, commands = start(open_ended(4))
    step = one(report(scheduler, one(report(scheduler, one(commands))), ended={0, 2}))
    assert [(t.layer, t.page) for t in step.tasks() if t.op == "page_to_gpu"] == [(1, 0), (1, 1), (0, 0), (0, 1)]
    assert {t.microbatch for t in step.tasks() if t.op == "post_attn"} == {1}


def test_a_sequence_ends_at_its_longest_even_if_nobody_says_so() -> None:
    scheduler, commands = start([Request(0, 5, 3), Request(1, 5, 2)], batch=2, microbatch=1)
    second = one(report(scheduler, one(commands)))
    third = one(report(scheduler, second))
    assert served(second) == [(0,), (1,)] and served(third) == [(0,)]
    assert report(scheduler, third) == ()


def test_a_last_step_by_the_limits_streams_nothing_behind_it() -> None:
    scheduler, commands = start([Request(0, 5, 2), Request(1, 5, 2)], batch=2, microbatch=1)
    copies = [t.layer for t in one(report(scheduler, one(commands))).tasks() if t.op == "page_to_gpu"]
    assert copies == [1, 1]


def test_unequal_known_lengths_react_too() -> None:
    scheduler, commands = start([Request(0, 5, 3, 3), Request(1, 5, 2, 2)], batch=2, microbatch=1)
    assert labels(one(commands)) == {("prefill", 0, 0)}


def test_equal_known_lengths_are_one_plan() -> None:
    _, commands = start([Request(i, 5, 3, 3) for i in range(4)])
    assert labels(one(commands)) == {("prefill", 0, 0), ("decode", 1, 0), ("decode", 2, 0)}


def test_freed_slots_are_refilled_once_it_is_worth_a_pass() -> None:
    """refill = 0.5 of 4 slots: not for one free slot, but for two."""
    scheduler, commands = start(open_ended(4), last=False, refill=0.5)
    for r in (Request(4, 6, 9), Request(5, 7, 9), Request(6, 8, 9)):
        assert scheduler.on(0, Arrived(r, r.request_id == 6)) == ()
    first = one(report(scheduler, one(commands), ended={0}))
    assert labels(first) == {("decode", 1, 0)} and served(first) == [(2,), (1, 3)]
    newcomers = one(report(scheduler, first, ended={3}))
    assert labels(newcomers) == {("prefill", 1, 0)} and served(newcomers) == [(4,), (5,)] or served(newcomers) == [(5,), (4,)]
    joined = one(report(scheduler, newcomers))
    assert labels(joined) == {("decode", 2, 0)}
    assert sorted(q for rows in served(joined) for q in rows) == [1, 2, 4, 5]
    contexts = {t.requests: t.work.context for t in joined.tasks() if t.op == "attn_decode" and t.layer == 0}
    entries = {1: 5 + 2, 2: 5 + 2, 4: 6 + 1, 5: 7 + 1}
    assert contexts == {rows: sum(entries[q] for q in rows) for rows in contexts}


def test_a_refill_finds_layer_0_where_the_last_step_left_it() -> None:
    scheduler, commands = start([*open_ended(4)], last=False)
    scheduler.on(0, Arrived(Request(4, 6, 9), True))
    step = one(report(scheduler, one(commands)))
    newcomer = one(report(scheduler, step, ended={0}))
    assert labels(newcomer) == {("prefill", 1, 0)}
    assert [t.layer for t in newcomer.tasks() if t.op == "layer_to_gpu"] == [1, 0]
    pages = [t.number for t in step.tasks() if t.op == "page_to_gpu" and t.layer == 0]
    (first,) = (t for t in newcomer.tasks() if t.op == "post_attn" and t.layer == 0)
    assert first.releases == tuple(pages) and set(first.deps) > {pages[-1] + 1}


def test_a_batch_that_has_all_ended_starts_the_next() -> None:
    scheduler, commands = start([Request(i, 5, 2, 2) for i in range(4)], last=False)
    for i in range(4, 6):
        assert scheduler.on(0, Arrived(Request(i, 5, 2, 2), i == 5)) == ()
    first = one(commands)
    assert [t.step for t in first.tasks() if t.notify] == [1, 1]
    reports = [t for t in first.tasks() if t.notify]
    assert scheduler.on(5, Finished(reports[0].number)) == ()
    second = one(scheduler.on(6, Finished(reports[1].number)))
    assert second.first == first.first + len(first)
    assert sorted(q for t in samples(second) if t.step == 0 for q in t.requests) == [4, 5]
    # The last step of the first batch streamed layer 0 for it.
    assert [t.layer for t in second.tasks() if t.op == "layer_to_gpu"] == [1, 0]


def test_a_fresh_batch_waits_until_it_is_full_or_nobody_else_comes() -> None:
    scheduler, commands = start(open_ended(3), last=False)
    assert commands == ()
    assert served(one(scheduler.on(7, Arrived(Request(3, 5, 9))))) == [(0, 2), (1, 3)]
    scheduler, commands = start(open_ended(3), last=True)
    assert sum(map(len, served(one(commands)))) == 3


def test_an_idle_scheduler_takes_up_what_arrives_late() -> None:
    scheduler, commands = start(open_ended(4), last=False)
    assert report(scheduler, one(commands), ended={0, 1, 2, 3}) == ()
    assert served(one(scheduler.on(9, Arrived(Request(4, 5, 9), True)))) == [(4,)]


def test_prompts_are_padded_to_the_longest() -> None:
    _, commands = start([Request(0, 4, 9), Request(1, 6, 9)], batch=2, microbatch=1, padded=True)
    attends = [t.work for t in one(commands).tasks() if t.op == "attn_prefill" and t.layer == 0]
    assert [(w.tokens, w.context) for w in attends] == [(6, 21)] * 2


def test_a_request_that_fits_no_cache_is_refused() -> None:
    with pytest.raises(UserError, match="policy.cache_tokens: is 10; the longest sequence alone needs 14"):
        start(open_ended(1), cache_tokens=10)


def test_events_of_no_concern_get_no_answer() -> None:
    scheduler, commands = start(open_ended(4))
    assert scheduler.on(1, Changed("link", 0.0)) == ()
    assert scheduler.on(1, Finished(one(commands).first)) == ()


# Failures ---------------------------------------------------------------------------------------


def fail_pass(scheduler: Scheduler, plan: Plan, bad: Task) -> Sequence[Command]:
    """`bad` fails; the engine gives up everything that is cancelled, in number order."""
    commands = list(scheduler.on(2, Failed(bad.number, "broken")))
    cancelled = [c.task for c in commands if isinstance(c, Cancel)]
    assert set(cancelled) >= set(range(plan.first, plan.first + len(plan)))
    for t in plan.tasks():
        if t.number != bad.number:
            commands += scheduler.on(2, Failed(t.number, "cancelled"))
    return [c for c in commands if not isinstance(c, Cancel)]


def test_a_pass_that_fails_is_launched_once_more() -> None:
    scheduler, commands = start(open_ended(4))
    prefill = one(commands)
    decode = one(report(scheduler, prefill))
    bad = next(t for t in decode.tasks() if t.op == "load_hidden")
    again = one(fail_pass(scheduler, decode, bad))
    assert labels(again) == {("decode", 1, 1)} and served(again) == served(decode)
    assert {t.work for t in again.tasks() if t.op == "attn_decode"} == {t.work for t in decode.tasks() if t.op == "attn_decode"}
    join = again.task(0)
    # What the prefill may still be storing belongs to tokens that were sampled: it is not given up, and waited for.
    late = {t.number for t in prefill.tasks() if t.op == "kv_to_cpu"}
    assert late and join.lane is None and set(join.releases) == set(range(prefill.first, again.first)) - late
    assert all(d >= again.first or d in late for t in again.tasks() for d in t.deps)
    assert [t.layer for t in again.tasks() if t.op == "layer_to_gpu"] == [0], "nothing that was streamed before counts"
    after = one(report(scheduler, again))
    assert labels(after) == {("decode", 2, 0)}


def test_only_micro_batches_that_did_not_sample_are_launched_again() -> None:
    scheduler, commands = start(open_ended(4))
    decode = one(report(scheduler, one(commands)))
    first, second = samples(decode)
    assert scheduler.on(2, Finished(first.number)) == ()
    cancels = scheduler.on(2, Failed(second.number - 1, "broken"))
    assert all(isinstance(c, Cancel) and c.reason == f"task {second.number - 1} failed" for c in cancels) and cancels
    again = one(scheduler.on(2, Failed(second.number, "cancelled")))
    assert served(again) == [second.requests]


def test_a_second_failure_stops_the_schedule() -> None:
    scheduler, commands = start(open_ended(4))
    prefill = one(commands)
    again = one(fail_pass(scheduler, prefill, prefill.task(3)))
    assert fail_pass(scheduler, again, again.task(3)) == []
    assert scheduler.on(9, Arrived(Request(7, 5, 9), True)) == ()


def test_a_batch_that_was_handed_out_whole_is_given_up() -> None:
    scheduler, commands = start([Request(i, 5, 3, 3) for i in range(4)], last=False)
    plan = one(commands)
    assert fail_pass(scheduler, plan, plan.task(3)) == []


def test_a_late_failure_of_a_page_does_not_reach_the_next_batch() -> None:
    """Layer 0 was being streamed for a pass that nobody knew of yet."""
    scheduler, commands = start(open_ended(4), last=False)
    prefill = one(commands)
    assert report(scheduler, prefill, ended={0, 1, 2, 3}) == ()
    late = [t for t in prefill.tasks() if t.op == "layer_to_gpu"][-1]
    assert all(isinstance(c, Cancel) for c in scheduler.on(3, Failed(late.number, "broken")))
    nxt = one(scheduler.on(4, Arrived(Request(4, 5, 9), True)))
    assert [t.layer for t in nxt.tasks() if t.op == "layer_to_gpu"] == [0, 1, 0]
    assert nxt.task(0).releases[:1] == (prefill.first,)
