"""The lower bound: never above a schedule that an engine runs or that a search finds, never below its parts."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.bounds import EXACT, Bounds, bounds
from sim.costs import CostModel
from sim.drive import Deadlock
from sim.machines.schema import Machine
from sim.plan import plan_of
from sim.schedulers import registry
from sim.tasks import PS_PER_S, Task
from sim.testing.cases import Case as Served
from sim.testing.observed import on_simpy
from sim.testing.strategies import machines, runs
from tests.engine_support.fakes import FakeCosts
from tests.engine_support.graphs import Case, cases
from tests.sim.explain.exhaustive import servers_of, shortest_s, with_hazards

BUFFERS = ("x", "y", "z")


def bound(case: Case) -> Bounds:
    return bounds([plan_of(case.tasks)], case.costs, servers_of(case.lanes))


@st.composite
def touching(draw: st.DrawFn, max_tasks: int) -> Case:
    """A random graph in which buffers order the tasks too; no pools, no changes of capacity."""
    case = draw(cases(max_tasks=max_tasks, pools=False, changes=False))
    some = st.lists(st.sampled_from(BUFFERS), unique=True, max_size=2)
    tasks = tuple(replace(t, reads=tuple(draw(some)), writes=tuple(draw(some))) for t in case.tasks)
    return replace(case, tasks=tasks)


def busiest_s(tasks: tuple[Task, ...], costs: FakeCosts) -> float:
    """Demands over capacity of the busiest resource, summed one by one."""
    used = np.zeros(len(costs.capacity))
    for t in tasks:
        for d in costs.row(t.work)[1]:
            used[d.resource] += d.amount
    return float((used / costs.capacity).max())


def longest_s(tasks: tuple[Task, ...], costs: FakeCosts) -> float:
    """Length of the longest chain, at solo durations, task by task."""
    end: dict[int, float] = {}
    for t in with_hazards(tasks):
        latency, demands = costs.row(t.work)
        solo = max((d.amount / min(costs.capacity[d.resource], d.cap) for d in demands), default=0.0)
        end[t.number] = max((end[d] for d in t.deps), default=0.0) + latency / PS_PER_S + solo
    return max(end.values())


@given(cases(changes=False, bodies=True))
def test_no_run_of_either_engine_is_shorter(case: Case) -> None:
    try:
        ran = case.simpy()
    except Deadlock:
        return
    assert bound(case).seconds <= ran.makespan_ps / PS_PER_S
    assert bound(case).seconds <= case.compiled().makespan_ps / PS_PER_S


@given(touching(20))
def test_no_run_that_keeps_the_buffers_order_is_shorter(case: Case) -> None:
    explicit = replace(case, tasks=with_hazards(case.tasks))
    assert bound(case).seconds <= explicit.compiled().makespan_ps / PS_PER_S


@given(touching(20))
def test_it_is_at_least_the_longest_chain_and_the_busiest_resource(case: Case) -> None:
    found = bound(case)
    assert found.critical_path_s == pytest.approx(longest_s(case.tasks, case.costs) * EXACT, rel=1e-9, abs=1e-18)
    assert max(found.resources_s.values(), default=0.0) == pytest.approx(busiest_s(case.tasks, case.costs) * EXACT, rel=1e-9)
    assert found.seconds >= max(found.critical_path_s, *found.resources_s.values(), *found.lanes_s.values(), 0.0)


@given(touching(5))
@settings(max_examples=40)
def test_no_schedule_that_can_be_found_is_shorter(case: Case) -> None:
    assert bound(case).seconds <= shortest_s(case.tasks, case.costs, case.lanes)


@given(st.sampled_from(registry.names()), runs(), machines(), st.lists(st.integers(0, 200), max_size=2))
@settings(max_examples=25)
def test_no_scheduler_beats_it(name: str, served: Served, rig: Machine, doomed: list[int]) -> None:
    """Reactive runs and runs with failures too: what did not run to its end counts for nothing."""
    observed = on_simpy(registry.load(name), served, rig=rig, failures=[(number, 0.5) for number in sorted(set(doomed))])
    tasks = [r.task for r in observed.ran]
    ran = np.array([r.status == "done" for r in observed.ran])
    found = bounds(tasks, CostModel(rig, served.model), {lane.name: lane.servers for lane in rig.lanes}, ran)
    assert 0 <= found.seconds <= max(r.end for r in observed.ran) / PS_PER_S
    assert found.seconds > 0 or not ran.any()
