"""Model-level ops, and the kernels that each one is made of.

The op table of a machine knows kernels ("components"); schedulers speak of model-level ops. Here
the second become the first: `components(model, work)` lists what a task runs, with its FLOPs and
bytes by the work formulas in `kernels/`.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from kernels import attention, combine, dispatch, embed, expert_ffn, linear, rms_norm, rope, router, sample
from kernels.cost import Cost
from kernels.fused_moe import tiles as tiles  # what sim knows of the tiles inside a fused MoE layer
from sim.models.spec import ModelSpec
from sim.tasks import Work

COPIES = frozenset({
    "offload_qkv", "load_hidden", "page_to_pin", "page_to_gpu", "layer_to_gpu",
    "kv_to_cpu", "kv_to_gpu", "hidden_to_cpu", "hidden_to_gpu",
    "read_expert", "load_expert", "offload_normed", "load_partial",
})  # fmt: skip
COMPUTE = frozenset({
    "embed", "pre_attn", "attn_prefill", "attn_decode", "post_attn", "sample", "gate", "experts", "cpu_experts", "combine",
    "fused_moe", *tiles.OPS,
})  # fmt: skip
"""The last ones: a routed layer from its router on as one kernel, and the tiles inside."""
FREE = frozenset({"timer", "join"})
OPS = COPIES | COMPUTE | FREE
EXACT_TOKENS = 64
"""Up to as many tokens, expected rows of each expert are exact probabilities; above, their mean."""

TILE_ROWS = 64
"""Rows of a tile of MoE-Lightning's fused expert kernel (stacked_fused_moe.py, BLOCK_SIZE_M): an expert with
fewer costs as many FLOPs."""


class Component(NamedTuple):
    """One kernel of a task.

    rows is where a measured curve is read, units what its value (seconds per unit) is multiplied
    with: elements of the weight matrix for products, sequences x row width for attention, row width
    for the rest. Units do not depend on rows, so a line between two measured points is a line in
    time; a curve in seconds per unit carries over to other model sizes.
    """

    op: str
    rows: float
    units: float
    cost: Cost


def components(model: ModelSpec, work: Work) -> tuple[Component, ...]:
    """Kernels of one compute task, in the order in which they run.

    Raises KeyError for an op that is not in COMPUTE.
    """
    return _BUILDERS[work.op](model, work)


def around_body(model: ModelSpec, work: Work) -> tuple[Component, ...]:
    """What is left of `components` where a body does the routed part: the rest, and the launch of the fused kernel."""
    rest = [part for part in components(model, work) if part.op.partition(".")[0] not in _IN_BODY]
    return (*rest, Component("fused_moe", work.tokens, 0, Cost(0, 0)))


_IN_BODY = frozenset({"router", "dispatch", "expert_ffn", "combine"})


def _linear(name: str, rows: int, k: int, n: int, model: ModelSpec) -> Component:
    return Component(name, rows, k * n, linear.work(rows, k, n, model.dtype_bytes))


def _norm(tokens: int, model: ModelSpec) -> Component:
    return Component("rms_norm", tokens, model.hidden, rms_norm.work(tokens, model.hidden, model.dtype_bytes))


def _embed(model: ModelSpec, work: Work) -> tuple[Component, ...]:
    cost = embed.work(work.tokens, model.hidden, model.dtype_bytes)
    return (Component("embed", work.tokens, model.hidden, cost),)


def _qkv_shapes(model: ModelSpec) -> tuple[tuple[int, int], ...]:
    """[in, out] of the products before attention. MLA (DeepSeek-V2, 2.1.2): query, latent down, and
    latent up, which decode absorbs into query and output at the same FLOPs."""
    m = model.mla
    if m is None:
        return ((model.hidden, model.qkv_dim),)
    q_out = model.heads * (m.qk_nope_head_dim + m.qk_rope_head_dim)
    q = ((model.hidden, m.q_lora_rank), (m.q_lora_rank, q_out)) if m.q_lora_rank else ((model.hidden, q_out),)
    up = (m.kv_lora_rank, model.heads * (m.qk_nope_head_dim + m.v_head_dim))
    return (*q, (model.hidden, m.kv_lora_rank + m.qk_rope_head_dim), up)


def _pre_attn(model: ModelSpec, work: Work) -> tuple[Component, ...]:
    heads, width = model.heads + model.kv_heads, model.head_dim
    if model.mla is not None:  # one rotated key row a token, shared by the heads
        heads, width = model.heads + 1, model.mla.qk_rope_head_dim
    cost = rope.work(work.tokens, heads, width, model.dtype_bytes)
    return (
        _norm(work.tokens, model),
        *(_linear("qkv_proj", work.tokens, k, n, model) for k, n in _qkv_shapes(model)),
        Component("rope", work.tokens, heads * width, cost),
    )


def _attn_prefill(model: ModelSpec, work: Work) -> tuple[Component, ...]:
    heads, kv_heads, width = model.heads, model.kv_heads, model.head_dim
    if model.mla is not None:  # scores over nope + rope, sums over v: their mean is what the formula counts twice
        m = model.mla
        kv_heads, width = heads, (m.qk_nope_head_dim + m.qk_rope_head_dim + m.v_head_dim) // 2
    cost = attention.prefill_work(work.tokens, work.context, heads, kv_heads, width, model.dtype_bytes)
    # The prompt length s whose s (s + 1) / 2 pairs are the mean number: long prompts weigh more.
    pairs = work.context / max(1, work.sequences)
    return (Component("attn_prefill", (math.sqrt(1 + 8 * pairs) - 1) / 2, work.sequences * heads * width, cost),)


def _attn_decode(model: ModelSpec, work: Work) -> tuple[Component, ...]:
    mean_context = work.context / max(1, work.sequences)
    if work.variant == "expanded":
        cost = _expanded_decode_cost(model, work)
        return (Component("attn_decode.expanded", mean_context, work.sequences * model.kv_dim, cost),)
    if model.mla is not None:
        cost = _mla_decode_cost(model, work)
    else:
        cost = attention.decode_work(
            work.sequences, work.context, model.heads, model.kv_heads, model.head_dim, model.dtype_bytes
        )
    return (Component("attn_decode", mean_context, work.sequences * model.kv_dim, cost),)


def _expanded_decode_cost(model: ModelSpec, work: Work) -> Cost:
    """FlexGen-MoE's attention on the host (mha_gen): K and V are read, written to a workspace in fp32,
    read there, written once for each query head of their group, and read by the products."""
    plain = attention.decode_work(work.sequences, work.context, model.heads, model.kv_heads, model.head_dim, model.dtype_bytes)
    group = model.heads // model.kv_heads
    fp32 = 4 * work.context * model.kv_dim
    return Cost(plain.flops, plain.bytes + (2 + 2 * group) * fp32)


def _mla_decode_cost(model: ModelSpec, work: Work) -> Cost:
    """Absorbed form (DeepSeek-V2, 2.1.2): each head scores the latent and rope row and sums latent
    rows; every head reads the same row, so its bytes count once."""
    m = model.mla
    assert m is not None
    row = m.kv_lora_rank + m.qk_rope_head_dim
    flops = 2 * work.context * model.heads * (row + m.kv_lora_rank)
    rows_in_out = work.sequences * model.heads * (row + m.kv_lora_rank)
    return Cost(flops, (work.context * row + rows_in_out) * model.dtype_bytes)


def _post_attn(model: ModelSpec, work: Work) -> tuple[Component, ...]:
    if work.experts == 0:  # a leading dense layer
        return (*_attn_out(model, work), _ffn("dense_ffn", work.tokens, model.hidden, model.dense_ffn, model.dtype_bytes))
    return (*_gate(model, work), *_shared(model, work), *_routed(model, work), *_combine(model, work))


def _attn_out(model: ModelSpec, work: Work) -> tuple[Component, ...]:
    return _linear("o_proj", work.tokens, model.attention_out_dim, model.hidden, model), _norm(work.tokens, model)


def _gate(model: ModelSpec, work: Work) -> tuple[Component, ...]:
    """All of a layer up to where it is known which experts its tokens need."""
    return (*_attn_out(model, work), *_route(model, work))


def _route(model: ModelSpec, work: Work) -> tuple[Component, ...]:
    b, k, hidden = model.dtype_bytes, model.top_k, model.hidden
    return (
        Component("router", work.tokens, hidden * work.experts, router.work(work.tokens, hidden, work.experts, k, b)),
        Component("dispatch", work.tokens, k * hidden, dispatch.work(work.tokens, k, hidden, b)),
    )


def _shared(model: ModelSpec, work: Work) -> tuple[Component, ...]:
    if not model.shared_experts or not work.tokens:
        return ()
    return (_ffn("shared_ffn", work.tokens, model.hidden, model.shared_experts * model.shared_ffn, model.dtype_bytes),)


def _routed(model: ModelSpec, work: Work) -> tuple[Component, ...]:
    name, b, hidden = "expert_ffn", model.dtype_bytes, model.hidden
    parts = []
    for rows, count in expert_rows(work, model.top_k):
        if work.variant == "tiled":
            name, rows = "expert_ffn.tiled", -(-rows // TILE_ROWS) * TILE_ROWS
        one = _ffn(name, rows, hidden, model.ffn, b)
        cost = Cost(one.cost.flops * count, (one.cost.bytes + _stored_elsewise(model)) * count)
        parts.append(one._replace(units=one.units * count, cost=cost))
    return tuple(parts)


def _stored_elsewise(model: ModelSpec) -> int:
    """Bytes of one expert beyond those of the model's dtype."""
    return model.expert_bytes - 3 * model.hidden * model.ffn * model.dtype_bytes if model.expert_dtype else 0


