"""Kernels that work row by row: norm, rotary embedding, products, embedding, argmax."""

from __future__ import annotations

import numpy as np
import pytest

from kernels import embed, linear, rms_norm, rope, sample, vecmath
from kernels.jit import jit
from tests.kernels.arrays import assert_close, floats, poisoned

RNG = np.random.default_rng(1)


@pytest.mark.parametrize(("tokens", "hidden"), [(1, 1), (1, 512), (7, 33), (64, 2048)])
def test_rms_norm(tokens: int, hidden: int) -> None:
    x, weight, out = floats(RNG, tokens, hidden), floats(RNG, hidden), poisoned(tokens, hidden)
    rms_norm.forward(x, weight, 1e-5, out)
    assert_close(out, rms_norm.reference(x.astype(float), weight.astype(float), 1e-5))


def test_rms_norm_of_zeros_is_zero() -> None:
    out = poisoned(1, 8)
    rms_norm.forward(np.zeros((1, 8), np.float32), np.ones(8, np.float32), 1e-5, out)
    assert (out == 0).all()


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize(("rows", "k", "n"), [(1, 1, 1), (1, 512, 8), (3, 7, 5), (4, 64, 16), (9, 130, 67), (65, 100, 50), (131, 20, 13)])
def test_linear(rows: int, k: int, n: int, threads: int) -> None:
    x, weight, out = floats(RNG, rows, k), floats(RNG, n, k), poisoned(rows, n)
    linear.forward(x, weight, out, threads)
    assert_close(out, linear.reference(x.astype(float), weight.astype(float)))


@pytest.mark.parametrize("head_dim", [2, 64, 128])
def test_rope_rotates_query_and_key_heads_only(head_dim: int) -> None:
    tokens, heads = 5, 3
    table = rope.table(1e6, head_dim, 4096)
    rows = floats(RNG, tokens, (heads + 1) * head_dim)
    before, positions = rows.astype(float), np.array([0, 1, 17, 17, 4095])
    rope.forward(rows, positions, table, heads)
    assert_close(rows[:, : heads * head_dim], rope.reference(before[:, : heads * head_dim], positions, table, heads))
    assert (rows[:, heads * head_dim :] == before[:, heads * head_dim :]).all()


def test_rope_table_holds_the_published_angles() -> None:
    table = rope.table(10000.0, 8, 11)
    angle = 10 / 10000.0 ** (2 * np.arange(4) / 8)
    np.testing.assert_allclose(table[10], np.concatenate([np.cos(angle), np.sin(angle)]), atol=1e-6)


def test_embed() -> None:
    table, ids, out = floats(RNG, 10, 33), np.array([9, 0, 0, 4]), poisoned(4, 33)
    embed.forward(table, ids, out)
    assert (out == embed.reference(table, ids)).all()


@pytest.mark.parametrize(("sequences", "vocab"), [(1, 1), (5, 8192), (3, 1001)])
def test_argmax_takes_the_first_largest(sequences: int, vocab: int) -> None:
    logits, out = floats(RNG, sequences, vocab).round(1), poisoned(sequences, dtype=np.int64)
    sample.argmax(logits, out)
    assert (out == sample.reference(logits)).all()


@jit
def _exponentials(x, out):
    for i in range(x.shape[0]):
        out[i] = vecmath.exp(x[i])


def test_exp() -> None:
    x = np.linspace(-87, 88, 10001).astype(np.float32)
    out = poisoned(len(x))
    _exponentials(x, out)
    np.testing.assert_allclose(out, np.exp(x.astype(float)), rtol=2e-7)
    extremes = np.array([-np.inf, -1000, 1000, np.inf], np.float32)
    _exponentials(extremes, out[:4])
    assert (out[:2] < 2e-38).all() and np.isfinite(out[:4]).all()
