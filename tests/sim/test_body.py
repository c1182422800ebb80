"""Bodies on simulated time."""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from sim.body import LANE, even_rows, outer_lanes, with_blocks
from sim.bounds import solo_ps
from sim.costs import CostModel, PricedPlan
from sim.engines.compiled import run_compiled
from sim.engines.run import SKIPPED, Inside, Run
from sim.engines.simpy_engine import SimPyEngine
from sim.errors import UserError
from sim.machines import Machine, load
from sim.machines.schema import Lane, OpRate
from sim.models import load as load_model
from sim.ops import tiles as moe
from sim.plan import Plan
from sim.report.critical import critical_path
from sim.report.embed import chosen
from sim.schedulers.policy import Policy
from sim.schedulers.ticket import layer_plan, tiles_of
from sim.simulate import simulate
from sim.tasks import PS_PER_S
from sim.timeline import timeline_of
from sim.workloads import load as load_workload
from traces.files import Provenance
from traces.timeline import INSIDE, read_timeline, strings, write_timeline

QWEN = load_model("qwen3-30b-a3b")
SMALL = replace(load_model("tiny-mixtral"), hidden=64, ffn=96)


@dataclass(frozen=True)
class Chosen:
    """Routing that gives every layer the same rows of each expert."""

    rows: tuple[int, ...]

    def expert_tokens(self, requests: tuple[int, ...], phase: str, step: int, layer: int) -> tuple[int, ...]:
        return self.rows


def ideal(blocks: int) -> Machine:
    """An H200 whose launches take no time, whose blocks reach the peaks and draw tickets in no time."""
    machine = with_blocks(load("h200"), blocks, flops=1.0, bytes=1.0)
    return machine.model_copy(update={"ops": tuple(r.model_copy(update={"latency_s": 0.0}) for r in machine.ops)})


def spread(experts: int, rows: dict[int, int]) -> Chosen:
    return Chosen(tuple(rows.get(e, 0) for e in range(experts)))


def run_layer(plan: Plan, costs: CostModel) -> Run:
    return run_compiled(costs.bind(plan), costs.lanes, {})


def inside_of(run: Run) -> Inside:
    (inside,) = run.inside
    return inside


def test_decode_is_bound_by_its_bytes() -> None:
    """Batch 1 of Qwen3-30B-A3B on an H200: 8 experts x 9.44 MB at 4.8 TB/s are 15.7 us; tiles and the router
    add to that what does not fill all blocks."""
    run = run_layer(layer_plan(QWEN, 1), CostModel(ideal(528), QWEN, spread(128, dict.fromkeys(range(8), 1))))
    floor_s = 8 * 3 * QWEN.hidden * QWEN.ffn * 2 / 4.8e12
    assert floor_s == pytest.approx(15.7e-6, rel=0.01)
    assert floor_s < run.makespan_ps / PS_PER_S < 1.35 * floor_s


def test_a_block_keeps_to_its_share() -> None:
    """Alone on the machine, a tile still takes as long as one multiprocessor's share of the bandwidth allows."""
    tiles = tiles_of(QWEN, 1)
    tile = next(t for t in layer_plan(QWEN, 1).bodies[0].tasks() if t.op == "gate_up_tile")
    cost = moe.cost(moe.GATE_UP, 1, tiles.tiling.gate_up, tiles.shape, 2)
    estimate = CostModel(ideal(528), QWEN).estimate(tile)
    assert abs(estimate - math.ceil(cost.bytes / (4.8e12 / 132) * PS_PER_S)) <= 1


def test_surplus_tiles_end_as_skipped_and_take_no_time() -> None:
    plan = layer_plan(QWEN, 4)
    (body,) = plan.bodies
    run = run_layer(plan, CostModel(ideal(528), QWEN, spread(128, dict.fromkeys(range(8), 4))))  # all tokens choose the same experts
    slotted = np.array([w.op in ("gate_up_tile", "down_tile") for w in body.works])[body.work]
    found = inside_of(run)
    assert tiles_of(QWEN, 4).slots == 32
    assert np.array_equal(found.status == SKIPPED, slotted & (body.microbatch >= 8))
    assert (found.start_ps == found.end_ps)[found.status == SKIPPED].all()
    assert (found.start_ps < found.end_ps)[slotted & (body.microbatch < 8)].all()


@pytest.mark.parametrize("tokens", [2, 40])
def test_both_engines_see_the_same(tokens: int) -> None:
    plan, costs = layer_plan(SMALL, tokens), CostModel(with_blocks(load("h200"), 7), SMALL)
    engine = SimPyEngine(costs.lanes, {}, costs)
    engine.submit([plan])
    while engine.wait() is not None:
        pass
    assert engine.run.same_times(run_layer(plan, costs))


