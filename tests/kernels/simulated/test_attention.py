"""Decode and prefill attention in the CUDA simulator."""

from __future__ import annotations

import numpy as np
import pytest

from kernels import attention_gpu
from kernels.cuda.element import from_bfloat16, round_bfloat16
from tests.kernels.arrays import assert_close, floats, poisoned
from tests.kernels.test_attention import attend

RNG = np.random.default_rng(3)


def pages(lengths: list[int], rows: list[int], page: int) -> tuple[np.ndarray, int]:
    """A block table that gives each sequence room for its entries and new rows, pages in random order."""
    needed = [-(-(n + r) // page) for n, r in zip(lengths, rows, strict=True)]
    order = iter(RNG.permutation(sum(needed) + 2))
    table = np.full((len(lengths), max(needed)), -1)
    for s, count in enumerate(needed):
        table[s, :count] = [next(order) for _ in range(count)]
    return table, sum(needed) + 2


def run(
    lengths: list[int], rows: list[int], heads: int, kv_heads: int, d: int, page: int, splits: int, bits: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Outputs of the kernel and of the reference for new `rows` after `lengths` cached entries."""
    table, count = pages(lengths, rows, page)
    width, offsets = kv_heads * d, np.cumsum([0, *rows])
    qkv = 2 * floats(RNG, offsets[-1], (heads + 2 * kv_heads) * d)
    past = [(2 * floats(RNG, n, width), floats(RNG, n, width)) for n in lengths]
    if bits:
        qkv, past = from_bfloat16(round_bfloat16(qkv)), [(k, v.round(1)) for k, v in past]
        past = [(from_bfloat16(round_bfloat16(k)), from_bfloat16(round_bfloat16(v))) for k, v in past]
    k_cache, v_cache = poisoned(count, page, width), poisoned(count, page, width)
    for s, (k, v) in enumerate(past):
        for t in range(len(k)):
            k_cache[table[s, t // page], t % page], v_cache[table[s, t // page], t % page] = k[t], v[t]
    out = poisoned(offsets[-1], heads * d)
    scratch = poisoned(*attention_gpu.scratch_shape_cuda(len(qkv), heads, d, splits))
    arrays = [round_bfloat16(a) if bits else a for a in (qkv, k_cache, v_cache, out)]
    attention_gpu.decode_cuda(*arrays[:3], table, offsets, np.array(lengths), heads, kv_heads, scratch, arrays[3])
    wanted = []
    for s, (k, v) in enumerate(past):
        mine = qkv[offsets[s] : offsets[s + 1]]
        keys, values = (np.concatenate([a, mine[:, from_ : from_ + width]]) for a, from_ in ((k, heads * d), (v, heads * d + width)))
        wanted.append(attend(mine[:, : heads * d], keys, values, heads, kv_heads, lengths[s] + np.arange(len(mine))))
    return from_bfloat16(arrays[3]) if bits else out, np.concatenate(wanted)


@pytest.mark.parametrize(
    ("heads", "kv_heads", "d", "lengths", "page", "splits"),
    [(1, 1, 8, [0], 16, 1), (4, 2, 16, [3, 0, 40], 7, 1), (9, 1, 24, [33], 32, 1), (2, 1, 40, [31, 70], 32, 2), (1, 1, 8, [2, 160], 16, 3)],
)
def test_decode(heads: int, kv_heads: int, d: int, lengths: list[int], page: int, splits: int) -> None:
    out, wanted = run(lengths, [1] * len(lengths), heads, kv_heads, d, page, splits)
    assert_close(out, wanted, 5e-6)


def test_a_chunk_of_a_prompt_sees_the_cache_and_itself() -> None:
    out, wanted = run([5, 0], [3, 9], 2, 1, 8, 4, 1)
    assert_close(out, wanted, 5e-6)


def test_decode_of_bfloat16_rounds_the_output_only() -> None:
    out, wanted = run([9], [1], 2, 1, 8, 4, 1, bits=True)
    np.testing.assert_allclose(out, wanted, rtol=2**-7, atol=2**-8)


@pytest.mark.parametrize(("heads", "kv_heads", "d", "prompts"), [(1, 1, 8, [1]), (2, 1, 16, [3, 1, 34]), (9, 1, 8, [2])])
def test_prefill(heads: int, kv_heads: int, d: int, prompts: list[int]) -> None:
    offsets, q, width = np.cumsum([0, *prompts]), heads * d, kv_heads * d
    qkv, out = 2 * floats(RNG, offsets[-1], q + 2 * width), poisoned(offsets[-1], q)
    scratch = poisoned(*attention_gpu.scratch_shape_cuda(len(qkv), heads, d, 1))
    attention_gpu.prefill_cuda(qkv, offsets, np.zeros(len(prompts), np.int64), heads, kv_heads, scratch, out)
    for a, z in zip(offsets[:-1], offsets[1:], strict=True):
        rows = qkv[a:z]
        wanted = attend(rows[:, :q], rows[:, q : q + width], rows[:, q + width :], heads, kv_heads, np.arange(z - a))
        assert_close(out[a:z], wanted, 5e-6)
