"""Steps with jitter, and what is measured of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from sim.engines.run import Run
from sim.ep import measures, routing, systems
from sim.ep.delays import Delays
from sim.ep.layer import MoELayer
from sim.ep.study import Prepared, plan_of, prepare, study
from sim.errors import UserError
from sim.jitter import Jitter
from sim.machines import load
from sim.machines.parts import OpRate
from sim.machines.schema import Machine
from sim.plan import Plan, PlanBuilder
from sim.schedulers.ep.base import ExpertParallel
from sim.schedulers.ep.kernels import Launches
from sim.summary import union_ps
from sim.tasks import PS_PER_S, Work
from tests.sim.ep.machines import two_ranks

LAYER = MoELayer(512, 256, 8, 2, gated=False)


def half_a_box() -> Machine:
    box = load("4xh100")
    assert box.topology is not None
    return box.model_copy(update={"topology": box.topology.model_copy(update={"gpus": 2})})


def prepared(name: str, tokens: Sequence[int] = (64, 64), layer: MoELayer = LAYER, ops: Sequence[OpRate] = (), **more: Any) -> Prepared:
    system = systems.load(name)
    return prepare(replace(system, ops=(*system.ops, *ops)), half_a_box(), layer, tokens, routing.drawn(layer, tokens, 0), **more)


def op_of(plan: Plan) -> Any:
    return np.array([w.op for w in plan.works])[plan.work]


# The scheduler warp -----------------------------------------------------------------------------

PUBLISHED_S = 285e-9
"""Seconds a task that the published runs leave the scheduler warp: 24,576 tasks in 7.0 ms."""


def with_doorbell(seconds: float, tokens: int, layer: MoELayer = LAYER) -> Prepared:
    bell = OpRate(op="doorbell", lane="scheduler", latency_s=seconds, source="swept by a test")
    return prepared("flashdmoe", (tokens, tokens), layer, [bell])


def shares(found: Prepared) -> tuple[float, float]:
    """Share of the time from the first descriptor on in which rank 0's scheduler warp rings, and in which its processors compute."""
    run, plan = found.run(), found.plan
    mine, op = plan.rank == 0, op_of(plan)
    span = run.makespan_ps - run.end_ps[mine & (op == "scan")].min()
    bells, tiles = mine & (op == "doorbell"), mine & np.isin(op, ("gemm0", "gemm1", "combine"))
    busy = (run.end_ps - run.start_ps)[tiles].sum() / found.scheduler.servers["blocks"]
    return union_ps(run.start_ps[bells], run.end_ps[bells]) / span, busy / span


def test_decode_sized_tiles_saturate_the_scheduler_warp_at_the_published_rate() -> None:
    """Few rows an expert: tiles are short and many. A bottleneck is what makes all slower; with prefill's tiles the warp does not."""
    scheduler, processors = shares(with_doorbell(PUBLISHED_S, 32))
    assert scheduler > 0.75 and processors < 0.1
    prefill = MoELayer(2048, 2048, 8, 2, False, "tf32")
    assert shares(with_doorbell(PUBLISHED_S / 2, 4096, prefill))[1] > 0.75
    slower = [
        with_doorbell(PUBLISHED_S, tokens, layer).run().makespan_ps / with_doorbell(PUBLISHED_S / 2, tokens, layer).run().makespan_ps
        for tokens, layer in ((32, LAYER), (4096, prefill))
    ]
    assert slower[0] > 1.4 and slower[1] < 1.15


def test_median_latency_grows_with_the_schedulers_service_time() -> None:
    """Over 1,000 draws of jitter; single draws need not (list scheduling has anomalies)."""
    vm = Jitter.named("vm")
    medians = [study(with_doorbell(s, 32), vm, 1000).row["latency_s"]["median"] for s in (100e-9, PUBLISHED_S, 1e-6)]
    assert medians[0] < medians[1] < medians[2]
    assert medians[2] > 2 * medians[1]


# Jitter -----------------------------------------------------------------------------------------


