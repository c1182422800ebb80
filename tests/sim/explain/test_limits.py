"""What the critical path is spent on."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings

from sim.drive import Deadlock
from sim.engines.run import Run
from sim.explain.limits import LATENCY, WAITING, Limit, limits, spans
from sim.report.critical import critical_path
from sim.tasks import PS_PER_S
from sim.timeline import dependencies_of, timeline_of
from tests.engine_support.driving import COSTS, play, task, timer
from tests.engine_support.graphs import Case, cases
from traces.files import Provenance


def found(run: Run, costs=COSTS) -> list[Limit]:
    path = critical_path(timeline_of(run, Provenance("synthetic", "test", "simulated")), dependencies_of(run))
    return limits(run, costs, path, spans(run, costs))


def rows(*tasks) -> dict[tuple[str, str], tuple[float, float]]:
    """(lane, resource) to picoseconds: all, and those that are shared."""
    return {(x.lane, x.resource): (round(x.seconds * PS_PER_S, 6), round(x.shared_s * PS_PER_S, 6)) for x in found(play(tasks)[1])}


def test_time_goes_to_the_binding_resource_and_to_latency() -> None:
    assert rows(task(0, "late10", "a"), task(1, "core5", "b", [0])) == {
        ("a", "link"): (10, 0), ("a", LATENCY): (5, 0), ("b", "cores"): (5, 0),
    }  # fmt: skip


def test_what_sharing_costs_is_told_apart() -> None:
    """Two copies of 10 ps on one link take 20: each is alone for none of it."""
    assert rows(task(0, "copy10", "a"), task(1, "copy10", "b"), task(2, "core1", "urgent", [1])) == {
        ("b", "link"): (20, 10), ("urgent", "cores"): (1, 0),
    }  # fmt: skip


def test_reach_is_the_share_of_a_resource_that_an_op_can_get() -> None:
    (only,) = found(play([task(0, "core10", "a")])[1])
    assert (only.resource, only.reach) == ("cores", pytest.approx(0.5))


def test_timers_are_latency_of_no_lane() -> None:
    (only,) = found(play([timer(0, 100)])[1])
    assert (only.lane, only.resource, only.share) == ("", LATENCY, 1.0)


def test_waiting_for_what_is_no_task_is_told() -> None:
    run = play([task(0, "copy10", "a")])[1]
    late = Run(run.sources, run.lanes, run.number, run.lane, run.start_ps + 30, run.end_ps + 30, run.status)
    assert [(x.resource, x.share) for x in found(late)] == [(WAITING, 0.75), ("link", 0.25)]


@given(cases(changes=False))
@settings(max_examples=60)
def test_the_rows_add_up_to_the_makespan(case: Case) -> None:
    try:
        run = case.compiled()
    except Deadlock:
        return
    got = found(run, case.costs)
    assert sum(x.seconds for x in got) == pytest.approx(run.makespan_ps / PS_PER_S, rel=1e-9, abs=1e-15)
    assert sum(x.share for x in got) == pytest.approx(1.0 if run.makespan_ps else 0.0)
    assert all(x.seconds >= x.shared_s >= 0 and 0 < x.reach <= 1 + 1e-9 for x in got)
    assert np.all(np.diff([x.seconds for x in got]) <= 0)
