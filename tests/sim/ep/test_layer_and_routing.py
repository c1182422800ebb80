"""The layer's sizes and costs, and rows of each (rank, expert)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sim.ep import routing
from sim.ep.layer import MoELayer
from sim.errors import UserError
from sim.models import load
from traces.files import Provenance
from traces.routing import Routing, Shape, write_routing

LAYER = MoELayer(64, 32, 8, 2)


def test_an_expert_has_three_matrices_or_two() -> None:
    assert LAYER.expert_flops == 2 * 64 * 32 * 3
    assert MoELayer(64, 32, 8, 2, gated=False).expert_flops == 2 * 64 * 32 * 2


def test_tf32_is_four_bytes_and_bf16_two() -> None:
    assert [MoELayer(64, 32, 8, 2, dtype=d).row_bytes for d in ("tf32", "fp32", "bf16", "fp8")] == [256, 256, 128, 64]
    assert MoELayer(64, 32, 8, 2, dtype="tf32").model().dtype_bytes == 4


def test_grouped_gemms_fill_tiles_and_read_the_experts_touched() -> None:
    """Rows 130 and 1 make two tiles of 128 and one; an expert without rows is not read."""
    cost = LAYER.grouped_gemms((130, 1, 0), 128)
    assert cost.flops == 3 * 128 * LAYER.expert_flops
    assert cost.bytes == 2 * (2 * 3 * 64 * 32 + 131 * (2 * 64 + 2 * 32))


def test_a_model_gives_its_layer() -> None:
    model = load("mixtral-8x7b")
    layer = MoELayer.of(model)
    assert (layer.hidden, layer.ffn, layer.experts, layer.top_k, layer.dtype) == (4096, 14336, 8, 2, "bf16")
    assert layer.model().expert_bytes == model.expert_bytes


@pytest.mark.parametrize(("sizes", "named"), [((64, 32, 8, 9), "top_k"), ((0, 32, 8, 2), "hidden")])
def test_sizes_that_make_no_layer_are_refused(sizes: tuple[int, int, int, int], named: str) -> None:
    with pytest.raises(UserError, match=named):
        MoELayer(*sizes)
    with pytest.raises(UserError, match="dtype"):
        MoELayer(64, 32, 8, 2, dtype="int3")


def test_drawn_tokens_pick_different_experts_and_the_seed_repeats_them() -> None:
    counts = routing.drawn(LAYER, (1000, 0, 7), seed=3)
    assert counts.sum(axis=1).tolist() == [2000, 0, 14] and (counts[2] <= 7).all()
    assert np.array_equal(counts, routing.drawn(LAYER, (1000, 0, 7), seed=3))
    assert not np.array_equal(counts, routing.drawn(LAYER, (1000, 0, 7), seed=4))
    assert abs(counts[0] / 250 - 1).max() < 0.25


def test_a_rank_more_moves_no_other_draw() -> None:
    assert np.array_equal(routing.drawn(LAYER, (50, 60), 1)[0], routing.drawn(LAYER, (50, 60, 70), 1)[0])


def test_skew_makes_few_experts_popular_on_all_ranks() -> None:
    counts = routing.drawn(LAYER, (2000, 2000), seed=0, skew=2.0)
    assert counts[0].argmax() == counts[1].argmax() and counts[0].max() > 5 * np.median(counts[0])
    with pytest.raises(UserError, match="skew"):
        routing.drawn(LAYER, (1,), skew=-1.0)


def test_even_counts_differ_by_one_at_most_on_a_rank() -> None:
    counts = routing.even(LAYER, (5, 12, 0))
    assert counts.sum(axis=1).tolist() == [10, 24, 0] and (np.ptp(counts, axis=1) <= 1).all()
    assert np.ptp(routing.even(LAYER, (1, 1, 1, 1)).sum(axis=0)) <= 1


def test_chunks_of_counts_sum_to_the_whole() -> None:
    counts = routing.drawn(LAYER, (33, 21), 5)
    parts = [routing.part(counts, c, 4) for c in range(4)]
    assert np.array_equal(sum(parts), counts) and all((p >= 0).all() for p in parts)


def test_capacity_drops_rows() -> None:
    assert routing.limited(np.array([[5, 1], [9, 0]]), (4, 9)).tolist() == [[4, 1], [9, 0]]


def trace(path: Path, experts: list[list[int]], layers: int = 3) -> Path:
    """Rows of one layer each, layer i's experts shifted by i."""
    n = len(experts)
    each = np.array(experts * layers)
    layer = np.repeat(np.arange(layers), n)
    write_routing(path, Routing(
        decode=np.zeros(n * layers, np.bool_), step=np.zeros(n * layers, np.int32), request_id=np.zeros(n * layers, np.int32),
        position=np.tile(np.arange(n, dtype=np.int32), layers), layer=layer.astype(np.int16),
        experts=((each + layer[:, None]) % 8).astype(np.int16), weights=np.full((n * layers, 2), np.nan, np.float32),
        shape=Shape(k=2, layers=layers, experts=8, model="toy"), provenance=Provenance("synthetic", "a test"),
    ))  # fmt: skip
    return path


def test_a_trace_is_dealt_out_in_the_order_recorded(tmp_path: Path) -> None:
    """The middle layer's rows, two tokens to rank 0 and one to rank 1."""
    path = trace(tmp_path / "r.parquet", [[0, 1], [2, 3], [4, 5]])
    counts, short = routing.recorded(LAYER, (2, 1), path)
    assert counts.tolist() == [[0, 1, 1, 1, 1, 0, 0, 0], [0, 0, 0, 0, 0, 1, 1, 0]] and not short
    first, _ = routing.recorded(LAYER, (2, 1), path, at=0)
    assert first[0].tolist() == [1, 1, 1, 1, 0, 0, 0, 0]


def test_a_short_trace_begins_again(tmp_path: Path) -> None:
    counts, short = routing.recorded(LAYER, (4,), trace(tmp_path / "r.parquet", [[0, 1], [2, 3]], layers=1))
    assert short and counts.tolist() == [[2, 2, 2, 2, 0, 0, 0, 0]]


def test_a_trace_of_another_shape_is_refused(tmp_path: Path) -> None:
    path = trace(tmp_path / "r.parquet", [[0, 1]])
    with pytest.raises(UserError, match="experts: is 8; a trace of this layer has 4"):
        routing.recorded(MoELayer(64, 32, 4, 2), (1,), path)
    with pytest.raises(UserError, match="has no rows of layer 9"):
        routing.recorded(LAYER, (1,), path, at=9)