class Doubled:
    """Launch `launch` of rank 1 takes twice as long."""

    def __init__(self, launch: int) -> None:
        self.launch = launch

    def ratio(self, seed: int, rank: Any, step: int, launch: Any) -> Any:
        return 1.0 + ((rank == 1) & (launch == self.launch))


def latencies(found: Prepared, launch: int) -> dict[str, int]:
    """What a doubled launch adds to the latency of tasks of rank 1, by op and variant, in ps."""
    delays, plan = Delays(found.priced), found.plan
    plain = delays.drawn(Jitter.named("none"), 0, 0)
    late = delays.drawn(Doubled(launch), 0, 0)  # type: ignore[arg-type]
    added = (late.prices.latency_ps[late.cls] - plain.prices.latency_ps[plain.cls]).tolist()
    named = [(plan.works[plan.work[i]], int(plan.rank[i]), more) for i, more in enumerate(added) if more]
    assert all(rank == 1 for _, rank, _ in named)
    return {f"{work.op} {work.variant}".strip(): more for work, _, more in named}


def test_a_ratio_multiplies_the_launch_of_a_kernel() -> None:
    assert latencies(prepared("flashdmoe"), 0) == {"launch layer": 5_000_000}


def test_a_ratio_multiplies_a_collective_with_what_it_takes_undisturbed() -> None:
    """Two ranks at 100 GB/s, of which a put reaches half: 5 rows of 128 bytes take 12.8 ns, the link 1 us and the entry 1 us."""
    layer = MoELayer(64, 32, 2, 1)
    system = replace(systems.load("graph-replayed"), ops=(), stages=Launches())
    found = prepare(system, two_ranks(), layer, (9, 5), np.array([[4, 5], [5, 0]]))
    assert latencies(found, 0) == {"launch gate": 1_000_000}
    assert latencies(found, 1) == {"enter dispatch": 1_000_000 + 1_000_000 + 12_800}


def test_draws_depend_on_the_step_and_on_nothing_else() -> None:
    delays, vm = Delays(prepared("bulk-sync").priced), Jitter.named("vm")
    one, again, other = (delays.drawn(vm, 7, step).prices.latency_ps for step in (3, 3, 4))
    assert np.array_equal(one, again) and not np.array_equal(one, other)


def test_a_delay_of_one_means_no_change() -> None:
    found = prepared("chunked")
    assert found.run().same_times(found.run(Delays(found.priced).drawn(Jitter.named("none"), 0, 0)))


def test_jitter_lengthens_bulk_sync_more_than_a_fused_kernel() -> None:
    vm = Jitter.named("vm")
    added = {}
    for name in ("bulk-sync", "flashdmoe"):
        found = prepared(name)
        added[name] = study(found, vm, 50).row["latency_s"]["median"] - found.run().makespan_ps / PS_PER_S
    assert added["bulk-sync"] > 3 * added["flashdmoe"] > 0


# Measures ---------------------------------------------------------------------------------------


def test_percentiles_and_their_intervals() -> None:
    found = measures.latency(list(np.arange(1001.0)))
    assert (found["median"], found["p95"], found["p99"], found["samples"]) == (500.0, 950.0, 990.0, 1001)
    low, high = found["confidence"]["median"]
    assert low == pytest.approx(500 - 31, abs=2) and high == pytest.approx(500 + 31, abs=2)
    assert found["confidence"]["p99"][1] > 990 > found["confidence"]["p99"][0]
    assert measures.latency([2.0])["confidence"]["p99"] == [2.0, 2.0]


def timed(*tasks: tuple[str, str, int, int, int, int, str]) -> tuple[Plan, Run]:
    """(op, lane, rank, bytes, start, end, variant) each."""
    builder = PlanBuilder()
    for op, lane, rank, moved, _, _, variant in tasks:
        builder.add(Work(op, bytes=moved, variant=variant), lane, rank=rank)
    plan = builder.build()
    start, end = (np.array([t[i] for t in tasks], np.int64) for i in (4, 5))
    return plan, Run((plan,), plan.lanes, np.arange(len(plan)), plan.lane, start, end, np.zeros(len(plan), np.int8))


