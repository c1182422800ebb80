"""Every schedule computes what the plain decoder computes, whatever the shape of the batch."""

from __future__ import annotations

import numpy as np
import pytest

from sim.drive import Log, replay
from sim.engines.run import DONE
from sim.schedulers import registry
from sim.schedulers.policy import Policy
from tests.exec.backends.support import SCHEDULERS, SPEC, assert_equals_plain, execute, machine, workload

SHAPES = {
    "one micro-batch": (Policy(batch=3, microbatch=3), workload((5, 1, 9), 4)),
    "unequal prompts": (Policy(batch=6, microbatch=2), workload((5, 17, 3, 8, 1, 12), 5)),
    "last one smaller": (Policy(batch=7, microbatch=3), workload((4, 6, 2, 9, 11, 3, 7), 4)),
}
STREAMING = [s for s in SCHEDULERS if registry.load(s).streams]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_tokens_and_logits_are_the_plain_decoders(scheduler, shape):
    policy, work = SHAPES[shape]
    outcome = execute(scheduler, policy, work, keep_logits=True, poison=True)
    assert_equals_plain(outcome, work)
    assert (outcome.run.status == DONE).all()


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_sequences_that_end_are_replaced_by_those_that_wait(scheduler):
    """Lengths that nobody knows beforehand, more requests than slots: later ones find the caches of earlier ones."""
    work = workload((5, 17, 3, 8, 1, 12, 6, 2, 9), (4, 2, 6, 1, 5, 3, 2, 6, 4), known=False)
    outcome = execute(scheduler, Policy(batch=4, microbatch=2), work, keep_logits=True, poison=True)
    assert_equals_plain(outcome, work)
    assert [len(outcome.tokens[i]) for i in range(9)] == [4, 2, 6, 1, 5, 3, 2, 6, 4]


@pytest.mark.parametrize("scheduler", STREAMING)
@pytest.mark.parametrize("policy", [Policy(batch=6, microbatch=2, static_experts=1), Policy(batch=6, microbatch=3, pages=5)])
def test_pages_need_not_be_whole_experts_nor_all_of_them(scheduler, policy):
    work = workload((5, 17, 3, 8, 1, 12), 4)
    assert_equals_plain(execute(scheduler, policy, work, keep_logits=True, poison=True), work)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_prefill_in_smaller_micro_batches(scheduler):
    work = workload((5, 17, 3, 8, 1, 12), 4)
    outcome = execute(scheduler, Policy(batch=6, microbatch=3, prefill_microbatch=1), work, keep_logits=True, poison=True)
    assert_equals_plain(outcome, work)


def test_gpu_attention_of_cgopipe():
    work = workload((5, 17, 3, 8), 4)
    outcome = execute("cgopipe", Policy(batch=4, microbatch=2, attention="gpu"), work, keep_logits=True, poison=True)
    assert_equals_plain(outcome, work)


def test_many_rows_take_the_blas_and_agree():
    work = workload((90, 120), 2)
    assert_equals_plain(execute("cgopipe", Policy(batch=2, microbatch=1), work, keep_logits=True, poison=True), work)


def test_lanes_of_two_threads_and_paced_links_agree():
    policy, work = SHAPES["unequal prompts"]
    on = machine({"h2d": 2e7, "d2h": 2e7, "pin": 1e8}, threads=2)
    outcome = execute("cgopipe", policy, work, on, keep_logits=True, poison=True)
    assert_equals_plain(outcome, work)
    assert outcome.clock == "emulated"
    assert execute("resident", policy, work, on).clock == "measured"


def test_padded_prompts_are_extended_on_the_left():
    """Every prompt takes as many rows as the longest: the same as serving the prompts with pad tokens before them."""
    requests, prompts, lengths = workload((5, 9, 2, 7), 3)
    outcome = execute("cgopipe", Policy(batch=4, microbatch=2, padded=True), (requests, prompts, lengths), keep_logits=True, poison=True)
    longer = [[0] * (9 - len(p)) + p for p in prompts]
    assert_equals_plain(outcome, (requests, longer, lengths))


def test_a_stop_token_ends_a_sequence():
    requests, prompts, _ = work = workload((5, 9, 3), 6, known=False)
    free = execute("cgopipe", Policy(batch=3, microbatch=1), work)
    stop = free.tokens[1][2]
    outcome = execute("cgopipe", Policy(batch=3, microbatch=1), work, eos=(stop,))
    for i in range(3):
        until = free.tokens[i].index(stop) + 1 if stop in free.tokens[i] else 6
        assert outcome.tokens[i] == free.tokens[i][:until]
    assert len(outcome.tokens[1]) <= 3


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("known", [True, False])
def test_the_log_replays_through_a_fresh_scheduler(scheduler, known):
    policy, log = Policy(batch=4, microbatch=2), Log()
    execute(scheduler, policy, workload((5, 4, 3, 8, 2), (3, 2, 3, 3, 2), known=known), log=log)
    replay(log, registry.load(scheduler)(SPEC, policy))


def test_stamps_are_ordered_by_lane_and_dependency():
    policy, work = SHAPES["unequal prompts"]
    run = execute("cgopipe", policy, work).run
    for lane in range(len(run.lanes)):
        mine = run.lane == lane
        assert (run.start_ps[mine][1:] >= run.end_ps[mine][:-1]).all(), run.lanes[lane]
    for plan in run.sources:
        first = int(np.searchsorted(run.number, plan.first))
        for i in range(len(plan)):
            for dep in plan.dep[plan.dep_ptr[i] : plan.dep_ptr[i + 1]]:
                assert run.end_ps[np.searchsorted(run.number, dep)] <= run.start_ps[first + i]
