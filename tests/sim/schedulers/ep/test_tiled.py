"""The tile-level schedulers: structure of what they hand out."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest

from sim.ep import names
from sim.ep.layer import MoELayer
from sim.errors import UserError
from sim.plan import Plan
from sim.schedulers.ep.columns import ColumnBuilder, Joined, evenly, grouped
from sim.schedulers.ep.comet import Comet
from sim.schedulers.ep.flashdmoe import FlashDMoE, doorbells
from sim.schedulers.ep.mixed import mixed
from sim.schedulers.ep.packets import Tiling, capacity, packets, strips
from sim.schedulers.ep.static_wave import StaticWave, height
from sim.schedulers.policy import Policy
from sim.tasks import Task, Work

POLICY = Policy(batch=1, microbatch=1)
MODEL = MoELayer(256, 128, 4, 2).model()
ROWS = np.array([[130, 0, 1, 129], [5, 0, 0, 0]])
"""Rank 0 sends 130 rows to its own first expert, 1 and 129 to rank 1's; rank 1 sends 5 to rank 0. The second expert gets none."""


def tasks(plan: Plan, op: str) -> list[Task]:
    return [t for t in plan.tasks() if t.op == op]


def flash(**more: Any) -> FlashDMoE:
    return FlashDMoE(MODEL, POLICY, ranks=2, rows=ROWS, **more)


# Columns ----------------------------------------------------------------------------------------


def test_blocks_make_the_plan_that_tasks_one_by_one_would() -> None:
    from sim.plan import PlanBuilder

    many, one = ColumnBuilder(first=10), PlanBuilder(first=10)
    lanes, pools = many.lanes_of(["a", "b"]), many.pools_of(["p"])
    first = many.block(2, Work("x"), lanes, takes=pools[[0, 0]], labels={"rank": np.array([4, 5]), "priority": 7})
    second = many.block(2, many.works_of([Work("y"), Work("z")]), lanes[[1, 0]], [first, first[::-1]], releases=first)
    many.block(1, Work("join"), None, joined=grouped(second, np.array([0, 0]), 1))
    a = one.add(Work("x"), "a", takes=[("p", 1)], rank=4, priority=7)
    b = one.add(Work("x"), "b", takes=[("p", 1)], rank=5, priority=7)
    c = one.add(Work("y"), "b", [a, b], releases=[a])
    d = one.add(Work("z"), "a", [b, a], releases=[b])
    one.add(Work("join"), None, [c, d])
    assert list(many.build().tasks()) == list(one.build().tasks())


def test_joined_dependencies_by_row_and_by_group() -> None:
    assert [x.tolist() for x in evenly(np.array([[1, 2], [3, 4]]))] == [[2, 2], [1, 2, 3, 4]]
    found: Joined = grouped(np.array([7, 8, 9]), np.array([2, 0, 2]), 3)
    assert [x.tolist() for x in found] == [[1, 0, 2], [8, 7, 9]]


# Geometry ---------------------------------------------------------------------------------------


def test_strips_cut_packets_and_skip_empty_ones() -> None:
    sent = packets(ROWS, 2)
    cut = strips(sent, 128)
    assert sorted(zip(sent.source[cut.packet].tolist(), sent.expert[cut.packet].tolist(), cut.rows.tolist(), strict=True)) == [
        (0, 0, 2), (0, 0, 128), (0, 2, 1), (0, 3, 1), (0, 3, 128), (1, 0, 5),
    ]  # fmt: skip


def test_a_target_has_its_own_packets_first() -> None:
    sent = packets(np.ones((4, 4), np.int64), 4)
    assert [sent.source[sent.target == t].tolist() for t in (0, 2)] == [[0, 1, 2, 3], [2, 3, 0, 1]]


def test_blocks_of_an_expert_mix_the_rows_of_all_ranks() -> None:
    """Expert 0 has 130 rows of rank 0 and 5 of rank 1, in blocks of 64: 64, 64, and 2 + 5."""
    found = mixed(packets(ROWS, 2), 64, 2)
    assert found.rows[found.expert == 0].tolist() == [64, 64, 7]
    assert found.expert.tolist() == [0, 0, 0, 2, 3, 3, 3]
    assert np.array_equal(np.bincount(found.block, weights=found.length), found.rows)
    remote, most = found.remote()
    assert remote.tolist() == [0, 0, 5, 1, 64, 64, 1] and most.tolist() == [0, 0, 1, 0, 0, 0, 0]


def test_capacity_is_the_published_one() -> None:
    """16K tokens, 32 experts, top-2, factor 1: 1024 rows, of which 8 ranks make the 8192 tiles of GEMM0 in the reference's table."""
    assert capacity(16384, 32, 2, 1.0) == 1024
    assert capacity(3, 32, 2, 4.0) == 3


