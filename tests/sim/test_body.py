"""Bodies on simulated time."""

from __future__ import annotations

import heapq
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sim.body import LANE, TileCosts, even_rows, expand, run_body, with_blocks, with_skipped
from sim.drive import drive
from sim.engines.run import SKIPPED
from sim.engines.simpy_engine import SimPyEngine
from sim.errors import UserError
from sim.events import Request
from sim.machines import Machine, load
from sim.machines.schema import Lane, OpRate
from sim.models import load as load_model
from sim.ops import tiles as moe
from sim.plan import Plan
from sim.schedulers.policy import Policy
from sim.schedulers.ticket import Ticket
from sim.tasks import PS_PER_S
from sim.timeline import timeline_of
from traces.files import Provenance
from traces.timeline import read_timeline, write_timeline

QWEN, POLICY = load_model("qwen3-30b-a3b"), Policy(batch=1, microbatch=1)


def ideal(blocks: int) -> Machine:
    """An H200 whose blocks reach the peaks and draw tickets in no time."""
    machine = with_blocks(load("h200"), blocks, 1.0, 1.0)
    return machine.model_copy(update={"ops": tuple(r if r.lane != LANE else r.model_copy(update={"latency_s": 0.0}) for r in machine.ops)})


def spread(experts: int, rows: dict[int, int]) -> tuple[int, ...]:
    return tuple(rows.get(e, 0) for e in range(experts))


def test_decode_is_bound_by_its_bytes() -> None:
    """Batch 1 of Qwen3-30B-A3B on an H200: 8 experts x 9.44 MB at 4.8 TB/s are 15.7 us; tiles and the router
    add to that what does not fill all blocks."""
    scheduler = Ticket(QWEN, POLICY)
    costs = TileCosts(ideal(528), scheduler.tiles(1), 2, spread(128, dict.fromkeys(range(8), 1)), blocks_per_sm=4)
    run = run_body(scheduler.body(1), costs)
    floor_s = 8 * 3 * QWEN.hidden * QWEN.ffn * 2 / 4.8e12
    assert floor_s == pytest.approx(15.7e-6, rel=0.01)
    assert floor_s < run.makespan_ps / PS_PER_S < 1.35 * floor_s


def test_a_block_keeps_to_its_share() -> None:
    """Alone on the machine, a tile still takes as long as one multiprocessor's share of the bandwidth allows."""
    scheduler = Ticket(QWEN, POLICY)
    tiles = scheduler.tiles(1)
    costs = TileCosts(ideal(528), tiles, 2, spread(128, dict.fromkeys(range(8), 1)), blocks_per_sm=4)
    tile = next(t for t in scheduler.body(1).tasks() if t.op == "gate_up_tile")
    cost = moe.cost(moe.GATE_UP, 1, tiles.tiling.gate_up, tiles.shape, 2)
    assert costs.estimate(tile) == math.ceil(cost.bytes / (4.8e12 / 132) * PS_PER_S)


def test_surplus_tiles_end_as_skipped_and_take_no_time() -> None:
    scheduler = Ticket(QWEN, POLICY)
    tiles, plan = scheduler.tiles(4), scheduler.body(4)
    rows = spread(128, dict.fromkeys(range(8), 4))  # all tokens choose the same experts
    run = run_body(plan, TileCosts(ideal(528), tiles, 2, rows))
    slotted = np.array([w.op in ("gate_up_tile", "down_tile") for w in plan.works])[plan.work]
    assert tiles.slots == 32
    assert np.array_equal(run.status == SKIPPED, slotted & (plan.microbatch >= 8))
    assert (run.start_ps == run.end_ps)[run.status == SKIPPED].all() and (run.start_ps < run.end_ps)[slotted & (plan.microbatch < 8)].all()


@pytest.mark.parametrize("tokens", [2, 40])
def test_both_engines_see_the_same(tokens: int) -> None:
    model = replace(load_model("tiny-mixtral"), hidden=64, ffn=96)
    scheduler = Ticket(model, POLICY)
    plan, costs = scheduler.body(tokens), TileCosts(with_blocks(load("h200"), 7), scheduler.tiles(tokens), 4)
    engine = SimPyEngine(costs.lanes, {}, costs, profile=costs, arrivals=[Request(i, 1, 1) for i in range(tokens)])
    drive(Ticket(model, POLICY), engine)
    assert with_skipped(engine.run, plan, costs).same_times(run_body(plan, costs))


