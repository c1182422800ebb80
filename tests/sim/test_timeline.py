from __future__ import annotations

import numpy as np
import pytest

from sim import workloads
from sim.engines.run import Run
from sim.models.builtin import NAMES
from sim.ops import components
from sim.plan import PlanBuilder
from sim.report.critical import critical_path
from sim.schedulers.policy import Policy
from sim.simulate import simulate
from sim.tasks import Task, Work
from sim.timeline import dependencies_of, timeline_of
from traces.files import Provenance
from traces.timeline import read_timeline, strings, write_timeline

SOURCE = Provenance("synthetic", "test", "simulated")


def run() -> Run:
    """A task, a plan of three, and a task that depends on the plan."""
    b = PlanBuilder(first=1)
    labels = {"phase": "decode", "step": 3, "layer": 1, "microbatch": 2}
    page = b.add(Work("page_to_gpu", bytes=4096), "h2d", (0,), takes=[("pages", 1)], rank=1, **labels)
    b.add(Work("join"), None, (page,))
    b.add(Work("post_attn", tokens=8, sequences=8, experts=4), "gpu", (page,), releases=(page,), **labels)
    takes = (("pages", 1), ("pinned", 2))
    last = Task(4, Work("page_to_gpu", bytes=100), "h2d", deps=(2, 3), takes=takes, releases=(4,), phase="prefill", step=0)
    sources = (Task(0, Work("timer", latency_ps=5)), b.build(), last)
    return Run(
        sources, ("gpu", "h2d"), number=np.arange(5), lane=np.array([-1, 1, -1, 0, 1], np.int16), start_ps=np.array([0, 5, 9, 9, 20]),
        end_ps=np.array([5, 9, 9, 20, 20]), status=np.array([0, 0, 0, 0, 2], np.int8),
    )  # fmt: skip


def test_labels_come_from_plans_and_tasks_and_times_from_the_run():
    t = timeline_of(run(), SOURCE)
    assert strings(t, "op").tolist() == ["timer", "page_to_gpu", "join", "post_attn", "page_to_gpu"]
    assert strings(t, "lane").tolist() == ["", "h2d", "", "gpu", "h2d"]
    assert strings(t, "phase").tolist() == ["", "decode", "", "decode", "prefill"]
    assert strings(t, "status").tolist() == ["done"] * 4 + ["cancelled"]
    assert t.step.tolist() == [-1, 3, -1, 3, 0] and t.layer.tolist() == [-1, 1, -1, 1, -1] and t.rank.tolist() == [0, 1, 0, 0, 0]
    assert t.microbatch.tolist() == [-1, 2, -1, 2, -1]
    assert t.start_ps.tolist() == [0, 5, 9, 9, 20] and t.end_ps.tolist() == [5, 9, 9, 20, 20]
    assert t.bytes.tolist() == [0, 4096, 0, 0, 100] and not t.flops.any()
    assert t.ran.tolist() == [True] * 4 + [False]


def test_with_a_model_compute_tasks_count_their_work_formulas():
    model = NAMES["tiny-mixtral"]
    t = timeline_of(run(), SOURCE, model)
    parts = components(model, Work("post_attn", tokens=8, sequences=8, experts=4))
    assert t.flops[3] == round(sum(p.cost.flops for p in parts)) > 0
    assert t.bytes.tolist() == [0, 4096, 0, round(sum(p.cost.bytes for p in parts)), 100]


def test_timeline_of_a_run_survives_its_file(tmp_path):
    t = timeline_of(run(), SOURCE)
    write_timeline(tmp_path / "t.parquet", t)
    assert strings(read_timeline(tmp_path / "t.parquet"), "op").tolist() == strings(t, "op").tolist()


def test_dependencies_and_who_gives_back_what():
    d = dependencies_of(run())
    listed = {int(n): d.dep[d.ptr[i] : d.ptr[i + 1]].tolist() for i, n in enumerate(d.task)}
    assert listed == {0: [], 1: [0], 2: [1], 3: [1], 4: [2, 3]}
    assert sorted(zip(d.take_task.tolist(), d.take_pool.tolist(), strict=True)) == [(1, 0), (4, 0), (4, 1)]
    assert sorted(zip(d.release_task.tolist(), d.release_pool.tolist(), strict=True)) == [(3, 0), (4, 0), (4, 1)]


@pytest.fixture(scope="module")
def simulated():
    return simulate("tiny-mixtral", "l4", workloads.load("mtbench").with_generation(6), "cgopipe", Policy(batch=24, microbatch=6))


def test_critical_path_of_a_real_schedule_never_waits(simulated):
    """Every task of the simulated path starts in the very picosecond in which a lane, a dependency or a pool let it."""
    t = timeline_of(simulated.run, SOURCE, simulated.job.model)
    path = critical_path(t, dependencies_of(simulated.run))
    assert not path.wait_ps.any() and len(path.rows) > 50
    assert int(t.duration_ps[path.rows].sum()) == t.makespan_ps == round(simulated.summary["makespan_s"] * 1e12)


def test_empty_run():
    empty = Run((), ("gpu",), *(np.empty(0, k) for k in (np.int64, np.int16, np.int64, np.int64, np.int8)))
    assert len(timeline_of(empty, SOURCE)) == 0 and len(dependencies_of(empty).task) == 0


@pytest.mark.parametrize("count", [1, 5])
def test_released_task_without_takes_gives_back_nothing(count):
    b = PlanBuilder()
    for i in range(count):
        b.add(Work("sample"), "gpu", releases=(i,))
    plan = b.build()
    n = np.arange(count)
    r = Run((plan,), ("gpu",), n, np.zeros(count, np.int16), n, n + 1, np.zeros(count, np.int8))
    assert len(dependencies_of(r).release_task) == 0
