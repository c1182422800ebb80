from __future__ import annotations

from exec.cluster.engine import ENDED, STARTED, WHOLE, Stamp
from exec.cluster.merge import Stamps
from sim.engines.run import CANCELLED, DONE
from sim.plan import Plan, PlanBuilder
from sim.tasks import Work


def plan() -> Plan:
    builder = PlanBuilder()
    a = builder.add(Work("permute"), "gpu.0")
    p = builder.add(Work("put"), "put.0.1", [a])
    j = builder.add(Work("barrier"), None, [p])
    builder.add(Work("experts"), "gpu.1", [j])
    return builder.build()


LANES = ("gpu.0", "gpu.1", "put.0.1")


def test_a_put_begins_on_one_rank_and_ends_on_the_other() -> None:
    stamps = Stamps(plan(), LANES)
    stamps.add(0, [Stamp(0, WHOLE, 10, 20, DONE), Stamp(1, STARTED, 25, 30, DONE)])
    stamps.add(1, [Stamp(1, ENDED, 60, 60, DONE), Stamp(3, WHOLE, 70, 90, DONE)])
    run = stamps.run()
    assert run.number.tolist() == [0, 1, 2, 3]
    assert run.start_ps.tolist() == [10, 25, 60, 70]
    assert run.end_ps.tolist() == [20, 60, 60, 90]
    assert [LANES[i] if i >= 0 else None for i in run.lane] == ["gpu.0", "put.0.1", None, "gpu.1"]
    assert run.status.tolist() == [DONE] * 4


def test_a_put_whose_receiver_is_lost_ends_as_cancelled_and_nothing_behind_it_shows() -> None:
    stamps = Stamps(plan(), LANES)
    stamps.add(0, [Stamp(0, WHOLE, 10, 20, DONE), Stamp(1, STARTED, 25, 30, DONE)])
    run = stamps.run()
    assert run.number.tolist() == [0, 1, 2, 3]
    assert run.status.tolist() == [DONE, CANCELLED, CANCELLED, CANCELLED]
    assert run.start_ps.tolist() == [10, 25, 30, 30]
    assert run.end_ps.tolist() == [20, 30, 30, 30]


def test_what_ran_when_the_run_was_stopped_ends_as_cancelled() -> None:
    stamps = Stamps(plan(), LANES)
    stamps.add(0, [Stamp(0, WHOLE, 10, 50, CANCELLED)])
    run = stamps.run()
    assert run.status.tolist() == [CANCELLED] * 4
    assert (run.start_ps[0], run.end_ps[0]) == (10, 50)


def test_clocks_that_disagree_never_make_a_put_end_before_it_starts() -> None:
    stamps = Stamps(plan(), LANES)
    stamps.add(0, [Stamp(1, STARTED, 25, 30, DONE)])
    stamps.add(1, [Stamp(1, ENDED, 24, 24, DONE)])
    run = stamps.run()
    put = run.number.tolist().index(1)
    assert (run.start_ps[put], run.end_ps[put]) == (24, 24)