def test_communication_is_hidden_where_the_same_rank_computes() -> None:
    """Rank 0 sends from 0 to 10 and computes from 4 to 8; rank 1, that gets it, computes from 9 to 20: (4 + 1) of 20."""
    plan, run = timed(
        ("put", "put.0.1", 0, 100, 0, 10, "dispatch"), ("experts", "gpu.0", 0, 0, 4, 8, ""), ("experts", "gpu.1", 1, 0, 9, 20, ""),
    )  # fmt: skip
    assert measures.hidden(run, plan, 2) == pytest.approx(5 / 20)
    assert measures.wire_bytes(plan) == 100


def test_a_tile_that_stores_while_it_computes_hides_its_own_bytes() -> None:
    plan, run = timed(("gemm1", "blocks.1", 1, 100, 0, 10, "1.0"), ("gemm0", "blocks.0", 0, 0, 5, 10, ""))
    assert measures.hidden(run, plan, 2) == pytest.approx(15 / 20)


def test_nothing_sent_is_all_hidden() -> None:
    plan, run = timed(("experts", "gpu.0", 0, 0, 0, 5, ""))
    assert measures.hidden(run, plan, 1) == 1.0


def test_bulk_sync_hides_nothing_and_overlapping_does() -> None:
    rows = {name: study(prepared(name, (2048, 2048)), Jitter.named("none")).row for name in ("bulk-sync", "chunked", "overlapped")}
    assert rows["bulk-sync"]["comm_hidden"] == 0.0 < rows["chunked"]["comm_hidden"] < rows["overlapped"]["comm_hidden"] <= 1.0
    assert len({row["wire_bytes"] for row in rows.values()}) == 1


def test_busy_shares_are_work_over_what_the_machine_could_do() -> None:
    found = prepared("graph-replayed", (4096, 4096))
    row = study(found, Jitter.named("none")).row
    seconds = row["latency_s"]["median"]
    assert row["tensor_busy"] == pytest.approx((8192 * 2 * LAYER.expert_flops + 8192 * 2 * 512 * 8) / (2 * 989e12 * seconds))
    assert 0 < row["hbm_busy"] < 1 and (row["launches"], row["tasks"]) == (1, len(found.plan))


def test_padding_sends_and_computes_the_capacity() -> None:
    """Tutel with room for the fullest expert, and with a capacity factor of 1."""
    tokens = (100, 100)
    counts = routing.drawn(LAYER, tokens, 0, skew=1.5)
    for factor, rows in ((None, int(counts.max())), (1.0, 26)):
        found = prepare(systems.load("chunked:tutel"), half_a_box(), LAYER, tokens, counts, capacity_factor=factor)
        assert measures.wire_bytes(found.plan) == 2 * 2 * 4 * rows * LAYER.row_bytes
    honest = prepare(systems.load("chunked:fastermoe"), half_a_box(), LAYER, tokens, counts)
    assert measures.wire_bytes(honest.plan) == 2 * (counts[0, 4:].sum() + counts[1, :4].sum()) * LAYER.row_bytes


# What is refused --------------------------------------------------------------------------------


def test_tokens_are_needed_for_every_rank() -> None:
    with pytest.raises(UserError, match="of 3 ranks; machine .* has 2"):
        prepared("bulk-sync", (1, 1, 1))


def test_a_machine_without_a_topology_is_refused() -> None:
    with pytest.raises(UserError, match="topology"):
        prepare(systems.load("bulk-sync"), load("l4"), LAYER, (1,), routing.even(LAYER, (1,)))


class Twice(ExpertParallel):
    """Hands out two Plans."""

    lanes = ()

    def on(self, now: int, event: Any) -> Any:
        return [PlanBuilder().build()] * 2 if event.last else ()


def test_a_scheduler_that_does_not_hand_out_one_plan_is_refused() -> None:
    from sim.schedulers.policy import Policy

    with pytest.raises(UserError, match="Twice: hands out 2 commands"):
        plan_of(Twice(LAYER.model(), Policy(batch=1, microbatch=1), ranks=2), (1, 1))


