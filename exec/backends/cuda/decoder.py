"""The decoder's steps on a device, in torch; the counterpart of `exec.decoder`, with its shape letters.

Nothing here looks at device memory from the host, so that every step can be enqueued, and captured in
a graph. Activations and KV are float32, products of float32 weights are not rounded to TF32; expert
weights may be bf16 or fp16, their products then accumulate in float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from exec.backends.cuda import grouped

GATHER_BYTES = 1 << 26
"""K and V that the portable decode attention gathers at a time."""


class DeviceLayer(NamedTuple):
    """As `exec.weights.LayerWeights`, on the device."""

    attn_norm: torch.Tensor
    wqkv: torch.Tensor
    wo: torch.Tensor
    ffn_norm: torch.Tensor
    router: torch.Tensor


def rope_table(theta: float, head_dim: int, positions: int, device: torch.device) -> torch.Tensor:
    """[2, positions, D / 2]: cosine and sine of position times theta^(-2 i / D), computed in float64."""
    half = head_dim // 2
    frequency = theta ** (-torch.arange(half, dtype=torch.float64) / half)
    angle = torch.arange(positions, dtype=torch.float64)[:, None] * frequency
    return torch.stack([angle.cos(), angle.sin()]).float().to(device)


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight


def embed_tokens(table: torch.Tensor, ids: torch.Tensor, hidden: torch.Tensor) -> None:
    """hidden [T, H] = rows `ids` [T] int64 of table [V, H]."""
    torch.index_select(table, 0, ids, out=hidden)


def pre_attn(
    spec: Any, layer: DeviceLayer, hidden: torch.Tensor, positions: torch.Tensor, table: torch.Tensor, qkv: torch.Tensor
) -> None:
    """qkv [T, (h + 2 g) D] = RoPE(Wqkv norm(hidden [T, H])) at `positions` [T] int64."""
    torch.mm(rms_norm(hidden, layer.attn_norm, spec.norm_eps), layer.wqkv.t(), out=qkv)
    rope(spec, qkv, positions, table)


def rope(spec: Any, qkv: torch.Tensor, positions: torch.Tensor, table: torch.Tensor) -> None:
    """Rotate the query and key heads of qkv in place."""
    turned = spec.heads + spec.kv_heads
    x = qkv.view(len(qkv), -1, spec.head_dim)[:, :turned]
    cos, sin = (table[i].index_select(0, positions)[:, None] for i in range(2))
    a, b = x.chunk(2, dim=-1)
    x.copy_(torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1))


def _heads(spec: Any, qkv: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """q [T, h, D], k, v [T, g, D] of rows of qkv."""
    by_head = qkv.view(len(qkv), -1, spec.head_dim)
    q, k, v = by_head.split([spec.heads, spec.kv_heads, spec.kv_heads], dim=1)
    return q, k, v


def attn_prefill(spec: Any, qkv: torch.Tensor, offsets: Sequence[int], attn: torch.Tensor) -> None:
    """Causal attention of whole prompts, rows offsets[s] to offsets[s + 1] of qkv each; attn [T, h D]."""
    q, k, v = (x.transpose(0, 1) for x in _heads(spec, qkv))
    for a, b in zip(offsets, offsets[1:], strict=False):
        out = F.scaled_dot_product_attention(q[None, :, a:b], k[None, :, a:b], v[None, :, a:b], is_causal=True, enable_gqa=True)
        attn[a:b].view(b - a, spec.heads, spec.head_dim).copy_(out[0].transpose(0, 1))


def append_kv(spec: Any, qkv: torch.Tensor, k: torch.Tensor, v: torch.Tensor, rows: torch.Tensor) -> None:
    """K and V of qkv's rows to cache rows `rows` [T] int64 of k, v [cache rows, g D]."""
    width = k.shape[1]
    k.index_copy_(0, rows, qkv[:, -2 * width : -width])
    v.index_copy_(0, rows, qkv[:, -width:])


