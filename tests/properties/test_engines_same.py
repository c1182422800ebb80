"""Both engines give the same picoseconds, and the exact oracle agrees, over random task graphs."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given

from sim.drive import Deadlock
from tests.engine_support.graphs import Case, cases
from tests.engine_support.oracle import Oracle


@given(cases(bodies=True))
def test_simpy_and_compiled_see_the_same_picoseconds(case: Case) -> None:
    try:
        reference = case.simpy()
    except Deadlock as story:
        with pytest.raises(Deadlock) as other:
            case.compiled()
        assert str(other.value) == str(story)
        return
    compiled = case.compiled()
    assert reference.start_ps.tolist() == compiled.start_ps.tolist()
    assert reference.end_ps.tolist() == compiled.end_ps.tolist()
    assert reference.same_times(compiled)


@given(cases(bodies=True))
def test_a_plan_and_its_tasks_one_by_one_are_the_same(case: Case) -> None:
    try:
        reference = case.simpy()
    except Deadlock as story:
        with pytest.raises(Deadlock) as other:
            case.simpy_loose()
        assert str(other.value) == str(story)
        return
    assert reference.same_times(case.simpy_loose())


@given(cases(max_tasks=14))
def test_the_oracle_agrees(case: Case) -> None:
    """Every start equal; every end within 1e-9 of the exact one."""
    try:
        run = case.compiled()
    except Deadlock:
        assert len(Oracle(case.lanes, case.pools, case.costs, case.changes).run(case.tasks)) < len(case.tasks)
        return
    ends = dict(zip(run.number.tolist(), run.end_ps.tolist(), strict=True))
    exact = Oracle(case.lanes, case.pools, case.costs, case.changes, ends).run(case.tasks)
    assert exact == dict(zip(run.number.tolist(), zip(run.start_ps.tolist(), run.end_ps.tolist(), strict=True), strict=True))


@given(cases())
def test_the_same_input_gives_the_same_run(case: Case) -> None:
    try:
        first = case.compiled()
    except Deadlock:
        return
    assert np.array_equal(first.end_ps, case.compiled().end_ps)
