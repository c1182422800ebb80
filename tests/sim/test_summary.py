"""The figures of `run --json`, and the lower bound, on runs small enough to work out by hand."""

import numpy as np
import pytest

from sim import machines
from sim.bounds import lower_bound_s
from sim.columns import columns_of
from sim.costs import CostModel
from sim.engines.run import CANCELLED, DONE, Run
from sim.events import Request
from sim.models import load as load_model
from sim.plan import plan_of
from sim.summary import About, summarize, union_ps
from sim.tasks import Task, Work

S = 10**12
LANES = ("gpu", "h2d")


Numbers = tuple[int, ...]


def task(number: int, op: str, lane: str | None, phase: str, step: int, requests: Numbers = (), deps: Numbers = ()) -> Task:
    return Task(number, Work(op, tokens=len(requests)), lane, deps, phase=phase, step=step, requests=requests)


TASKS = (
    task(0, "sample", "gpu", "prefill", 0, (0, 1)),
    task(1, "page_to_gpu", "h2d", "decode", 1),
    task(2, "sample", "gpu", "decode", 1, (0, 1), deps=(1,)),
    task(3, "join", None, "decode", 1, deps=(2,)),
    task(7, "sample", "gpu", "decode", 2, (0, 1), deps=(3,)),
    task(8, "sample", "gpu", "decode", 3, (0,)),
)
TIMES = ((0, 2), (1, 3), (4, 5), (5, 5), (6, 8), (9, 9))


def run(sources: tuple[object, ...] = (plan_of(TASKS[:4]), *TASKS[4:])) -> Run:
    lane = [LANES.index(t.lane) if t.lane else -1 for t in TASKS]
    status = [DONE] * 5 + [CANCELLED]
    start, end = (np.array(c, np.int64) * S for c in zip(*TIMES, strict=True))
    number = np.array([t.number for t in TASKS])
    return Run(sources, LANES, number, np.array(lane, np.int16), start, end, np.array(status, np.int8))  # type: ignore[arg-type]


def about() -> About:
    policy = {"batch": 2, "microbatch": 2}
    return About("simulated", "synthetic", "tiny-mixtral", machines.load("t4"), "mtbench", "cgopipe", policy, {"gpu": 5}, 1.5)


REQUESTS = (Request(0, 4, 3, 3), Request(1, 4, 2, 2, arrival_ps=S))


def summary() -> dict[str, object]:
    return summarize(about(), run(), REQUESTS, (3, 2), wall_s=0.25)


def test_the_fields_of_the_json_object() -> None:
    assert list(summary()) == [
        "clock", "sources", "routing", "ttft_s", "tpot_s", "model", "machine", "workload", "scheduler", "policy", "makespan_s", "prefill_s",
        "decode_s", "generated_tokens", "tokens_per_s", "tasks", "lanes", "peak_bytes", "lower_bound_s", "wall_s",
    ]  # fmt: skip


def test_times_of_tokens() -> None:
    """Request 0: tokens at 2, 5, 8 s; request 1, which arrived at 1 s: at 2 and 5 s, its third sample is beyond its length."""
    s = summary()
    assert s["generated_tokens"] == 5
    assert s["ttft_s"] == (2 + 1) / 2
    assert s["tpot_s"] == (6 / 2 + 3 / 1) / 2


def test_makespan_phases_and_lanes() -> None:
    s = summary()
    assert (s["makespan_s"], s["prefill_s"], s["decode_s"]) == (9, 2, 7)
    assert s["tokens_per_s"] == 5 / 9
    assert s["lanes"] == {"gpu": {"busy_s": 5.0, "utilization": 5 / 9}, "h2d": {"busy_s": 2.0, "utilization": 2 / 9}}
    assert s["tasks"] == 6


def test_sources_name_every_capacity() -> None:
    found = summary()["sources"]
    assert isinstance(found, dict)
    assert {"gpu.flops", "link.h2d", "memory.gpu", "memory.pinned"} <= set(found)


