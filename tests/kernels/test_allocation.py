"""No kernel allocates: a call costs Numba one small handle for each array argument, whatever their sizes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from kernels import (
    all_reduce,
    attention_decode,
    attention_prefill,
    combine,
    compaction,
    dispatch,
    embed,
    expert_ffn,
    linear,
    page_gather,
    rms_norm,
    rope,
    router,
    sample,
)

H, F, E, K, HEADS, KV, D = 32, 48, 4, 2, 4, 2, 16


def zeros(*shape: int, dtype: type = np.float32) -> np.ndarray:
    return np.zeros(shape, dtype)


def calls(tokens: int) -> dict[str, tuple[Callable[..., Any], tuple[Any, ...]]]:
    """Each kernel with its arguments for a micro-batch of `tokens`."""
    x, qkv, attn, rows = zeros(tokens, H), zeros(tokens, (HEADS + 2 * KV) * D), zeros(tokens, HEADS * D), zeros(tokens * K, H)
    ids, positions, weights = zeros(tokens, K, dtype=np.int16), zeros(tokens, K, dtype=np.int32), zeros(tokens, K)
    ids[:, 1] = 1
    where, slots = np.arange(tokens), zeros(tokens, dtype=np.int64)
    offsets, cache = np.array([0, tokens]), zeros(tokens, 300, KV * D)
    pages, table = zeros(tokens * 20, 16, KV * D), np.arange(tokens * 20).reshape(tokens, 20)
    scores = zeros(*attention_decode.scratch_shape(HEADS, 1))[0]
    spread = np.linspace(0, tokens * K, E + 1).astype(np.int32)
    return {
        "rms_norm": (rms_norm.forward, (x, zeros(H), 1e-5, x.copy())),
        "linear": (linear.forward, (x, zeros(F, H), zeros(tokens, F))),
        "rope": (rope.forward, (qkv, where, zeros(tokens, D), HEADS)),
        "append": (attention_decode.append, (qkv, cache, cache.copy(), slots[:1], offsets, slots[:1])),
        "prefill": (attention_prefill.forward, (qkv, offsets, HEADS, KV, zeros(*attention_prefill.scratch_shape(tokens, 1)), attn)),
        "decode": (
            attention_decode._some,  # what `forward` and `paged` compile to
            (qkv, pages, pages.copy(), table, slots, slots + 290, HEADS, KV, scores, attn, 0, 1),
        ),
        "router": (router.select, (zeros(tokens, E), ids.copy(), weights)),
        "router by rule": (
            router.choose,
            (zeros(tokens, E), zeros(E), router.Rule(True, True, 2, 1, 2.5), zeros(3, E), ids.copy(), weights),
        ),
        "dispatch": (dispatch.forward, (x, ids, zeros(E + 1, dtype=np.int32), positions, rows)),
        "experts": (
            expert_ffn.grouped,
            (rows, spread, zeros(E * 3 * F * H), 0, zeros(tokens * K, 2 * F), zeros(tokens * K, F), rows.copy()),
        ),
        "combine": (combine.forward, (rows, positions, weights, x)),
        "embed": (embed.forward, (zeros(tokens, H), where, x)),
        "argmax": (sample.argmax, (x, slots)),
        "draw": (sample.draw, (x, 1.0, 0.9, zeros(tokens), zeros(H), slots)),
        "all-reduce": (all_reduce.forward, (x,)),
        "page gather": (page_gather.forward, (rows.view(np.int32), np.arange(tokens, dtype=np.int32), x.view(np.int32))),
        "compaction": (compaction.forward, (x.view(np.int32).ravel(), np.array([[8, 0, 4, 0, 0]]))),
    }


@pytest.mark.parametrize("name", calls(1))
@pytest.mark.parametrize("tokens", [1, 40])
def test_no_kernel_allocates(name: str, tokens: int) -> None:
    from numba.core.runtime import _nrt_python, rtsys

    _nrt_python.memsys_enable_stats()
    function, arguments = calls(tokens)[name]
    function(*arguments)  # compiles
    before = rtsys.get_allocation_stats()
    function(*arguments)
    after = rtsys.get_allocation_stats()
    arrays = sum(isinstance(a, np.ndarray) for a in arguments)
    assert after.alloc - before.alloc == after.free - before.free == arrays