def _fused_moe(model: ModelSpec, work: Work) -> tuple[Component, ...]:
    """A routed layer behind its norm."""
    return (*_route(model, work), *_shared(model, work), *_routed(model, work), *_combine(model, work))


def _tile(model: ModelSpec, work: Work) -> tuple[Component, ...]:
    """A tile of a fused layer: `work.tokens` rows, `work.columns` columns."""
    op, shape = tiles.OPS.index(work.op), tiles.Shape(work.tokens, model.hidden, model.ffn, model.experts, model.top_k)
    units = {tiles.ROUTE: model.hidden, tiles.GATE_UP: 2 * model.hidden, tiles.DOWN: model.ffn, tiles.COMBINE: model.top_k}
    cost, count = tiles.cost(op, work.tokens, work.columns, shape, model.dtype_bytes), work.columns * units.get(op, 1)
    if op in (tiles.GATE_UP, tiles.DOWN):
        cost += Cost(0, _stored_elsewise(model) * count // (3 * model.hidden * model.ffn))
    return (Component(work.op, work.tokens, count, cost),)


def _experts(model: ModelSpec, work: Work) -> tuple[Component, ...]:
    """Experts with the rows in `expert_tokens`; the shared ones too, where `tokens` go through them."""
    return (*_shared(model, work), *(_routed(model, work) if work.expert_tokens else ()))


def _combine(model: ModelSpec, work: Work) -> tuple[Component, ...]:
    k, hidden = model.top_k, model.hidden
    return (Component("combine", work.tokens, k * hidden, combine.work(work.tokens, k, hidden, model.dtype_bytes)),)


def _ffn(name: str, rows: int, hidden: int, ffn: int, b: int) -> Component:
    return Component(name, rows, 3 * hidden * ffn, expert_ffn.work(rows, hidden, ffn, b))


def _sample(model: ModelSpec, work: Work) -> tuple[Component, ...]:
    cost = sample.work(work.sequences, model.hidden, model.vocab, model.dtype_bytes)
    return (Component("sample", work.sequences, model.hidden * model.vocab, cost),)


_BUILDERS = {
    "embed": _embed,
    "pre_attn": _pre_attn,
    "attn_prefill": _attn_prefill,
    "attn_decode": _attn_decode,
    "post_attn": _post_attn,
    "gate": _gate,
    "experts": _experts,
    "cpu_experts": _experts,
    "combine": _combine,
    "sample": _sample,
    "fused_moe": _fused_moe,
    **dict.fromkeys(tiles.OPS, _tile),
}


def expert_rows(work: Work, top_k: int) -> list[tuple[int, float]]:
    """(rows of an expert, how many experts have that many) of one routed task.

    From the routing trace where `work.expert_tokens` tells it. Otherwise the expectation under
    independent uniform routing, each expert's rows being Binomial(tokens, top_k / experts): exact
    probabilities up to 64 tokens, the mean above, where the distribution is narrow beside the
    slope of any cost curve. Experts without rows cost nothing.
    """
    if work.expert_tokens:
        counts: dict[int, float] = {}
        for rows in work.expert_tokens:
            if rows:
                counts[rows] = counts.get(rows, 0.0) + 1.0
        return sorted(counts.items())
    p = top_k / work.experts
    if work.tokens > EXACT_TOKENS:
        return [(max(1, round(work.tokens * p)), work.experts * (1.0 - (1.0 - p) ** work.tokens))]
    pairs, mass = [], (1.0 - p) ** work.tokens if p < 1 else 0.0
    if p == 1:
        return [(work.tokens, float(work.experts))]
    for rows in range(1, work.tokens + 1):
        mass *= (work.tokens - rows + 1) / rows * p / (1.0 - p)
        if mass * work.experts > 1e-6:
            pairs.append((rows, mass * work.experts))
    return pairs
