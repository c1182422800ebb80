"""What tasks cost on two ranks with round figures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from sim.costs import Prices
from sim.ep import names, systems
from sim.ep.costs import EpCosts
from sim.ep.layer import MoELayer
from sim.ep.prices import Kernels
from sim.ep.study import Prepared, prepare
from sim.ep.systems import System
from sim.errors import UserError
from sim.fabric import expand
from sim.machines.parts import OpRate
from sim.tasks import Task, Work
from tests.sim.ep.machines import SOURCE, two_ranks

LAYER = MoELayer(64, 128, 4, 2)
COUNTS = np.array([[10, 20, 30, 40], [1, 2, 3, 4]])
"""Experts 0 and 1 live on rank 0."""


def costs(layer: MoELayer = LAYER, chunks: int = 1, **kernels: Any) -> EpCosts:
    return EpCosts(expand(two_ranks()), layer, COUNTS, Kernels(kernels.pop("stages", {}), **kernels), chunks=chunks)


def demands(prices: Prices, of: EpCosts) -> Mapping[str, tuple[float, float]]:
    """(amount, cap) of each resource."""
    rows = zip(prices.resource.tolist(), prices.amount.tolist(), prices.cap.tolist(), strict=True)
    return {of.resources[k]: (amount, cap) for k, amount, cap in rows}


def priced(of: EpCosts, lane: str, work: Work, **labels: int) -> tuple[int, Mapping[str, tuple[float, float]]]:
    found = of.task(Task(0, work, lane, **labels))  # type: ignore[arg-type]
    return int(found.latency_ps[-1]), demands(found, of)


def test_a_dispatch_put_carries_the_rows_for_the_targets_experts() -> None:
    """Rank 0 has 30 + 40 rows for rank 1: 70 x 64 x 2 bytes, which occupy a link of which half is reached for twice the time."""
    latency, wants = priced(costs(), names.put(0, 1), Work("put", tokens=200, bytes=1, variant="dispatch"), rank=0, microbatch=0, page=1)
    assert latency == 1_000_000
    assert {name: amount for name, (amount, _) in wants.items()} == {name: 2 * 70 * 128 for name in wants} and len(wants) == 2


def test_a_combine_put_carries_the_same_rows_back() -> None:
    of = costs()
    work = Work("put", tokens=200, bytes=1, variant="combine")
    assert of.exact(work, rank=1, chunk=0, page=0).tokens == 70
    assert of.exact(work, rank=0, chunk=0, page=1).tokens == 3


def test_chunks_share_the_rows() -> None:
    of = costs(chunks=3)
    work = Work("put", tokens=200, bytes=1, variant="dispatch")
    assert sum(of.exact(work, 0, c, 1).tokens for c in range(3)) == 70


def test_a_dispatcher_that_sorts_takes_as_long_as_both_kernels_one_after_the_other() -> None:
    work = Work("experts", tokens=999, experts=2)

    def seconds(sorts: bool, work: Work) -> float:
        wants = priced(costs(sorts=sorts), names.gpu(0), work, rank=0, microbatch=0, page=-1)[1]
        return max(amount / cap for amount, cap in wants.values())

    of = costs()
    rows, hbm = int(COUNTS[:, :2].sum()), of.machine.resources["gpu.0.hbm"].capacity
    rate = of.prices.table.row(of.machine.lane[names.gpu(0)], work).bytes_efficiency
    assert seconds(True, work) - seconds(False, work) == pytest.approx(4 * rows * LAYER.row_bytes / (hbm * rate))
    assert seconds(True, work._replace(experts=1)) == seconds(False, work)


def test_experts_compute_what_came_from_all_or_from_one() -> None:
    of = costs()
    work = Work("experts", tokens=999, experts=2)
    assert of.exact(work, 0, 0, -1).expert_tokens == (22, 11)
    assert of.exact(work, 1, 0, 0).expert_tokens == (40, 30)


def test_a_kernel_is_a_roofline_over_all_sms_and_its_gaps_add_up() -> None:
    """Tiles of 16 rows: 22 and 11 rows are 48. 3 kernels, 1 us each. Half of the peaks."""
    of = costs(tile_rows=16, stages={"experts": 3})
    latency, wants = priced(of, names.gpu(0), Work("experts", tokens=999, experts=2), rank=0, microbatch=0, page=-1)
    flops = 48 * 6 * 64 * 128
    moved = (2 * 3 * 64 * 128 + 33 * (2 * 64 + 2 * 128)) * 2
    assert latency == 3_000_000
    assert wants["gpu.0.flops"] == (flops, 50e12) and wants["gpu.0.hbm"] == (moved, 0.5e12)
    assert wants["gpu.0.sms"] == (pytest.approx(10 * max(flops / 50e12, moved / 0.5e12)), 10.0)


def test_a_type_with_half_the_peak_takes_twice_the_bf16_flops() -> None:
    work = Work("experts", tokens=999, experts=2)
    amounts = [
        priced(costs(MoELayer(64, 128, 4, 2, dtype=d)), names.gpu(0), work, rank=0, microbatch=0, page=-1)[1]["gpu.0.flops"][0]
        for d in ("bf16", "tf32")
    ]
    assert amounts[1] == 2 * amounts[0]


IN_KERNEL = (
    OpRate(op="*", lane="blocks", latency_s=2e-6, flops_efficiency=0.5, bytes_efficiency=0.8, bytes_scale=0.25, source=SOURCE),
    OpRate(op="dispatch", lane="blocks", bytes_per_s=1e9, source=SOURCE),
    OpRate(op="scan", lane="subscriber", latency_s=1e-6, curve=((0, 0.0), (100, 10e-6)), source=SOURCE),
    OpRate(op="doorbell", lane="scheduler", latency_s=3e-7, source=SOURCE),
)


def flash() -> Prepared:
    system = System("flashdmoe", "flashdmoe", SOURCE, ops=IN_KERNEL)
    return prepare(system, two_ranks(), MoELayer(64, 128, 4, 2), (50, 5), COUNTS)


def test_a_block_has_its_share_of_the_gpu_and_a_tile_is_computed_whole() -> None:
    """20 blocks on 10 SMs. 7 rows of a tile of 128 cost 128 rows of FLOPs; a quarter of the operands comes from HBM."""
    found = flash()
    latency, wants = priced(found.costs, names.blocks(0), Work("gemm0", tokens=7, columns=64))
    assert latency == 2_000_000
    assert wants["gpu.0.flops"] == (2 * 128 * 64 * 64 * 2, pytest.approx(100e12 * 0.5 / 20))
    assert wants["gpu.0.hbm"] == (pytest.approx((7 + 2 * 64) * 64 * 2 * 0.25 + 7 * 64 * 2), pytest.approx(1e12 * 0.8 / 20))


def test_a_tile_that_stores_to_another_rank_crosses_the_links() -> None:
    found = flash()
    _, here = priced(found.costs, names.blocks(1), Work("gemm1", tokens=7, columns=64))
    _, there = priced(found.costs, names.blocks(1), Work("gemm1", tokens=7, columns=64, bytes=7 * 64 * 2, variant="1.0"))
    links = set(there) - set(here)
    assert len(links) == 2 and {there[name][0] for name in links} == {2 * 7 * 64 * 2}
    assert here["gpu.1.hbm"][0] - there["gpu.1.hbm"][0] == 7 * 64 * 2


def test_one_block_stores_no_faster_than_its_row_says() -> None:
    _, wants = priced(flash().costs, names.blocks(0), Work("dispatch", tokens=10, bytes=1280, variant="0.1"))
    assert {amount / cap for name, (amount, cap) in wants.items() if name.startswith("gpu.0>") or ">gpu.1" in name} == {1280 / 1e9}


def test_a_scan_takes_longer_the_more_descriptors_it_writes() -> None:
    of = flash().costs
    assert [priced(of, names.subscriber(0), Work("scan", tokens=n))[0] for n in (0, 50)] == [1_000_000, 6_000_000]
    assert priced(of, names.scheduler(1), Work("doorbell", variant="interrupt")) == (300_000, {})


def test_a_lane_without_a_row_is_told() -> None:
    system = System("flashdmoe", "flashdmoe", SOURCE)
    with pytest.raises(UserError, match="ops has no row for 'gate_tile' on lane 'blocks.0'"):
        prepare(system, two_ranks(), MoELayer(64, 128, 4, 2), (50, 5), COUNTS)


def test_a_put_that_says_its_bytes_keeps_them() -> None:
    """Of a tile-level scheduler: packets and strips are exact already."""
    work = Work("put", tokens=5, bytes=640, variant="dispatch", messages=1)
    assert costs().exact(work, 0, 0, 1) is work


def test_the_digest_tells_routings_apart() -> None:
    other = EpCosts(expand(two_ranks()), LAYER, COUNTS + 1, Kernels({}))
    assert costs().digest == costs().digest != other.digest


def test_every_system_is_known_by_name_and_has_a_source() -> None:
    for name, system in systems.SYSTEMS.items():
        assert systems.load(name) is system and len(system.source) > 3 and all(len(row.source) > 3 for row in system.ops)
    assert systems.load("bulk-sync").options["launches"].total == 85
    with pytest.raises(UserError, match="did you mean 'flashdmoe'"):
        systems.load("flashmoe")
    with pytest.raises(UserError, match="empty name"):
        systems.load_all("bulk-sync,,comet")
