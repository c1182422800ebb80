"""Kernels that work row by row, in the CUDA simulator."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from kernels import combine, dispatch, embed, rms_norm, rope
from kernels.cuda.element import from_bfloat16, round_bfloat16
from tests.kernels.arrays import assert_close, floats, poisoned
from tests.kernels.test_experts import EXPERTS, chosen

RNG = np.random.default_rng(1)


@pytest.mark.parametrize(("tokens", "hidden"), [(1, 1), (1, 100), (3, 33)])
def test_rms_norm(tokens: int, hidden: int) -> None:
    x, weight, out = floats(RNG, tokens, hidden), floats(RNG, hidden), poisoned(tokens, hidden)
    rms_norm.forward_cuda(x, weight, 1e-5, out, threads=64)
    assert_close(out, rms_norm.reference(x.astype(float), weight.astype(float), 1e-5))


def test_rms_norm_of_bfloat16_rounds_once() -> None:
    x, weight = round_bfloat16(floats(RNG, 2, 40)), round_bfloat16(floats(RNG, 40))
    out = np.zeros_like(x)
    rms_norm.forward_cuda(x, weight, 1e-5, out, threads=32)
    wanted = rms_norm.reference(from_bfloat16(x).astype(float), from_bfloat16(weight).astype(float), 1e-5)
    np.testing.assert_allclose(from_bfloat16(out), wanted, rtol=2**-8)


def test_rms_norm_of_float16_rounds_once() -> None:
    x, weight, out = floats(RNG, 2, 40).astype(np.float16), np.ones(40, np.float16), poisoned(2, 40, dtype=np.float16)
    rms_norm.forward_cuda(x, weight, 1e-5, out, threads=32)
    np.testing.assert_allclose(out, rms_norm.reference(x.astype(float), weight.astype(float), 1e-5), rtol=2**-10)


@pytest.mark.parametrize("head_dim", [2, 64])
def test_rope_rotates_query_and_key_heads_only(head_dim: int) -> None:
    tokens, heads = 3, 3
    table = rope.table(1e6, head_dim, 4096)
    rows = floats(RNG, tokens, (heads + 1) * head_dim)
    before, positions = rows.astype(float), np.array([0, 17, 4095])
    rope.forward_cuda(rows, positions, table, heads, threads=32)
    assert_close(rows[:, : heads * head_dim], rope.reference(before[:, : heads * head_dim], positions, table, heads))
    assert (rows[:, heads * head_dim :] == before[:, heads * head_dim :]).all()


def test_embed() -> None:
    table, ids, out = floats(RNG, 10, 33), np.array([9, 0, 0, 4]), poisoned(4, 33)
    embed.forward_cuda(table, ids, out, threads=32)
    assert (out == embed.reference(table, ids)).all()


@pytest.mark.parametrize("top_k", range(1, 9))
def test_combine(top_k: int) -> None:
    tokens = 3
    ids = chosen(tokens, EXPERTS, top_k, "random")
    rows, hidden, weights = floats(RNG, tokens * top_k, 33), floats(RNG, tokens, 33), floats(RNG, tokens, top_k)
    positions = dispatch.reference(hidden, ids, EXPERTS)[1]
    wanted = combine.reference(rows.astype(float), positions, weights.astype(float), hidden.astype(float))
    combine.forward_cuda(rows, positions, weights, hidden, threads=32)
    assert_close(hidden, wanted)


def dispatched(x: np.ndarray, ids: np.ndarray, **options: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    tokens, top_k = ids.shape
    offsets, positions = poisoned(EXPERTS + 1, dtype=np.int32), poisoned(tokens, top_k, dtype=np.int32)
    rows, counts = poisoned(tokens * top_k, x.shape[1]), poisoned(*dispatch.counts_shape(tokens, top_k, EXPERTS), dtype=np.int32)
    dispatch.forward_cuda(x, ids, offsets, positions, rows, counts, **options)
    return offsets, positions, rows


@pytest.mark.parametrize("spread", ["random", "one"])
@pytest.mark.parametrize(("tokens", "top_k"), [(1, 1), (5, 8), (37, 8)])
def test_dispatch(tokens: int, top_k: int, spread: str) -> None:
    x, ids = floats(RNG, tokens, 5), chosen(tokens, EXPERTS, top_k, spread)
    for got, wanted in zip(dispatched(x, ids, threads=4), dispatch.reference(x, ids, EXPERTS), strict=True):
        assert (got == wanted).all()