def with_tickets(plan: Plan, costs: TileCosts, blocks: int) -> int:
    """Makespan if each block draws the next ticket when it is free and waits with it, tiles at their solo times:
    an exact model of the kernel on a machine where nothing is shared."""
    ends, free, surplus = np.zeros(len(plan), np.int64), [0] * blocks, costs.surplus(plan)
    for i, task in enumerate(plan.tasks()):
        ready = max((int(ends[d - plan.first]) for d in task.deps), default=0)
        if task.lane is None:
            ends[i] = ready
        else:
            ends[i] = max(heapq.heappop(free), ready) + (0 if surplus[i] else costs.estimate(task))
            heapq.heappush(free, int(ends[i]))
    return int(ends.max())


@pytest.mark.parametrize(("model", "tokens"), [("qwen3-30b-a3b", 1), ("qwen3-30b-a3b", 4), ("mixtral-8x7b", 1), ("qwen3-30b-a3b", 200)])
def test_waiting_with_a_ticket_in_hand_costs_little(model: str, tokens: int) -> None:
    """In the scheduler's order; so a free block may take the first tile that has all it needs."""
    scheduler = Ticket(load_model(model), POLICY)
    plan, costs = scheduler.body(tokens), TileCosts(with_blocks(load("h200"), 528), scheduler.tiles(tokens), 2)
    exact = with_tickets(plan, costs, 528)
    assert 0.99 * exact < run_body(plan, costs).makespan_ps < 1.01 * exact


def test_a_curve_is_read_at_a_tile_s_rows() -> None:
    """Two seconds per unit at 4 rows: a down tile of 8 columns over ffn 16 has 128 units."""
    machine = ideal(2)
    lane = Lane(name=LANE, order="ready", kind="compute", servers=2, cores="cores", threads=1)
    op = OpRate(op="down_tile", lane=LANE, curve=((4, 2.0), (8, 3.0)), source="a test")
    cores = machine.resources["gpu.flops"].model_copy(update={"kind": "cores", "capacity": 2.0})
    machine = Machine(name="m", resources={"cores": cores}, memories={}, lanes=(lane,), ops=(op,))
    tiles = moe.Tiles(moe.Shape(6, 8, 16, 2, 1), moe.Tiling(6, 2, 6, 8, 8, 8))
    scheduler = Ticket(replace(load_model("tiny-mixtral"), hidden=8, ffn=16, experts=2, top_k=1), POLICY, tiling=tiles.tiling)
    costs = TileCosts(machine, tiles, 4, (4, 2))
    downs = [t for t in scheduler.body(6).tasks() if t.op == "down_tile"]
    assert [costs.estimate(t) for t in downs] == [256 * PS_PER_S, 256 * PS_PER_S]
    with pytest.raises(UserError, match="no row for 'route_tile'"):
        costs.bind(scheduler.body(6))


def test_even_rows_are_those_of_uniform_routing() -> None:
    shape = moe.Shape(4, 8, 8, 128, 8)
    rows = even_rows(shape)
    touched = [r for r in rows if r]
    assert sum(rows) == 32 and len(touched) == round(128 * (1 - (1 - 8 / 128) ** 4)) and max(touched) - min(touched) <= 1
    assert even_rows(shape._replace(tokens=1)) == (1,) * 8 + (0,) * 120


def test_stamps_are_expanded_behind_their_task(tmp_path: Path) -> None:
    """Tiles of task 0 stand at its start, under numbers of their own, and the file reads back."""
    model = replace(load_model("tiny-mixtral"), hidden=64, ffn=96)
    scheduler, whence = Ticket(model, POLICY), Provenance("synthetic", "a test", "simulated")
    plan = scheduler.body(2, first=1)
    body = timeline_of(run_body(plan, TileCosts(with_blocks(load("h200"), 4), scheduler.tiles(2), 4)), whence)
    outer = replace(body.take(np.array([0])), task_id=np.array([0]), start_ps=np.array([500]), end_ps=np.array([500 + body.makespan_ps]))
    whole = expand(outer, 0, body)
    assert whole.task_id.tolist() == list(range(len(plan) + 1))
    assert whole.start_ps[1:].min() == 500 and whole.end_ps.max() == outer.end_ps[0]
    write_timeline(tmp_path / "t.parquet", whole)
    assert np.array_equal(read_timeline(tmp_path / "t.parquet").end_ps, whole.end_ps)


def test_bad_input() -> None:
    tiles = Ticket(QWEN, POLICY).tiles(1)
    with pytest.raises(UserError, match="no lane 'blocks'"):
        TileCosts(load("h200"), tiles, 2)
    with pytest.raises(UserError, match="expert_rows: sum to 1; 1 tokens and top-8 make 8"):
        TileCosts(ideal(4), tiles, 2, (1,) + (0,) * 127)
    with pytest.raises(UserError, match="needs a lane 'gpu'"):
        with_blocks(ideal(4).model_copy(update={"lanes": ideal(4).lanes[1:]}), 4)