def attn_decode(
    spec: Any, qkv: torch.Tensor, k: torch.Tensor, v: torch.Tensor, starts: torch.Tensor, before: torch.Tensor, longest: int,
    attn: torch.Tensor,
) -> None:  # fmt: skip
    """Append each sequence's K and V behind its entries, then attend over them.

    starts [S]: first cache row of each sequence; before [S]: entries before the append, at most
    `longest` - 1 of them; both int64. attn [S, h D].
    """
    append_kv(spec, qkv, k, v, starts + before)
    together = max(1, GATHER_BYTES // (2 * k.shape[1] * 4 * longest))
    steps = torch.arange(longest, device=qkv.device)
    q = _heads(spec, qkv)[0]
    for s in range(0, len(qkv), together):
        part = slice(s, s + together)
        seen = steps <= before[part, None]  # [S, longest]
        rows = (starts[part, None] + steps).where(seen, starts[part, None])
        keys, values = (x[rows].view(*rows.shape, spec.kv_heads, spec.head_dim).transpose(1, 2) for x in (k, v))
        out = F.scaled_dot_product_attention(q[part, :, None], keys, values, attn_mask=seen[:, None, None], enable_gqa=True)
        attn[part].copy_(out.reshape(-1, attn.shape[1]))


def route(logits: torch.Tensor, top_k: int, forced: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Expert ids [T, k] int64 and weights [T, k]: softmax over the chosen logits (Mixtral's renormalised top-k)."""
    if forced is None:
        chosen, ids = logits.topk(top_k, dim=-1)
    else:
        ids = forced
        chosen = logits.gather(1, ids)
    return ids, chosen.softmax(-1)


def post_attn(
    spec: Any, layer: DeviceLayer, experts: Sequence[torch.Tensor], attn: torch.Tensor, hidden: torch.Tensor,
    forced: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """Output projection, residual, norm, router, experts, residual; hidden [T, H] is updated in place.

    experts: flat pieces of whole experts in order, each expert gate [F, H], up [F, H], down [H, F].
    Returns expert ids [T, k] int64 and weights [T, k].
    """
    hidden.addmm_(attn, layer.wo.t())
    normed = rms_norm(hidden, layer.ffn_norm, spec.norm_eps)
    ids, weights = route(normed @ layer.router.t(), spec.top_k, forced)
    rows, offsets, back = dispatch(spec, normed, ids)
    combine(grouped.expert_ffn(spec, experts, rows, offsets), back, weights, hidden)
    return ids, weights


def dispatch(spec: Any, x: torch.Tensor, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rows of x [T, H] sorted by expert [T k, H], offsets [E + 1] int32 of each expert's, and each routed
    row's place among them [T k]."""
    flat = ids.flatten()
    order = flat.argsort(stable=True)
    offsets = torch.searchsorted(flat[order], torch.arange(spec.experts + 1, device=ids.device)).int()
    back = torch.empty_like(order).index_copy_(0, order, torch.arange(len(order), device=order.device))
    return x[order // spec.top_k], offsets, back


def combine(rows: torch.Tensor, back: torch.Tensor, weights: torch.Tensor, hidden: torch.Tensor) -> None:
    """hidden [T, H] += weighted rows of each token's experts, in one order from run to run: atomics would not be."""
    hidden.add_((rows[back].view(*weights.shape, rows.shape[1]) * weights[..., None]).sum(1))


def sample(
    spec: Any, final_norm: torch.Tensor, lm_head: torch.Tensor, hidden: torch.Tensor, last: torch.Tensor, out: torch.Tensor
) -> torch.Tensor:
    """Greedy: out [S] int64 = argmax of the logits [S, V] of rows `last` [S] of hidden; returns the logits."""
    logits = rms_norm(hidden.index_select(0, last), final_norm, spec.norm_eps) @ lm_head.t()
    out.copy_(logits.argmax(-1))
    return logits
