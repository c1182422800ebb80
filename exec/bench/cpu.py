"""Cases of the CPU kernels beside what torch has for the same work, on the same threads.

Routing is drawn: logits of independent normals, or experts at random; a trace's clustered choices would be
kinder to caches, to both sides alike.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from exec import decoder
from exec.bench import moe
from exec.bench.case import Case, Ceilings, Work, agree, floats
from exec.bench.timing import by_clock
from exec.products import product
from kernels import attention, attention_decode, combine, dispatch, embed, expert_ffn, linear, rms_norm, router, sample
from kernels.cost import Cost
from sim.models.spec import ModelSpec

ROUTED_CALLS = 1000
"""Routings that one call of the compiled loop makes: a call from Python costs more than one of them."""

CONTEXTS = (128, 256, 512, 1024, 2048, 4096)
HIDDEN, FFN, HEADS, KV_HEADS, HEAD_DIM = 2048, 768, 32, 4, 128
"""Qwen3-30B-A3B's sizes."""


def cases(threads: int) -> dict[str, Callable[[], Iterator[Case]]]:
    """Makers of cases by op."""
    return {
        "router": lambda: _router(threads),
        "dispatch+combine": lambda: _dispatch_combine(threads),
        "attn_decode": lambda: _attn_decode(threads),
        "expert_ffn": lambda: _expert_ffn(threads),
        "fused_moe": lambda: moe.cases(_spec(16, 8), threads),
        "linear": lambda: _linear(threads),
        "rms_norm": lambda: _rms_norm(threads),
        "embed": lambda: _embed(threads),
        "sample": lambda: _sample(threads),
    }


@cache
def _compiled_routing() -> Any:
    from numba import njit

    from kernels.router.cpu import select_some as select

    @njit(nogil=True)
    def many(logits, ids, weights, count):
        for i in range(count):
            select(logits[i % logits.shape[0]], ids, weights, 0, 1)

    return many


def _router(threads: int) -> Iterator[Case]:
    """One token from compiled code, as the decoder's kernels call it; a prefill's many tokens."""
    logits, ids, weights = floats(64, 1, 8), np.empty((1, 2), np.int16), np.empty((1, 2), np.float32)
    many = _compiled_routing()
    if threads == 1:
        yield Case(
            "router", "1 token, 8 experts, top-2, called from compiled code", "fp32", 1, router.select_work(1, 8, 2, 4),
            {"kernel": lambda: many(logits, ids, weights, ROUTED_CALLS)}, calls=ROUTED_CALLS,
        )  # fmt: skip
    for tokens, experts, k in ((4096, 128, 8), (64, 128, 8), (4096, 8, 2)):
        yield _routing(tokens, experts, k, threads)


def _routing(tokens: int, experts: int, k: int, threads: int) -> Case:
    logits = floats(tokens, experts)
    ids, weights = np.empty((tokens, k), np.int16), np.empty((tokens, k), np.float32)
    there = torch.from_numpy(logits)

    def by_torch() -> tuple[torch.Tensor, torch.Tensor]:
        chosen, which = there.softmax(-1).topk(k, dim=-1)
        return chosen / chosen.sum(-1, keepdim=True), which

    return Case(
        "router", f"{tokens} tokens, {experts} experts, top-{k}", "fp32", threads, router.select_work(tokens, experts, k, 4),
        {"kernel": lambda: router.select(logits, ids, weights, threads), "torch softmax + topk": by_torch},
        agree(lambda: weights, lambda: by_torch()[0]),
    )  # fmt: skip