def test_rows_that_no_routing_gives_are_refused() -> None:
    for rows in (np.full((2, 3), 1), np.full((2, 4), 9), np.array([[3, 3, 3, 3], [0, 0, 0, 0]])):
        with pytest.raises(UserError, match="rows"):
            FlashDMoE(MODEL, POLICY, ranks=2, rows=rows).plan([5, 5])
    with pytest.raises(UserError, match="divisor of hidden = 256"):
        flash(tiling=Tiling(128, 48))


# FlashDMoE --------------------------------------------------------------------------------------


def test_tiles_of_the_published_sizes() -> None:
    """The reference's table: 4096 tiles of each kind a GPU at 8K tokens, one launch, 263 processors of 264 blocks."""
    model = MoELayer(2048, 2048, 32, 2, dtype="tf32").model()
    scheduler = FlashDMoE(model, POLICY, ranks=8)
    plan = scheduler.plan([8192] * 8)
    counts = Counter(np.array([w.op for w in plan.works])[plan.work[plan.rank == 3]].tolist())
    assert [counts[op] for op in ("gemm0", "gemm1", "combine", "launch")] == [4096, 4096, 4096, 1]
    assert counts["doorbell"] == 3 * 4096 + 1 and counts["fetch"] == 3 * 4096
    assert (scheduler.processors, scheduler.resident) == (263, 264)


def test_one_packet_a_source_and_expert_is_announced_even_when_empty() -> None:
    plan = flash().plan([130, 5])
    signals = [t for t in tasks(plan, "signal") if any(plan.task(d - plan.first).op == "dispatch" for d in t.deps)]
    assert Counter((t.rank, t.microbatch) for t in signals) == {(0, 0): 1, (0, 1): 1, (1, 0): 1, (1, 1): 1}
    assert {t.lane for t in signals} == {names.put(0, 1), names.put(1, 0)}
    scans = tasks(plan, "scan")
    assert sorted(t.work.tokens for t in scans if t.work.tokens != 1) == [0, 0, 0, 0, 2, 2, 4, 4]


def test_blocks_of_a_group_copy_every_row_once() -> None:
    scheduler = flash()
    copies = tasks(scheduler.plan([130, 5]), "dispatch")
    assert len(copies) == 8 * scheduler.blocks_per_expert and scheduler.blocks_per_expert == 64
    got = np.zeros_like(ROWS)
    for t in copies:
        packet_expert = t.microbatch + (2 if t.work.variant == "0.1" else 0)
        got[t.page, packet_expert if t.rank == 0 else t.microbatch] += t.work.tokens
    assert np.array_equal(got, ROWS)


def test_a_descriptor_is_rung_fetched_and_computed() -> None:
    plan = flash().plan([130, 5])
    for tile in (*tasks(plan, "gemm0"), *tasks(plan, "gemm1"), *tasks(plan, "combine")):
        fetch = plan.task(tile.deps[0])
        bell = plan.task(fetch.deps[0])
        assert (fetch.op, bell.op, bell.lane, fetch.lane) == ("fetch", "doorbell", names.scheduler(tile.rank), tile.lane)
        assert bell.takes == ((doorbells(tile.rank), 1),) and fetch.releases == (bell.number,)
        assert tile.priority < fetch.priority


def test_gemm1_waits_for_the_whole_strip_and_combine_for_its_own_tile() -> None:
    plan = flash().plan([130, 5])

    def behind(tile: Task) -> list[Task]:
        return [plan.task(d) for d in plan.task(plan.task(tile.deps[0]).deps[0]).deps]

    for tile in tasks(plan, "gemm1"):
        (join,) = behind(tile)
        assert [plan.task(d).op for d in join.deps] == ["gemm0"] * 2
    for tile in tasks(plan, "combine"):
        (scan,) = behind(tile)
        (arrival,) = [plan.task(d) for d in scan.deps]
        assert scan.op == "scan" and len(arrival.deps) == 1 and plan.task(arrival.deps[0]).op == "gemm1"


def test_between_nodes_packets_and_strips_go_by_the_nic() -> None:
    plan = flash(gpus_per_node=1).plan([130, 5])
    puts = tasks(plan, "put")
    assert {t.work.variant for t in puts} == {"dispatch", "combine"} and not tasks(plan, "signal")
    assert sum(t.work.tokens for t in puts if t.work.variant == "dispatch") == 135
    assert not any(t.work.bytes for op in ("dispatch", "gemm1") for t in tasks(plan, op))
    strip_scans = [t for t in tasks(plan, "scan") if t.work.tokens == 4 and t.rank == 1]
    assert strip_scans


