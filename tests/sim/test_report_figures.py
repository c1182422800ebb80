from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from sim.report.figures import lane_use, op_errors, seconds_text, step_times, step_window, union_ps
from tests.sim.report_runs import US, cgopipe_like


def test_union_counts_overlaps_once():
    assert union_ps(np.array([5, 0, 2, 20]), np.array([6, 4, 9, 21])) == 10
    assert union_ps(np.empty(0, np.int64), np.empty(0, np.int64)) == 0


def test_lane_use_of_servers_that_overlap_stays_below_one():
    t, _ = cgopipe_like(2, 2, 2)
    doubled = replace(t, start_ps=np.zeros_like(t.start_ps), end_ps=np.full_like(t.end_ps, 8 * US))
    assert [u.utilization for u in lane_use(doubled)] == [1.0] * 5
    gpu = lane_use(t)[0]
    mine = t.lane == 0
    assert gpu.lane == "gpu" and gpu.tasks == mine.sum() and gpu.busy_s == pytest.approx(t.duration_ps[mine].sum() / 1e12)


def test_lanes_of_several_ranks_are_told_apart():
    t, _ = cgopipe_like(2, 2, 2)
    t = replace(t, rank=(t.microbatch == 1).astype(np.int16))
    assert {u.lane for u in lane_use(t)} >= {"gpu, rank 0", "gpu, rank 1"}


def test_steps_run_from_sample_to_sample():
    t, _ = cgopipe_like(4, 3, 3)
    steps, seconds = step_times(t)
    assert steps.tolist() == [1, 2, 3, 4]
    ends = [int(t.end_ps[(t.step == s) & (t.op == t.ops.index("sample"))].max()) for s in range(5)]
    assert seconds.tolist() == pytest.approx(np.diff(ends) / 1e12)
    assert step_window(t, 0) == (0, ends[0]) and step_window(t, 2) == (ends[1], ends[2])
    assert step_window(t, 9) is None


def test_steps_without_sampling_end_with_their_last_task():
    t, _ = cgopipe_like(2, 2, 2)
    t = t.take(np.flatnonzero(t.op != t.ops.index("sample")))
    assert step_window(t, 1)[1] == t.end_ps[t.step == 1].max()


def test_error_is_simulated_over_measured():
    simulated, _ = cgopipe_like(2, 2, 2)
    measured = replace(simulated, end_ps=simulated.start_ps + 2 * simulated.duration_ps)
    rows = op_errors(simulated, measured)
    assert {r.error for r in rows} == {-0.5}
    pages = next(r for r in rows if r.op == "page_to_gpu")
    assert pages.simulated_tasks == pages.measured_tasks == 8 and pages.phase == "decode"
    assert pages.simulated_median_s == pytest.approx(190e-6) and pages.measured_s == pytest.approx(8 * 380e-6)
    assert [r.measured_s for r in rows] == sorted((r.measured_s for r in rows), reverse=True)


def test_op_that_one_clock_lacks_has_no_error():
    simulated, _ = cgopipe_like(2, 2, 2)
    measured = simulated.take(np.flatnonzero(simulated.op != simulated.ops.index("sample")))
    assert [r.error for r in op_errors(simulated, measured) if r.op == "sample"] == [None, None]


def test_failed_tasks_do_not_count_as_durations():
    t, _ = cgopipe_like(2, 2, 2)
    failed = replace(t, status=(t.op == t.ops.index("sample")).astype(np.int32))
    assert "sample" not in {r.op for r in op_errors(failed, failed)}


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (12.345, "12.3 s"), (12345.0, "12,345 s"), (0.00123, "1.23 ms"), (5e-6, "5 µs"), (7.25e-9, "7.25 ns"), (-0.5, "-500 ms"),
     (3e-12, "3 ps")],
)  # fmt: skip
def test_seconds_have_the_unit_that_fits(seconds, text):
    assert seconds_text(seconds) == text