def test_a_task_waits_for_its_launch_then_for_its_tiles() -> None:
    costs = CostModel(with_blocks(load("h200"), 528), QWEN)
    run = run_layer(layer_plan(QWEN, 2), costs)
    found = inside_of(run)
    assert run.start_ps[0] == 0 and found.start_ps.min() == 5e-6 * PS_PER_S and run.end_ps[0] == found.end_ps.max()


def with_tickets(priced: PricedPlan, blocks: int) -> int:
    """Makespan if each block draws the next ticket when it is free and waits with it, tiles at their solo times:
    an exact model of the kernel on a machine where nothing is shared."""
    body, free = priced.plan, [0] * blocks
    ends, solo = np.zeros(len(body), np.int64), np.ceil(solo_ps(priced.prices, priced.capacity))[priced.cls].astype(np.int64)
    for i, task in enumerate(body.tasks()):
        ready = max((int(ends[d - body.first]) for d in task.deps), default=0)
        if task.lane is None:
            ends[i] = ready
        else:
            ends[i] = max(heapq.heappop(free), ready) + solo[i]
            heapq.heappush(free, int(ends[i]))
    return int(ends.max())


@pytest.mark.parametrize(("model", "tokens"), [("qwen3-30b-a3b", 1), ("qwen3-30b-a3b", 4), ("mixtral-8x7b", 1), ("qwen3-30b-a3b", 200)])
def test_waiting_with_a_ticket_in_hand_costs_little(model: str, tokens: int) -> None:
    """In the scheduler's order; so a free block may take the first tile that has all it needs."""
    spec = load_model(model)
    costs = CostModel(with_blocks(load("h200"), 528, per_sm=1), spec)
    plan = layer_plan(spec, tokens)
    exact = with_tickets(costs.bind(plan).bodies[0], 528)
    found = inside_of(run_layer(plan, costs))
    assert 0.99 * exact < found.end_ps.max() - found.start_ps.min() < 1.01 * exact


def test_a_curve_is_read_at_a_tile_s_rows() -> None:
    """Two seconds per unit at 4 rows: a down tile of 8 columns over ffn 16 has 128 units. Of the second slot's 2 rows too:
    below the first point a curve is flat."""
    lane = Lane(name=LANE, order="ready", kind="compute", servers=2, cores="cores", threads=1)
    gpu = Lane(name="gpu", kind="compute", cores="cores", threads=2)
    cores = load("h200").resources["gpu.flops"].model_copy(update={"kind": "cores", "capacity": 2.0})
    rows = [OpRate(op="*", lane="gpu", source="a test"), OpRate(op="down_tile", lane=LANE, curve=((4, 2.0), (8, 3.0)), source="a test")]
    machine = Machine(name="m", resources={"cores": cores}, memories={}, lanes=(gpu, lane), ops=tuple(rows))
    spec = replace(SMALL, hidden=8, ffn=16, experts=2, top_k=1)
    plan = layer_plan(spec, 6, tiling=moe.Tiling(6, 2, 6, 8, 8, 8))
    with pytest.raises(UserError, match="no row for 'route_tile'"):
        CostModel(machine, spec).bind(plan)
    free = OpRate(op="*", lane=LANE, source="a test")
    costs = CostModel(machine.model_copy(update={"ops": (*machine.ops, free)}), spec, Chosen((4, 2)))
    priced = costs.bind(plan).bodies[0]
    downs = [i for i, t in enumerate(priced.plan.tasks()) if t.op == "down_tile"]
    assert solo_ps(priced.prices, priced.capacity)[priced.cls[downs]].tolist() == [256 * PS_PER_S, 256 * PS_PER_S]


def test_threads_that_play_a_gpu_are_its_blocks() -> None:
    """A tile takes as long on one thread as its part of the whole kernel on both, twice."""
    cores = load("h200").resources["gpu.flops"].model_copy(update={"kind": "cores", "capacity": 2.0})
    gpu = Lane(name="gpu", kind="compute", compute="flops", memory="dram", cores="cores", threads=2)
    flat = {name: OpRate(op=name, lane="gpu", curve=((1, 1e-9),), source="a test") for name in ("*", "expert_ffn", "router", "combine")}
    resources = {"cores": cores, "flops": load("h200").resources["gpu.flops"], "dram": load("h200").resources["gpu.memory"]}
    machine = with_blocks(Machine(name="m", resources=resources, memories={}, lanes=(gpu,), ops=tuple(flat.values())))
    assert machine.lane[LANE].servers == 2 and outer_lanes(machine) == (gpu,)
    run = run_layer(layer_plan(SMALL, 40), CostModel(machine, SMALL, Chosen((40, 40, 0, 0))))
    busy = sum(int((i.end_ps - i.start_ps).sum()) for i in run.inside)
    elements = 2 * 3 * SMALL.hidden * SMALL.ffn + SMALL.experts * SMALL.hidden + SMALL.top_k * SMALL.hidden
    assert busy == pytest.approx(2 * 1e-9 * elements * PS_PER_S, rel=1e-6)


