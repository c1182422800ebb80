"""Matrix products and expert FFNs in the CUDA simulator."""

from __future__ import annotations

import numpy as np
import pytest

from kernels import dispatch, expert_ffn, linear
from kernels.cuda.element import from_bfloat16, round_bfloat16
from tests.kernels.arrays import assert_close, floats, poisoned
from tests.kernels.test_experts import EXPERTS, chosen

RNG = np.random.default_rng(2)


@pytest.mark.parametrize(
    ("rows", "k", "n"),
    [(1, 8, 3), (1, 264, 2), (1, 776, 1), (2, 40, 2), (5, 16, 1), (8, 8, 1), (1, 7, 5), (9, 20, 66), (65, 3, 1)],
)
def test_linear(rows: int, k: int, n: int) -> None:
    x, weight, out = floats(RNG, rows, k), floats(RNG, n, k), poisoned(rows, n)
    linear.forward_cuda(x, weight, out, threads=32)
    assert_close(out, linear.reference(x.astype(float), weight.astype(float)))


@pytest.mark.parametrize(("rows", "k"), [(1, 48), (3, 16), (9, 6)])
def test_linear_of_bfloat16_rounds_the_result_only(rows: int, k: int) -> None:
    x, weight, out = round_bfloat16(floats(RNG, rows, k)), round_bfloat16(floats(RNG, 2, k)), np.zeros((rows, 2), np.uint16)
    linear.forward_cuda(x, weight, out, threads=32)
    wanted = linear.reference(from_bfloat16(x).astype(float), from_bfloat16(weight).astype(float))
    np.testing.assert_allclose(from_bfloat16(out), wanted, rtol=2**-8, atol=1e-5)


def experts_of(flat: np.ndarray, hidden: int, ffn: int) -> list[list[np.ndarray]]:
    shapes = (ffn, hidden), (ffn, hidden), (hidden, ffn)
    return [[m.reshape(shape) for m, shape in zip(e, shapes, strict=True)] for e in flat.astype(float).reshape(-1, 3, ffn * hidden)]


@pytest.mark.parametrize("form", ["streamed", "tiles"])
@pytest.mark.parametrize("split", [0, 3])
@pytest.mark.parametrize(("tokens", "top_k", "spread"), [(1, 2, "random"), (5, 1, "one"), (2, 8, "random"), (67, 1, "one")])
def test_grouped_experts(tokens: int, top_k: int, spread: str, split: int, form: str) -> None:
    hidden, ffn = (8, 8) if form == "streamed" else (9, 5)
    ids = chosen(tokens, EXPERTS, top_k, spread)
    x = floats(RNG, tokens, hidden)
    offsets, _, rows = dispatch.reference(x, ids, EXPERTS)
    flat = floats(RNG, EXPERTS * 3 * hidden * ffn) * np.float32(hidden**-0.5)
    out, act, gate_up = poisoned(*rows.shape), poisoned(len(rows), ffn), poisoned(len(rows), 2 * ffn)
    starts, cut = offsets.astype(np.int32), split * 3 * hidden * ffn
    few = len(rows) if form == "streamed" else 0
    expert_ffn.grouped_cuda(rows, starts, flat[:cut], 0, gate_up, act, out, threads=64, few=few)
    expert_ffn.grouped_cuda(rows, starts, flat[cut:], split, gate_up, act, out, threads=64, few=few)
    for e, (gate, up, down) in enumerate(experts_of(flat, hidden, ffn)):
        mine = slice(offsets[e], offsets[e + 1])
        assert_close(out[mine], expert_ffn.reference(rows[mine].astype(float), gate, up, down), 5e-6)
