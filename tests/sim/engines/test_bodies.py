"""Bodies: what happens inside a task, on both engines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given

from sim.drive import Deadlock
from sim.engines.compiled import run_compiled
from sim.engines.run import CANCELLED, DONE, SKIPPED, Run
from sim.errors import UserError
from sim.events import Failed, Finished
from sim.plan import Plan, PlanBuilder, plan_of
from sim.tasks import Cancel, Task, Work
from tests.engine_support.driving import COSTS, LANES, join, on, play, spans, statuses, task
from tests.engine_support.graphs import Case, cases

BODY = plan_of([task(3, "copy5", "pool"), task(4, "copy5", "pool"), join(5, [3, 4]), task(6, "copy1", "pool", [5])])


def both(tasks: Sequence[Task], pools: dict[str, int] | None = None) -> Run:
    """The run, which both engines saw alike."""
    plan = plan_of(tasks)
    _, run = play([plan], pools=pools)
    assert run.same_times(run_compiled(COSTS.bind(plan), LANES, pools or {}))
    return run


def test_a_task_ends_with_the_last_of_its_body() -> None:
    """Its own 5 + 10 ps come first; then two copies share the link for 10 ps, then the third."""
    run = both([task(0, "late10", body=BODY), task(1, "copy2")])
    assert spans(run) == {0: (0, 26), 1: (26, 28)}
    (inside,) = run.inside
    assert inside.task == 0 and inside.body is BODY
    assert inside.start_ps.tolist() == [15, 15, 25, 25] and inside.end_ps.tolist() == [25, 25, 25, 26]


def test_bodies_share_what_there_is_with_everything_else() -> None:
    """A copy on another lane beside the body. Two tasks with one body at once: on two servers the copies of the first,
    those of the second, then what waited for them, all of it at half the link each."""
    run = both([task(0, "copy0", "a", body=BODY), task(1, "copy10", "b")])
    assert spans(run) == {0: (0, 17), 1: (0, 21)}  # a third each until 15, then halves until 17
    run = both([task(0, "copy0", "a", body=BODY), task(1, "copy0", "b", body=BODY)])
    assert [i.task for i in run.inside] == [0, 1] and spans(run) == {0: (0, 22), 1: (0, 22)}


def test_holds_and_dependents_wait_for_the_body() -> None:
    run = both([
        task(0, "copy1", body=BODY, takes=(("x", 1),), releases=(0,)), task(1, "copy1", "b", takes=(("x", 1),), releases=(1,)),
        task(2, "copy1", "urgent", [0]),
    ], {"x": 1})  # fmt: skip
    assert spans(run)[0] == (0, 12) and spans(run)[1][0] == spans(run)[2][0] == 12


def test_surplus_tasks_end_as_skipped_and_nobody_waits_for_them() -> None:
    surplus = Task(1, Work("copy0", variant="surplus"), "pool")
    run = both([task(0, "copy1", body=plan_of([task(0, "copy2", "pool"), surplus, task(2, "copy1", "pool", [1])]))])
    assert run.inside[0].status.tolist() == [DONE, SKIPPED, DONE] and run.status.tolist() == [DONE]


def test_an_empty_body_and_one_of_joins() -> None:
    run = both([task(0, "copy1", body=plan_of([])), task(1, "copy1", body=plan_of([join(0), join(1, [0])]))])
    assert spans(run) == {0: (0, 1), 1: (1, 2)} and [i.task for i in run.inside] == [1]


def test_a_cancelled_task_takes_its_body_along() -> None:
    """At 15 ps the first tasks of its body are half done; one event for the task, none for what is inside."""
    whole = [task(0, "copy10", body=BODY, takes=(("x", 1),)), task(1, "copy1", "a"), task(2, "copy1", "b", [0])]
    tick = Task(3, Work("timer", latency_ps=15), notify=True)
    seen, run = play([plan_of([*whole, tick])], on(Finished(3), Cancel(0, "enough")), pools={"x": 1})
    assert statuses(run) == {0: "cancelled", 1: "done", 2: "cancelled", 3: "done"} and spans(run)[1] == (15, 16)
    assert [e for _, e in seen] == [Finished(3), Failed(0, "enough", 0.0), Failed(2, "dependency 0 cancelled")]
    (inside,) = run.inside
    assert (inside.status == CANCELLED).all() and inside.end_ps.tolist() == [15] * 4 and inside.start_ps.tolist() == [10, 10, 15, 15]


def test_a_task_cancelled_before_its_body() -> None:
    tick = Task(9, Work("timer", latency_ps=3), notify=True)
    _, run = play([task(0, "copy5", body=BODY), task(1, "copy5", body=BODY), tick], on(Finished(9), Cancel(1), Cancel(0)))
    assert statuses(run) == {0: "cancelled", 1: "cancelled", 9: "done"} and all((i.status == CANCELLED).all() for i in run.inside)


def test_a_failing_task_fails_before_its_body() -> None:
    seen, run = play([task(0, "copy10", body=BODY)], failures=[(0, 0.5)])
    assert [e for _, e in seen] == [Failed(0, "failed", 0.5)] and spans(run) == {0: (0, 5)}
    assert (run.inside[0].status == CANCELLED).all()


def test_later_tasks_know_the_numbers_of_tasks_only() -> None:
    """Rows of bodies stand between two Plans; numbers go on behind the tasks."""
    first = plan_of([task(5, "copy1", body=BODY), task(6, "copy1", body=BODY)])
    _, run = play([first, task(7, "copy1", "b", [5]), task(9, "copy1", "b", [6])])
    assert spans(run) == {5: (0, 12), 6: (12, 25), 7: (12, 14), 9: (25, 26)}
    with pytest.raises(UserError, match="depends on 8, which was not submitted"):
        play([plan_of([task(5, "copy1", body=BODY), task(6, "copy1")]), task(9, "copy1", "b", [8])])


@pytest.mark.parametrize(("made", "why"), [
    (task(0, "copy1", None, body=BODY), "task 0: has a body and no lane"),
    (task(0, "copy1", body=plan_of([task(0, "copy1", "a")])), "body needs lane 'a' with order 'ready' or 'priority'; it is 'submitted'"),
    (task(0, "copy1", body=plan_of([task(0, "copy1", "nowhere")])), "its body needs lane 'nowhere'"),
    (task(0, "copy1", body=plan_of([task(0, "copy1", "pool", notify=True)])), "its body has bodies, takes, releases or notifications"),
    (task(0, "copy1", body=plan_of([task(0, "copy1", "pool", body=BODY)])), "its body has bodies"),
    (task(0, "copy1", body=plan_of([task(4, "copy1", "pool", [0])])), "task 4: depends on 0, which was not submitted before it"),
])  # fmt: skip
def test_what_no_body_may_have(made: Task, why: str) -> None:
    with pytest.raises(UserError, match=why):
        play([made])
    with pytest.raises(UserError, match=why):
        run_compiled(COSTS.bind(plan_of([made])), LANES, {})


def test_plans_carry_bodies_through_repetition_and_back() -> None:
    builder = PlanBuilder()
    since = builder.mark()
    builder.add(Work("copy1"), "a", body=BODY)
    builder.add(Work("copy1"), "b", [since])
    builder.repeat(since, 2)
    plan = builder.build()
    assert [t.body for t in plan.tasks()] == [BODY, None] * 3 and plan.bodies == (BODY,)
    other = plan_of([replace(t, body=plan_of(list(t.body.tasks()))) if t.body else t for t in plan.tasks()])
    assert len(other.bodies) == 3 and plan.digest() == plan_of(list(plan.tasks())).digest()
    assert plan.digest() != plan_of([replace(t, body=None) for t in plan.tasks()]).digest() and plan.nbytes > BODY.nbytes


def unfolded(case: Case) -> tuple[Plan, dict[int, int]]:
    """The same without bodies: a task is followed by its body's and by a join, which stands for it. Where one server
    runs what is submitted, the next task of the lane may wait for the join too."""
    queues = {lane.name for lane in case.lanes if lane.order == "submitted"}
    builder, stands, last = PlanBuilder(), dict[int, int](), dict[str, int]()
    for t in case.tasks:
        deps = {stands[d] for d in t.deps} | ({last[t.lane]} if t.lane in last else set())
        stands[t.number] = own = builder.add(t.work, t.lane, sorted(deps), priority=t.priority)
        if t.body is not None and len(t.body):
            inner: list[int] = []
            for b in t.body.tasks():
                deps = {own, *(inner[d - t.body.first] for d in b.deps)}
                inner.append(builder.add(b.work, b.lane, sorted(deps), priority=b.priority))
            stands[t.number] = builder.add(Work("join"), None, inner)
        if t.lane in queues:
            last[t.lane] = stands[t.number]
    return builder.build(), stands


@given(cases(pools=False, bodies=True))
def test_a_body_is_tasks_between_a_task_and_a_join(case: Case) -> None:
    """Ends are those of the unfolded graph, where no tie decides: one server inside for each task there."""
    lanes = tuple(lane._replace(servers=1 if lane.order == "submitted" else 10**4) for lane in case.lanes)
    queues = {lane.name for lane in lanes if lane.order == "submitted"}
    tasks = tuple(replace(t, body=t.body if t.lane in queues else None) for t in case.tasks)
    case = replace(case, lanes=lanes, tasks=tasks)
    plan, stands = unfolded(case)
    try:
        ends = run_compiled(case.costs.bind(plan), lanes, {}, changes=case.changes).end_ps
    except Deadlock:  # a capacity fell to nothing for good
        with pytest.raises(Deadlock):
            case.compiled()
        return
    found = case.compiled()
    assert found.end_ps.tolist() == [int(ends[stands[n]]) for n in found.number.tolist()]
