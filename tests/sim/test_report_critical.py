from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim.report.critical import CriticalPath, Dependencies, critical_path, shares
from tests.sim.report_runs import SECONDS, US, Run, _dependencies, _timeline, cgopipe_like
from traces.timeline import strings


def ops(timeline, path):
    return strings(timeline.take(path.rows), "op").tolist()


def accounts_for_all(timeline, path: CriticalPath) -> bool:
    return int(timeline.duration_ps[path.rows].sum() + path.wait_ps.sum()) == timeline.makespan_ps and (path.wait_ps >= 0).all()


def chain(*tasks, seed=None):
    """(op, deps) one after another as a timeline and its dependencies."""
    run = Run(seed)
    for op, deps in tasks:
        run.add(op, deps, "decode", 1, 0, 0)
    return _timeline(run, "simulated" if seed is None else "measured"), _dependencies(run)


def test_the_longer_of_two_branches_is_critical():
    t, d = chain(("pre_attn", []), ("attn_decode", [0]), ("page_to_gpu", []), ("post_attn", [1, 2]))
    path = critical_path(t, d)
    assert ops(t, path) == ["pre_attn", "attn_decode", "post_attn"]
    assert path.wait_ps.tolist() == [0, 0, 0]


def test_the_lane_before_counts_where_it_was_the_last_to_let_go():
    t, d = chain(("page_to_gpu", []), ("page_to_gpu", []), ("load_hidden", []), ("post_attn", [2]))
    assert ops(t, critical_path(t, d)) == ["page_to_gpu", "page_to_gpu", "load_hidden", "post_attn"]


def test_of_tasks_that_end_together_the_dependency_is_taken():
    run = Run(None)
    run.add("pre_attn", [], "decode", 1, 0, 0)
    run.add("offload_qkv", [], "decode", 1, 0, 0)
    run.add("page_to_pin", [], "decode", 1, 0, 0)
    rows = run.rows
    rows[1] = (*rows[1][:7], 0, 60 * US)
    rows[2] = (*rows[2][:7], 0, 60 * US)
    run.add("attn_decode", [1], "decode", 1, 0, 0)
    rows[3] = (*rows[3][:7], 60 * US, 270 * US)
    t = _timeline(run, "simulated")
    assert ops(t, critical_path(t, _dependencies(run))) == ["offload_qkv", "attn_decode"]


def test_pool_releaser_lets_the_next_copy_start():
    """The second copy waits for the slot that post_attn gives back: neither its lane nor a dependency held it."""
    run = Run(None)
    run.add("page_to_gpu", [], "decode", 1, 0, 0)
    run.add("post_attn", [0], "decode", 1, 0, 0)
    run.free["h2d"] = run.rows[1][8]
    run.add("page_to_gpu", [], "decode", 1, 1, 0)
    # An unrelated task that ends in the same picosecond, and looks nearer by its labels.
    run.rows.append((3, "attn_decode", "cpu", "decode", 1, 1, 0, 0, run.rows[1][8]))
    run.deps.append([])
    t, d = _timeline(run, "simulated"), _dependencies(run)
    pooled = replace(d, take_task=np.array([0, 2]), take_pool=np.array([0, 0]), release_task=np.array([1]), release_pool=np.array([0]))
    assert ops(t, critical_path(t, pooled)) == ["page_to_gpu", "post_attn", "page_to_gpu"]


def test_waiting_for_a_request_is_waiting():
    run = Run(None)
    run.add("pre_attn", [], "decode", 1, 0, 0)
    run.free["gpu"] = 500 * US
    run.add("post_attn", [0], "decode", 1, 0, 0)
    t = _timeline(run, "simulated")
    path = critical_path(t, _dependencies(run))
    assert path.wait_ps.tolist() == [0, 440 * US]
    assert [(s.op, round(s.seconds * 1e6), s.tasks) for s in shares(t, path)] == [("", 440, 1), ("post_attn", 170, 1), ("pre_attn", 60, 1)]


def test_measured_gaps_do_not_lead_astray():
    """With dispatch gaps everywhere, the measured path is the simulated one, whatever else ends in between."""
    simulated, d = cgopipe_like(4, 3, 3)
    measured, _ = cgopipe_like(4, 3, 3, seed=5)
    ours, theirs = (critical_path(t, d) for t in (simulated, measured))
    shared = set(simulated.task_id[ours.rows].tolist()) & set(measured.task_id[theirs.rows].tolist())
    assert len(shared) > 0.9 * len(ours.rows)
    assert sum(s.share for s in shares(measured, theirs)) == pytest.approx(1)


def test_tasks_that_never_ran_are_left_out_and_an_empty_run_has_no_path():
    t, d = chain(("pre_attn", []), ("post_attn", [0]))
    lost = replace(t, status=np.array([0, 2], np.int32), end_ps=np.array([60 * US, 60 * US]), start_ps=np.array([0, 60 * US]))
    assert ops(lost, critical_path(lost, d)) == ["pre_attn"]
    empty = t.take(np.empty(0, np.int64))
    assert len(critical_path(empty).rows) == 0 and shares(empty, critical_path(empty)) == []


def test_joins_of_no_length_end_the_walk():
    """Many tasks of zero length in one instant: the walk goes down in their order and comes to an end."""
    t, _ = chain(*[("sample", [])] * 5)
    at = np.full(5, 7 * US)
    flat = replace(t, start_ps=at, end_ps=at, lane=np.full(5, t.lanes.index(""), np.int32))
    d = Dependencies(np.arange(5), np.array([0, 0, 1, 2, 3, 4]), np.arange(4))
    path = critical_path(flat, d)
    assert path.rows.tolist() == [0, 1, 2, 3, 4] and path.wait_ps.tolist() == [7 * US, 0, 0, 0, 0]


tasks = st.lists(st.tuples(st.sampled_from(sorted(SECONDS)), st.lists(st.integers(0, 30), max_size=3)), min_size=1, max_size=25)


@given(tasks, st.booleans())
def test_path_and_waits_add_up_to_the_makespan_and_nothing_waits_in_a_greedy_run(drawn, with_dependencies):
    t, d = chain(*[(op, [x % i for x in deps] if i else []) for i, (op, deps) in enumerate(drawn)])
    path = critical_path(t, d if with_dependencies else None)
    assert accounts_for_all(t, path)
    assert t.end_ps[path.rows[-1]] == t.makespan_ps
    assert not path.wait_ps.any()


@given(tasks, st.integers(0, 5))
def test_a_measured_run_is_accounted_for_too(drawn, seed):
    t, d = chain(*[(op, [x % i for x in deps] if i else []) for i, (op, deps) in enumerate(drawn)], seed=seed)
    path = critical_path(t, d)
    assert accounts_for_all(t, path)
    assert (np.diff(t.end_ps[path.rows]) >= 0).all()