def test_an_empty_run_has_no_rates() -> None:
    empty = Run((), LANES, *(np.empty(0, d) for d in (np.int64, np.int16, np.int64, np.int64, np.int8)))
    s = summarize(about(), empty, REQUESTS, (3, 2), wall_s=0.0)
    assert (s["makespan_s"], s["tokens_per_s"], s["ttft_s"], s["tpot_s"], s["generated_tokens"]) == (0, 0, 0, 0, 0)


@pytest.mark.parametrize(
    ("intervals", "length"),
    [([], 0), ([(0, 2), (1, 3)], 3), ([(0, 10), (2, 3), (4, 6)], 10), ([(5, 6), (0, 1)], 2), ([(3, 3)], 0), ([(4, 9)], 5)],
)
def test_union(intervals: list[tuple[int, int]], length: int) -> None:
    pairs = np.array(intervals, np.int64).reshape(-1, 2)
    assert union_ps(pairs[:, 0], pairs[:, 1]) == length


def test_columns_are_the_same_from_plans_and_tasks() -> None:
    loose, mixed = columns_of(TASKS), columns_of(run().sources)
    assert mixed.number.tolist() == [0, 1, 2, 3, 7, 8]
    assert mixed.dep.tolist() == [1, 2, 3]
    assert mixed.dep_ptr.tolist() == [0, 0, 0, 1, 2, 3, 3]
    assert [mixed.works[w].op for w in mixed.work] == [t.op for t in TASKS]
    assert [mixed.groups[g] if g >= 0 else () for g in mixed.group] == [t.requests for t in TASKS]
    for name in ("number", "phase", "step", "dep", "dep_ptr"):
        assert np.array_equal(getattr(loose, name), getattr(mixed, name)), name


# The lower bound --------------------------------------------------------------------------------

MIB = 2**20


def copy(number: int, lane: str, deps: tuple[int, ...] = ()) -> Task:
    op = {"h2d": "load_hidden", "d2h": "offload_qkv", "pin": "page_to_pin"}[lane]
    return Task(number, Work(op, bytes=MIB), lane, deps)


def bound(*tasks: Task) -> float:
    machine = machines.load("t4")
    costs = CostModel(machine, load_model("tiny-mixtral"))
    return lower_bound_s([plan_of(tasks)], costs, {lane.name: lane.servers for lane in machine.lanes})


def alone(lane: str) -> float:
    return CostModel(machines.load("t4"), load_model("tiny-mixtral")).solo_ps(lane, copy(0, lane).work) / S


def test_bound_is_the_longest_chain_where_nothing_queues() -> None:
    chain = bound(copy(0, "h2d"), copy(1, "pin", (0,)), copy(2, "d2h", (0, 1)))
    assert chain == pytest.approx(alone("h2d") + alone("pin") + alone("d2h"), rel=1e-9)


def test_bound_is_the_busiest_lane_where_nothing_depends() -> None:
    """Three copies at once: latencies count on the lane, not on the link."""
    assert bound(copy(0, "h2d"), copy(1, "h2d"), copy(2, "h2d"), copy(3, "d2h")) == pytest.approx(3 * alone("h2d"), rel=1e-9)


def test_bound_is_the_busiest_resource_where_lanes_share_one() -> None:
    """Twenty lanes' worth of servers: only the link is left as a limit."""
    machine = machines.load("t4")
    costs = CostModel(machine, load_model("tiny-mixtral"))
    tasks = [copy(i, "h2d") for i in range(20)]
    found = lower_bound_s(tasks, costs, {lane.name: 20 for lane in machine.lanes})
    assert found == pytest.approx(20 * MIB / machine.resources["link.h2d"].capacity, rel=1e-9)


def test_bound_of_nothing() -> None:
    assert lower_bound_s([], CostModel(machines.load("t4"), load_model("tiny-mixtral")), {}) == 0.0