def _dispatch_combine(threads: int) -> Iterator[Case]:
    for tokens, experts, k in ((16, 128, 8), (256, 128, 8), (2048, 128, 8), (2048, 8, 2)):
        x, out = floats(tokens, HIDDEN), np.zeros((tokens, HIDDEN), np.float32)
        ids = np.argsort(floats(tokens, experts), axis=1)[:, :k].astype(np.int16)
        weights = np.full((tokens, k), 1 / k, np.float32)
        offsets, positions = np.empty(experts + 1, np.int32), np.empty((tokens, k), np.int32)
        rows = np.empty((tokens * k, HIDDEN), np.float32)
        tx, tids, tweights = torch.from_numpy(x), torch.from_numpy(ids.astype(np.int64)), torch.from_numpy(weights)

        def ours(x=x, ids=ids, offsets=offsets, positions=positions, rows=rows, weights=weights, out=out) -> None:
            dispatch.forward(x, ids, offsets, positions, rows, threads)
            combine.forward(rows, positions, weights, out, threads)

        def by_torch(tx=tx, tids=tids, tweights=tweights, k=k, experts=experts) -> torch.Tensor:
            order = tids.flatten().argsort(stable=True)
            torch.bincount(tids.flatten(), minlength=experts).cumsum(0)
            gathered = tx.index_select(0, order // k)
            return torch.zeros_like(tx).index_add_(0, order // k, gathered * tweights.flatten()[order, None])

        def check(ours=ours, by_torch=by_torch, out=out) -> None:
            out.fill(0)
            ours()
            agree(out, by_torch().numpy())()

        yield Case(
            "dispatch+combine", f"{tokens} tokens, {experts} experts, top-{k}, hidden {HIDDEN}", "fp32", threads,
            dispatch.work(tokens, k, HIDDEN, 4) + combine.work(tokens, k, HIDDEN, 4),
            {"kernel": ours, "torch index + scatter": by_torch}, check,
        )  # fmt: skip


def _attn_decode(threads: int) -> Iterator[Case]:
    """One new token of each of a few sequences of one length, GQA; torch sees a cache that holds the new entry."""
    sequences, width = 4, KV_HEADS * HEAD_DIM
    for context in CONTEXTS:
        k, v = (floats(sequences, context, width) for _ in range(2))
        qkv = floats(sequences, (HEADS + 2 * KV_HEADS) * HEAD_DIM)
        out = np.empty((sequences, HEADS * HEAD_DIM), np.float32)
        slots, before = np.arange(sequences), np.full(sequences, context - 1)
        space = np.zeros(attention_decode.scratch_shape(HEADS, min(threads, sequences)), np.float32)
        q, keys, values = _torch_heads(qkv, k, v)

        def ours(qkv=qkv, k=k, v=v, slots=slots, before=before, space=space, out=out) -> None:
            attention_decode.forward(qkv, k, v, slots, before, HEADS, KV_HEADS, space, out)

        def by_torch(q=q, keys=keys, values=values) -> torch.Tensor:
            return F.scaled_dot_product_attention(q, keys, values, enable_gqa=True)

        yield Case(
            "attn_decode", f"{sequences} sequences, context {context}, {HEADS} heads over {KV_HEADS}, D {HEAD_DIM}", "fp32", threads,
            attention.decode_work(sequences, sequences * context, HEADS, KV_HEADS, HEAD_DIM, 4),
            {"kernel": ours, "torch scaled_dot_product_attention": by_torch},
            agree(lambda out=out: out, lambda f=by_torch: f().reshape(sequences, -1).numpy()),
        )  # fmt: skip


def _torch_heads(qkv: np.ndarray, k: np.ndarray, v: np.ndarray) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """q [S, h, 1, D] and contiguous k, v [S, g, context, D], the layout that torch likes best."""
    q = torch.from_numpy(qkv[:, : HEADS * HEAD_DIM].copy()).view(len(qkv), HEADS, 1, HEAD_DIM)
    k[:, -1], v[:, -1] = np.split(qkv[:, HEADS * HEAD_DIM :], 2, axis=1)
    keys, values = (torch.from_numpy(x).view(len(qkv), -1, KV_HEADS, HEAD_DIM).transpose(1, 2).contiguous() for x in (k, v))
    return q, keys, values


def _expert_ffn(threads: int) -> Iterator[Case]:
    """The experts of one layer over the rows of a decode step, each expert alike."""
    for tokens, experts, k in ((1, 16, 8), (16, 16, 8), (64, 16, 8)):
        rows = max(1, tokens * k // experts)
        touched = min(experts, tokens * k)
        spec = _spec(experts, k)
        x, out = floats(rows * touched, HIDDEN), np.empty((rows * touched, HIDDEN), np.float32)
        offsets = (np.minimum(np.arange(experts + 1), touched) * rows).astype(np.int32)
        weights = floats(experts * 3 * HIDDEN * FFN) * np.float32(HIDDEN**-0.5)
        space = np.zeros(len(x) * 3 * FFN + 64, np.float32)

        def ours(x=x, out=out, offsets=offsets, weights=weights, space=space, spec=spec) -> None:
            out[:] = x  # the kernel works in place
            decoder.run_experts(spec, (weights,), out, offsets, decoder.Scratch(space))

        by_torch = _torch_experts(x, offsets, weights, experts)
        one = expert_ffn.work(rows, HIDDEN, FFN, 4)
        yield Case(
            "expert_ffn", f"{touched} experts x {rows} rows, hidden {HIDDEN}, ffn {FFN}", "fp32", threads,
            Cost(one.flops * touched, one.bytes * touched), {"kernel": ours, "torch, one product an expert": by_torch},
            agree(lambda out=out: out, lambda f=by_torch: f().numpy()),
        )  # fmt: skip


def _torch_experts(x: np.ndarray, offsets: np.ndarray, weights: np.ndarray, experts: int) -> Callable[[], torch.Tensor]:
    tx, flat, bounds = torch.from_numpy(x), torch.from_numpy(weights).view(experts, -1), offsets.tolist()
    expand = flat[:, : 2 * FFN * HIDDEN].view(experts, 2 * FFN, HIDDEN)
    contract = flat[:, 2 * FFN * HIDDEN :].view(experts, HIDDEN, FFN)

    def run() -> torch.Tensor:
        parts = []
        for e in range(experts):
            if bounds[e] < bounds[e + 1]:
                gate, up = (tx[bounds[e] : bounds[e + 1]] @ expand[e].t()).chunk(2, dim=-1)
                parts.append((F.silu(gate) * up) @ contract[e].t())
        return torch.cat(parts)

    return run


def _spec(experts: int, top_k: int) -> ModelSpec:
    return ModelSpec(
        "bench", "mixtral", layers=1, hidden=HIDDEN, ffn=FFN, experts=experts, top_k=top_k, heads=HEADS, kv_heads=KV_HEADS,
        head_dim=HEAD_DIM, vocab=32000, dtype="fp32",
    )  # fmt: skip


def _linear(threads: int) -> Iterator[Case]:
    weight = floats(5120, HIDDEN)
    for rows in (1, 16, 128):
        x, out = floats(rows, HIDDEN), np.empty((rows, 5120), np.float32)
        tx, tw = torch.from_numpy(x), torch.from_numpy(weight)
        yield Case(
            "linear", f"{rows} x {HIDDEN} x 5120", "fp32", threads, linear.work(rows, HIDDEN, 5120, 4),
            {"kernel": lambda x=x, out=out: product(x, weight, out), "torch mm": lambda tx=tx, tw=tw: tx @ tw.t()},
            agree(lambda out=out: out, lambda tx=tx, tw=tw: (tx @ tw.t()).numpy()),
        )  # fmt: skip


def _rms_norm(threads: int) -> Iterator[Case]:
    weight = floats(HIDDEN)
    for rows in (1, 64, 1024):
        x, out = floats(rows, HIDDEN), np.empty((rows, HIDDEN), np.float32)
        tx, tw = torch.from_numpy(x), torch.from_numpy(weight)
        yield Case(
            "rms_norm", f"{rows} x {HIDDEN}", "fp32", threads, rms_norm.work(rows, HIDDEN, 4),
            {"kernel": lambda x=x, out=out: rms_norm.forward(x, weight, 1e-5, out),
             "torch rms_norm": lambda tx=tx, tw=tw: F.rms_norm(tx, (HIDDEN,), tw, 1e-5)},
            agree(lambda out=out: out, lambda tx=tx, tw=tw: F.rms_norm(tx, (HIDDEN,), tw, 1e-5).numpy()),
        )  # fmt: skip


def _embed(threads: int) -> Iterator[Case]:
    table = floats(32000, HIDDEN)
    for tokens in (16, 1024):
        ids, out = np.random.default_rng(0).integers(0, 32000, tokens), np.empty((tokens, HIDDEN), np.float32)
        there, which = torch.from_numpy(table), torch.from_numpy(ids)
        yield Case(
            "embed", f"{tokens} of 32000 x {HIDDEN}", "fp32", threads, embed.work(tokens, HIDDEN, 4),
            {"kernel": lambda ids=ids, out=out: embed.forward(table, ids, out),
             "torch index_select": lambda there=there, which=which: there.index_select(0, which)},
            agree(lambda out=out: out, lambda ids=ids: table[ids]),
        )  # fmt: skip


def _sample(threads: int) -> Iterator[Case]:
    for sequences in (1, 64):
        logits, tokens = floats(sequences, 32000), np.empty(sequences, np.int64)
        there = torch.from_numpy(logits)
        yield Case(
            "sample", f"argmax of {sequences} x 32000", "fp32", threads, sample.argmax_work(sequences, 32000, 4),
            {"kernel": lambda logits=logits, tokens=tokens: sample.argmax(logits, tokens),
             "torch argmax": lambda there=there: there.argmax(-1)},
            agree(lambda tokens=tokens: tokens, lambda there=there: there.argmax(-1).numpy()),
        )  # fmt: skip


def ceilings(threads: int) -> Ceilings:
    """The best of a few large products and of a few passes over memory that no cache holds; on the calling thread's threads."""
    a, b = floats(768, 4096), floats(2048, 4096)
    out = np.empty((768, 2048), np.float32)
    ta, tb = torch.from_numpy(a), torch.from_numpy(b)
    flops = 2 * a.size * len(b)
    products: list[Work] = [lambda: product(a, b, out), lambda: ta @ tb.t()]
    best = max(flops / by_clock(work, 1) for work in products for _ in range(4))
    memory = torch.ones(1 << 26)
    width = max(memory.nbytes / by_clock(lambda: memory.sum(), 1) for _ in range(5))
    return Ceilings({f"fp32/{threads}": best}, {threads: width})