def test_ticket_is_resident_with_tiles_inside() -> None:
    """By name on either engine: resident's tasks, each layer's experts tile by tile; seen whole where there are no blocks."""
    workload, policy = load_workload("mtbench").with_generation(3), Policy(batch=2, microbatch=2)
    plain = simulate(SMALL, "h200", workload, "resident", policy)
    fused, simpy = (simulate(SMALL, "h200", workload, "ticket", policy, engine=engine) for engine in ("compiled", "simpy"))
    assert fused.run.same_times(simpy.run) and fused.log.digest() == simpy.log.digest()
    assert np.array_equal(fused.run.number, plain.run.number) and not plain.run.inside
    experts = [t.number for s in fused.run.sources for t in s.tasks() if t.body is not None]
    assert [i.task for i in fused.run.inside] == experts and len(experts) >= 2 * SMALL.layers
    assert fused.summary["lower_bound_s"] <= fused.summary["makespan_s"]
    lanes = fused.summary["lanes"]
    assert 0 < lanes[LANE]["busy_s"] < lanes["gpu"]["busy_s"] and LANE not in plain.summary["lanes"]
    costs = CostModel(load("h200"), SMALL)
    (plan,) = fused.run.sources
    assert run_compiled(costs.bind(plan), costs.lanes, {}).same_times(plain.run)


def test_even_rows_are_those_of_uniform_routing() -> None:
    rows = even_rows(4, 128, 8)
    touched = [r for r in rows if r]
    assert sum(rows) == 32 and len(touched) == round(128 * (1 - (1 - 8 / 128) ** 4)) and max(touched) - min(touched) <= 1
    assert even_rows(1, 128, 8) == (1,) * 8 + (0,) * 120


def test_rows_inside_stand_behind_the_tasks_in_a_timeline(tmp_path: Path) -> None:
    """Under numbers that tell their task, with its labels; surplus ones count no work. The file reads back."""
    costs = CostModel(with_blocks(load("h200"), 4), QWEN, spread(128, dict.fromkeys(range(8), 2)))
    run = run_layer(layer_plan(QWEN, 2), costs)
    t = timeline_of(run, Provenance("synthetic", "a test", "simulated"), QWEN)
    found = inside_of(run)
    assert t.task_id.tolist() == [0, *range(INSIDE, INSIDE + len(found.body))] and t.inside.tolist() == [False] + [True] * len(found.body)
    assert set(strings(t, "lane")) == {"gpu", LANE, ""} and (t.layer == 0).all()
    assert np.array_equal(t.start_ps[1:], found.start_ps) and np.array_equal(t.microbatch[1:], found.body.microbatch)
    surplus = t.status == t.code("status", "skipped")
    assert surplus.any() and (t.flops[surplus] == 0).all()
    ffn = np.isin(strings(t, "op"), ["gate_up_tile", "down_tile"])
    assert t.flops[ffn].sum() == 16 * (6 * QWEN.hidden * QWEN.ffn + 5 * QWEN.ffn)
    path = critical_path(t)
    assert not t.inside[path.rows].any()
    write_timeline(tmp_path / "t.parquet", t)
    assert np.array_equal(read_timeline(tmp_path / "t.parquet").end_ps, t.end_ps)


@pytest.mark.parametrize(("blocks", "shown"), [(2, True), (64, False)])
def test_a_page_shows_what_is_inside_where_it_has_room(blocks: int, shown: bool) -> None:
    run = run_layer(layer_plan(SMALL, 40), CostModel(with_blocks(load("h200"), blocks), SMALL))
    t = timeline_of(run, Provenance("synthetic", "a test", "simulated"))
    rows = chosen(t, [(0, t.makespan_ps)])
    assert len(rows) == (1 + int((t.inside & (t.lane != t.code("lane", ""))).sum()) if shown else 1)


def test_bad_input() -> None:
    with pytest.raises(UserError, match="needs a lane 'gpu'"):
        with_blocks(load("h200").model_copy(update={"lanes": load("h200").lanes[1:]}), 4)
    with pytest.raises(UserError, match="body: has 8 slots of 1 rows; the routing fills 9"):
        CostModel(ideal(4), QWEN, Chosen((1,) * 9)).bind(layer_plan(QWEN, 1))
