"""Budgets are hard, peaks are measured and are what the scheduler said."""

from __future__ import annotations

import pytest

from exec.backends.cpu import CpuBackend
from exec.runtime import TaskFailed
from exec.session import run
from sim.errors import UserError
from sim.schedulers import registry
from sim.schedulers.policy import Policy
from tests.exec.backends.support import MIB, SCHEDULERS, SPEC, execute, machine, weights, workload

SLACK_BYTES = 16384
"""Pieces are rounded up to 64 bytes; the scratch of CPU attention is nobody's in the plan."""


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_peaks_stay_within_the_plan(scheduler, known):
    work = workload((9, 17, 8, 8, 11, 12, 10, 9), 5, known=known)
    outcome = execute(scheduler, Policy(batch=8, microbatch=2), work, poison=True)
    for memory, planned in outcome.planned_bytes.items():
        assert outcome.peak_bytes[memory] <= planned + SLACK_BYTES, memory


@pytest.mark.parametrize("scheduler", ["cgopipe", "resident", "deepspeed"])
def test_peaks_are_the_plan_where_the_batch_is_even(scheduler):
    outcome = execute(scheduler, Policy(batch=8, microbatch=2), workload((16,) * 8, 4))
    for memory, planned in outcome.planned_bytes.items():
        assert outcome.peak_bytes[memory] == pytest.approx(planned, rel=0.02, abs=SLACK_BYTES), memory


def test_a_plan_that_does_not_fit_is_refused_before_anything_runs():
    with pytest.raises(UserError, match=r"memory 'gpu': [\d,]+ bytes are missing"):
        execute("resident", Policy(batch=2, microbatch=1), workload((5, 4), 2), machine(gpu=MIB))


@pytest.mark.parametrize("memory", ["gpu", "cpu", "pinned"])
def test_the_budget_holds_whatever_the_scheduler_says(memory):
    """A scheduler that understates what it needs fails where the arena is full, not by using more."""

    class Modest(registry.load("cgopipe")):
        def memory(self, requests):
            needed = {name: dict(consumers) for name, consumers in super().memory(requests).items()}
            return {**needed, memory: {**needed[memory], "activations": 0, "workspace": 0}}

    requests, prompts, _ = workload((40, 41, 42, 43), 3)
    scheduler = Modest(SPEC, Policy(batch=4, microbatch=1))
    budget = sum(scheduler.memory(requests)[memory].values())
    with pytest.raises(TaskFailed, match=rf"memory '{memory}': [\d,]+ bytes are missing (in one piece )?for") as caught:
        run(SPEC, weights(), machine(**{memory: budget + 64}), scheduler, requests, prompts)
    assert isinstance(caught.value.__cause__, UserError)


def test_pinned_memory_is_the_cpus_where_the_machine_states_none():
    on = machine()
    on = on.model_copy(update={"memories": {n: m for n, m in on.memories.items() if n != "pinned"}})
    outcome = execute("cgopipe", Policy(batch=2, microbatch=1), workload((5, 4), 3), on)
    planned = outcome.planned_bytes
    assert outcome.peak_bytes["cpu"] == pytest.approx(planned["cpu"] + planned["pinned"], abs=SLACK_BYTES)


def test_models_that_the_executor_cannot_run_are_refused():
    from dataclasses import replace

    requests, prompts, _ = workload((5,), 2)
    needed = registry.load("resident")(SPEC, Policy(batch=1, microbatch=1)).memory(requests)
    for change, says in (({"qk_norm": "head"}, "normalises Q and K"), ({"dtype": "bf16"}, "computes in fp32")):
        with pytest.raises(UserError, match=says):
            CpuBackend(replace(SPEC, **change), weights(), machine(), needed, requests, prompts)


@pytest.mark.parametrize(
    ("prompts", "says"),
    [
        ([[1, 2, 3]], "1 for 2 requests"),
        ([[1, 2, 3], [1]], r"prompts\[1\]: has 1 tokens; request 1 states 2"),
        ([[1, 2, 3], [1, 211]], r"prompts\[1\]: token ids reach from 1 to 211; the vocabulary has 0 to 210"),
    ],
)
def test_prompts_that_do_not_fit_are_refused(prompts, says):
    requests, _, _ = workload((3, 2), 2)
    with pytest.raises(UserError, match=says):
        run(SPEC, weights(), machine(), registry.load("resident")(SPEC, Policy(batch=2, microbatch=1)), requests, prompts)


def test_a_machine_without_a_needed_lane_is_refused():
    on = machine()
    on = on.model_copy(update={"lanes": on.lanes[:-1], "ops": on.ops[:-1]})
    with pytest.raises(UserError, match="no lane 'pin' that the scheduler needs"):
        execute("cgopipe", Policy(batch=2, microbatch=1), workload((5, 4), 3), on)