def test_layers_follow_one_another_on_each_rank() -> None:
    one, two = flash(layers=1).plan([130, 5]), flash(layers=2).plan([130, 5])
    assert len(two) == 2 * len(one)
    last = {t.rank: t.number for t in tasks(one, "doorbell") if t.work.variant == "interrupt"}
    begins = [t for t in two.tasks() if t.op == "join" and t.layer == 1 and set(t.deps) & set(last.values())]
    assert sorted(t.rank for t in begins) == [0, 1]


@pytest.mark.parametrize("how", [{"processors": 0}, {"launches": 0}, {"sms": 0}])
def test_sizes_of_nothing_are_refused(how: dict[str, int]) -> None:
    with pytest.raises(UserError, match=next(iter(how))):
        flash(**how)


# Static wave ------------------------------------------------------------------------------------


def test_heights_of_tiles_follow_the_expected_rows() -> None:
    assert [height(r) for r in (1, 8.5, 9, 33, 96.5, 97)] == [16, 16, 32, 96, 128, 192]


def test_every_block_walks_its_own_stride_of_the_list() -> None:
    """3 blocks: tile i of a rank's list is block i modulo 3's, GEMM0 of a wave before its GEMM1."""
    scheduler = StaticWave(MODEL, POLICY, ranks=2, rows=ROWS, sms=3, tiling=Tiling(64, 64), experts_per_wave=1)
    plan = scheduler.plan([130, 5])
    listed = [t for t in plan.tasks() if t.op in ("gemm0", "gemm1") and t.rank == 1]
    assert [t.lane for t in listed] == [names.block(1, i % 3) for i in range(len(listed))]
    waves = [(op, sum(1 for _ in run)) for op, run in _runs([t.op for t in listed])]
    assert waves == [("gemm0", 2), ("gemm1", 4), ("gemm0", 6), ("gemm1", 12)]


def _runs(ops: list[str]) -> Any:
    from itertools import groupby

    return groupby(ops)


def test_nobody_pulls_before_all_counts_are_known() -> None:
    plan = StaticWave(MODEL, POLICY, ranks=2, rows=ROWS, sms=3).plan([130, 5])
    for pull in tasks(plan, "pull"):
        (met,) = [plan.task(d) for d in pull.deps]
        assert {plan.task(d).op for d in met.deps} == {"signal", "gate"}


def test_a_tile_waits_for_the_rows_of_its_block_and_stores_what_is_others() -> None:
    plan = StaticWave(MODEL, POLICY, ranks=2, rows=ROWS, sms=3, tiling=Tiling(64, 64)).plan([130, 5])
    filled = {sum(plan.task(d).work.tokens for d in plan.task(t.deps[0]).deps) for t in tasks(plan, "gemm0")}
    assert filled == {64, 7, 1}
    assert {(t.work.variant, t.work.bytes) for t in tasks(plan, "gemm1") if t.rank == 0} == {("", 0), ("0.1", 5 * 64 * 2)}


# COMET ------------------------------------------------------------------------------------------


def test_blocks_are_split_and_columns_leave_in_order() -> None:
    scheduler = Comet(MODEL, POLICY, ranks=2, rows=ROWS, sms=10, comm_blocks=4, launches=5)
    assert scheduler.servers == {"movers": 4, "blocks": 6} and scheduler.resident == 10
    plan = scheduler.plan([130, 5])
    assert Counter(t.rank for t in tasks(plan, "launch")) == {0: 5, 1: 5}
    for push in tasks(plan, "push"):
        made = plan.task(push.deps[0])
        columns = {t.priority for d in made.deps if (t := plan.task(d)).op == "gemm1"}
        assert columns == {push.priority}
    assert {t.priority for t in tasks(plan, "gemm1")} == {0, 1}


def test_a_column_is_summed_when_all_ranks_have_sent_it() -> None:
    plan = Comet(MODEL, POLICY, ranks=2, rows=ROWS, sms=10, comm_blocks=4).plan([130, 5])
    for combine in tasks(plan, "combine"):
        there = plan.task(combine.deps[0])
        pushes = [plan.task(d) for d in there.deps]
        assert {p.page for p in pushes} == {combine.rank} and {p.priority for p in pushes} == {combine.priority}
    assert sum(t.work.tokens for t in tasks(plan, "combine") if t.rank == 0 and t.priority == 0) == 130


@pytest.mark.parametrize(("how", "named"), [({"comm_blocks": 132}, "comm_blocks"), ({"launches": 2}, "launches")])
def test_splits_that_leave_nobody_are_refused(how: dict[str, int], named: str) -> None:
    with pytest.raises(UserError, match=named):
        Comet(MODEL, POLICY, ranks=2, **how)  # type: ignore[arg-type]


