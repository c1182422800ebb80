"""What must hold of any run, checked on its times alone."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from hypothesis import assume, given

from sim.drive import Deadlock
from sim.engines.run import Run
from tests.engine_support.graphs import Case, cases
from tests.engine_support.oracle import PS, solo_s


def run_of(case: Case) -> Run:
    try:
        return case.compiled()
    except Deadlock:
        assume(False)
        raise


def times(run: Run) -> dict[int, tuple[int, int]]:
    return dict(zip(run.number.tolist(), zip(run.start_ps.tolist(), run.end_ps.tolist(), strict=True), strict=True))


def most_at_once(spans: list[tuple[int, int]]) -> int:
    """Largest number of spans open at a time; a span that ends where another begins does not overlap it."""
    marks = sorted([(end, -1) for _, end in spans] + [(start, 1) for start, _ in spans])
    open_now = most = 0
    for _, step in marks:
        open_now += step
        most = max(most, open_now)
    return most


@given(cases())
def test_dependencies_end_before_their_dependents_start(case: Case) -> None:
    at = times(run_of(case))
    for task in case.tasks:
        assert all(at[d][1] <= at[task.number][0] for d in task.deps)


@given(cases())
def test_lanes_never_run_more_than_their_servers(case: Case) -> None:
    at = times(run_of(case))
    for lane in case.lanes:
        spans = [at[t.number] for t in case.tasks if t.lane == lane.name]
        assert most_at_once([s for s in spans if s[0] < s[1]]) <= lane.servers


@given(cases())
def test_submitted_lanes_start_in_order_of_submission(case: Case) -> None:
    at = times(run_of(case))
    for lane in case.lanes:
        starts = [at[t.number][0] for t in case.tasks if t.lane == lane.name]
        assert lane.order != "submitted" or starts == sorted(starts)


def holds(case: Case, run: Run) -> Iterator[tuple[str, int, int, int | None]]:
    """(pool, units, from, to) of every hold; `to` is None where nobody released it."""
    at = times(run)
    for task in case.tasks:
        start = at[task.number][0]
        ends = [at[t.number][1] for t in case.tasks if task.number in t.releases]
        later = [end for end in ends if end >= start]
        for pool, units in task.takes:
            yield pool, units, start, min(later) if later else None


@given(cases(changes=False))
def test_pools_are_never_over_capacity(case: Case) -> None:
    """Holds of no length are left out: within an instant their order does not show in the times."""
    run = run_of(case)
    marks = defaultdict(list)
    for pool, units, start, end in holds(case, run):
        if end is not None and end <= start:
            continue
        marks[pool].append((start, 1, units))
        if end is not None:
            marks[pool].append((end, 0, -units))
    for pool, found in marks.items():
        held = 0
        for _, _, units in sorted(found):
            held += units
            assert held <= case.pools[pool]


@given(cases(pools=False, changes=False))
def test_makespan_is_at_least_the_critical_path(case: Case) -> None:
    at = times(run_of(case))
    capacity = case.costs.capacity.tolist()
    earliest: dict[int, int] = {}
    for task in case.tasks:
        latency, demands = case.costs.row(task.work)
        solo = solo_s(demands, capacity)
        assert solo is not None
        begin = max((earliest[d] for d in task.deps), default=0)
        earliest[task.number] = begin + latency + int(solo * PS * (1 - 1e-12))
    assert max(end for _, end in at.values()) >= max(earliest.values())


@given(cases(changes=False))
def test_makespan_is_at_least_the_busiest_resource(case: Case) -> None:
    run = run_of(case)
    asked: dict[int, float] = defaultdict(float)
    for task in case.tasks:
        for d in case.costs.row(task.work)[1]:
            asked[d.resource] += d.amount
    for resource, amount in asked.items():
        assert run.makespan_ps >= amount / case.costs.capacity[resource] * PS * (1 - 1e-9)


@given(cases(pools=False, changes=False))
def test_a_task_that_can_start_waits_for_a_server_only(case: Case) -> None:
    """Work conservation of lanes: a task that could start and did not finds every server busy."""
    at = times(run_of(case))
    for lane in case.lanes:
        mine = [t for t in case.tasks if t.lane == lane.name]
        for k, task in enumerate(mine):
            start = at[task.number][0]
            ready = max((at[d][1] for d in task.deps), default=0)
            if lane.order == "submitted":
                ready = max([ready, *(at[t.number][0] for t in mine[:k])])
            running = sum(at[t.number][0] <= ready and at[t.number][1] > ready for t in mine if t is not task)
            assert start == ready or running >= lane.servers


@given(cases())
def test_no_task_is_faster_than_alone(case: Case) -> None:
    at = times(run_of(case))
    capacity = dict(zip(case.costs.resources, case.costs.capacity.tolist(), strict=True))
    best = [max([c, *(to for _, name, to in case.changes if name == r)]) for r, c in capacity.items()]
    for task in case.tasks:
        latency, demands = case.costs.row(task.work)
        solo = solo_s(demands, best)
        assert solo is not None
        start, end = at[task.number]
        assert end - start >= latency + int(solo * PS * (1 - 1e-9))
