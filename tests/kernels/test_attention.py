"""Decode attention over a cache and causal prefill attention, against the plain float64 form."""

from __future__ import annotations

import numpy as np
import pytest

from kernels import attention, attention_decode, attention_prefill
from tests.kernels.arrays import assert_close, floats, poisoned

RNG = np.random.default_rng(3)
HEADS = [(1, 1, 8), (8, 4, 64), (4, 4, 33), (6, 2, 16), (32, 8, 128)]


def attend(q: np.ndarray, k: np.ndarray, v: np.ndarray, heads: int, kv_heads: int, lasts: np.ndarray) -> np.ndarray:
    return attention.reference(q.astype(float), k.astype(float), v.astype(float), heads, kv_heads, lasts)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("lengths", [[0], [3, 0, 130], [1, 127, 128, 129, 300]])
@pytest.mark.parametrize(("heads", "kv_heads", "d"), HEADS)
def test_decode(heads: int, kv_heads: int, d: int, lengths: list[int], threads: int) -> None:
    count, width, longest = len(lengths), kv_heads * d, 310
    qkv, slots = 2 * floats(RNG, count, (heads + 2 * kv_heads) * d), RNG.permutation(count + 2)[:count]
    k, v = poisoned(count + 2, longest, width), poisoned(count + 2, longest, width)
    for slot, n in zip(slots, lengths, strict=True):
        k[slot, :n], v[slot, :n] = 2 * floats(RNG, n, width), floats(RNG, n, width)
    out, scratch = poisoned(count, heads * d), poisoned(*attention_decode.scratch_shape(heads, threads))
    attention_decode.forward(qkv, k, v, slots, np.array(lengths), heads, kv_heads, scratch, out)
    for s, (slot, n) in enumerate(zip(slots, lengths, strict=True)):
        assert (k[slot, n] == qkv[s, heads * d : heads * d + width]).all() and (v[slot, n] == qkv[s, heads * d + width :]).all()
        assert np.isnan(k[slot, n + 1 :]).all(), "wrote past the new entry"
        wanted = attend(qkv[s : s + 1, : heads * d], k[slot, : n + 1], v[slot, : n + 1], heads, kv_heads, np.array([n]))
        assert_close(out[s : s + 1], wanted, 5e-6)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("page", [1, 16, 130])
def test_paged_decode_is_decode(page: int, threads: int) -> None:
    """Pages in any order hold the same as one run of entries."""
    heads, kv_heads, d, lengths = 4, 2, 16, np.array([0, 15, 140])
    width, longest = kv_heads * d, 160
    qkv, k, v = floats(RNG, 3, (heads + 2 * kv_heads) * d), floats(RNG, 3, longest, width), floats(RNG, 3, longest, width)
    count = -(-longest // page)
    table = RNG.permutation(3 * count).reshape(3, count)
    k_pages, v_pages = poisoned(3 * count, page, width), poisoned(3 * count, page, width)
    for s, n in enumerate(lengths):
        for t in range(n):
            k_pages[table[s, t // page], t % page], v_pages[table[s, t // page], t % page] = k[s, t], v[s, t]
    out, wanted = poisoned(3, heads * d), poisoned(3, heads * d)
    shape = attention_decode.scratch_shape(heads, threads)
    attention_decode.paged(qkv, k_pages, v_pages, table, lengths, heads, kv_heads, poisoned(*shape), out)
    attention_decode.forward(qkv, k, v, np.arange(3), lengths, heads, kv_heads, poisoned(*shape), wanted)
    assert_close(out, wanted, 5e-6)


@pytest.mark.parametrize("threads", [1, 2])
def test_decode_where_every_row_is_a_slot(threads: int) -> None:
    """The executor's cache: sequences of any length one behind the other, each from a row of its own on."""
    heads, kv_heads, d, lengths, starts = 4, 2, 16, np.array([0, 15, 140]), np.array([150, 3, 160])
    width = kv_heads * d
    qkv, k, v = floats(RNG, 3, (heads + 2 * kv_heads) * d), poisoned(320, 1, width), poisoned(320, 1, width)
    apart_k, apart_v = poisoned(3, 141, width), poisoned(3, 141, width)
    for s, (n, start) in enumerate(zip(lengths, starts, strict=True)):
        k[start : start + n, 0] = apart_k[s, :n] = floats(RNG, n, width)
        v[start : start + n, 0] = apart_v[s, :n] = floats(RNG, n, width)
    out, wanted = poisoned(3, heads * d), poisoned(3, heads * d)
    shape = attention_decode.scratch_shape(heads, threads)
    attention_decode.forward(qkv, k, v, starts, lengths, heads, kv_heads, poisoned(*shape), out)
    attention_decode.forward(qkv, apart_k, apart_v, np.arange(3), lengths, heads, kv_heads, poisoned(*shape), wanted)
    assert (out == wanted).all() and (k[starts + lengths, 0] == apart_k[range(3), lengths]).all()


def test_decode_with_scores_far_apart() -> None:
    """Online softmax: a block whose scores dwarf the earlier ones, and one that is dwarfed."""
    k, v = floats(RNG, 1, 400, 8), floats(RNG, 1, 400, 8)
    k[0, :128] *= 100
    k[0, 256:300] *= 300
    qkv, out = floats(RNG, 1, 24), poisoned(1, 8)
    attention_decode.forward(qkv, k, v, np.array([0]), np.array([390]), 1, 1, poisoned(*attention_decode.scratch_shape(1, 1)), out)
    assert_close(out, attend(qkv[:, :8], k[0, :391], v[0, :391], 1, 1, np.array([390])), 1e-4)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("prompts", [[1], [5, 1, 32, 33], [77, 3, 130]])
@pytest.mark.parametrize(("heads", "kv_heads", "d"), HEADS)
def test_prefill(heads: int, kv_heads: int, d: int, prompts: list[int], threads: int) -> None:
    offsets, q, width = np.cumsum([0, *prompts]), heads * d, kv_heads * d
    qkv, out = 2 * floats(RNG, offsets[-1], q + 2 * width), poisoned(offsets[-1], q)
    scratch = poisoned(*attention_prefill.scratch_shape(max(prompts), threads))
    attention_prefill.forward(qkv, offsets, heads, kv_heads, scratch, out)
    for a, z in zip(offsets[:-1], offsets[1:], strict=True):
        rows = qkv[a:z]
        wanted = attend(rows[:, :q], rows[:, q : q + width], rows[:, q + width :], heads, kv_heads, np.arange(z - a))
        assert_close(out[a:z], wanted, 5e-6)


def test_append_writes_the_prompts_rows_only() -> None:
    qkv, k, v = floats(RNG, 5, 4 * 8), poisoned(3, 10, 8), poisoned(3, 10, 8)
    attention_decode.append(qkv, k, v, np.array([2, 0]), np.array([0, 2, 5]), np.array([0, 4]))
    assert (k[2, :2] == qkv[:2, 16:24]).all() and (v[2, :2] == qkv[:2, 24:]).all()
    assert (k[0, 4:7] == qkv[2:, 16:24]).all() and (v[0, 4:7] == qkv[2:, 24:]).all()
    assert np.isfinite(k).sum() == np.isfinite(v).sum() == 5 * 8
