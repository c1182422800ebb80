"""Timing a job again on another machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from sim import machines, models
from sim.events import Event, Started
from sim.explain.retime import Twin
from sim.explain.upgrades import with_capacity
from sim.job import Job, prepare
from sim.schedulers.policy import Policy
from sim.schedulers.registry import load
from sim.simulate import simulate_job
from sim.tasks import Command, Task, Time, Work
from sim.workloads.lengths import Fixed, Uniform
from sim.workloads.schema import Workload

T4 = machines.load("t4")
FASTER = with_capacity(T4, "link.h2d", 2.0)


def job(scheduler: str = "cgopipe", known: bool = True) -> Job:
    prompt, generation = Uniform(min=4, max=9), Fixed(tokens=4)
    workload = Workload(name="small", source="chosen for a test", prompt=prompt, generation=generation, ends_early=not known)
    return prepare(models.load("tiny-mixtral"), T4, workload, scheduler, Policy(batch=8, microbatch=2))


def test_a_plan_that_knows_no_machine_is_run_again_as_it_is() -> None:
    twin = Twin(job())
    assert twin.fixed
    again, anew = twin.on(FASTER), simulate_job(replace(job(), machine=FASTER))
    assert again.run.same_times(anew.run)
    assert again.run.sources[0] is twin.outcome.run.sources[0]
    assert again.tokens_per_s == pytest.approx(anew.summary["tokens_per_s"], rel=1e-12)
    assert again.tokens_per_s > twin.base.tokens_per_s


def test_a_schedule_that_reacts_is_made_anew() -> None:
    twin = Twin(job(known=False))
    assert not twin.fixed
    again, anew = twin.on(FASTER), simulate_job(replace(job(known=False), machine=FASTER))
    assert again.run.same_times(anew.run)
    assert again.tokens_per_s == anew.summary["tokens_per_s"]


class Curious(load("cgopipe")):  # type: ignore[misc]
    """Asks the machine how long something would take, and does as always."""

    def on(self, now: Time, event: Event) -> Sequence[Command]:
        if isinstance(event, Started):
            event.profile.estimate(Task(0, Work("page_to_gpu", bytes=1), "h2d"))
        found: Sequence[Command] = super().on(now, event)
        return found


def test_a_scheduler_that_looks_at_the_machine_may_do_otherwise_on_another() -> None:
    curious = replace(job(), scheduler_class=Curious)
    assert not Twin(curious).fixed
    assert Twin(curious).outcome.run.same_times(Twin(job()).outcome.run)


@pytest.mark.parametrize("known", [True, False])
def test_it_knows_when_tasks_were_handed_out(known: bool) -> None:
    twin = Twin(job(known=known))
    handed = twin.handed_out_ps()
    assert len(handed) == len(twin.outcome.run)
    assert (handed <= twin.outcome.run.start_ps).all()
    assert (handed == 0).all() == known


def test_the_scheduler_is_seen_as_it_is() -> None:
    seen: Any = Twin(job())._recorder(models.load("tiny-mixtral"), Policy(batch=8, microbatch=2), seed=0)
    assert seen.pools == job().fresh().pools
    assert seen.lanes == job().fresh().lanes
