"""The language model in training: Mixtral's architecture, written for speed on a few cores.

Its mathematics is that of `transformers.MixtralForCausalLM` (a test compares the logits): RMSNorm, RoPE in the
half-split form, grouped-query attention, top-k of a softmax router with the chosen weights renormalised, SwiGLU
experts. The dense twin has one SwiGLU of k times the width, so the same arithmetic per token.

Shapes: N tokens, B sequences of S, H hidden, E experts, k chosen, I expert width, M rows in the
experts' blocks (N k, each block filled up to a multiple of `BLOCK`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BLOCK = 64
"""The experts' blocks are a multiple of this many rows, so that few shapes occur and the libraries' compiled kernels are reused."""


@dataclass(frozen=True, slots=True)
class Config:
    """Sizes. `experts` = 1 makes the dense twin, whose width is then `k * intermediate`.

    With `bfloat16` the matrix products of the training run in it (weights, residual stream and router stay in float32).
    """

    hidden: int = 128
    intermediate: int = 128
    layers: int = 6
    heads: int = 2
    kv_heads: int = 1
    experts: int = 16
    k: int = 2
    vocabulary: int = 258
    theta: float = 10000.0
    eps: float = 1e-5
    context: int = 1024
    bfloat16: bool = True

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads

    @property
    def dtype(self) -> torch.dtype:
        """Of the matrix products."""
        return torch.bfloat16 if self.bfloat16 else torch.float32


class Dispatch(torch.autograd.Function):
    """Token rows copied into the experts' blocks: x [N, H] -> [M, H]; slots that nobody uses hold a copy of token 0.

    `source` [M] is the token of each slot, `place` [N k] the slot of each (token, choice). The way back is a gather, which is
    several times faster than index_add; unused slots are left out of it.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, source: Tensor, place: Tensor, k: int) -> Tensor:
        ctx.place, ctx.k = place, k
        return x.index_select(0, source)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        (g,) = grads
        return g.index_select(0, ctx.place).view(-1, ctx.k, g.shape[1]).sum(1), None, None, None


class Collect(torch.autograd.Function):
    """Rows of the slots in `place`: y [M, H] -> [N k, H]. No slot is taken twice, so the way back is a copy."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, place: Tensor) -> Tensor:
        ctx.place, ctx.shape = place, y.shape
        return y.index_select(0, place)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (g,) = grads
        return g.new_zeros(ctx.shape).index_copy_(0, ctx.place, g), None


class GroupedLinear(torch.autograd.Function):
    """Each expert's block of rows times its matrix: x [M, in], w [E, out, in], bounds of the blocks -> [M, out]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, bounds: list[int]) -> Tensor:
        ctx.save_for_backward(x, w)
        ctx.bounds = bounds
        out = x.new_empty(x.shape[0], w.shape[1])
        for e, (a, b) in enumerate(pairwise(bounds)):
            torch.mm(x[a:b], w[e].t(), out=out[a:b])
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        (g,) = grads
        x, w = ctx.saved_tensors
        dx, dw = torch.empty_like(x), torch.empty_like(w)
        for e, (a, b) in enumerate(pairwise(ctx.bounds)):
            torch.mm(g[a:b], w[e], out=dx[a:b])
            torch.mm(g[a:b].t(), x[a:b], out=dw[e])
        return dx, dw, None


dispatch: Any = Dispatch.apply
collect: Any = Collect.apply
grouped_linear: Any = GroupedLinear.apply


def slots(chosen: Tensor, experts: int) -> tuple[Tensor, Tensor, Tensor, list[int]]:
    """`source` and `place` (see `Dispatch`) of chosen [N, k], rows an expert gets [experts], bounds of the blocks [experts + 1]."""
    flat = chosen.reshape(-1)
    counts = torch.bincount(flat, minlength=experts)
    ends = ((counts + BLOCK - 1) // BLOCK * BLOCK).cumsum(0)
    order = flat.argsort(stable=True)
    by_expert = flat[order]
    shift = torch.cat((ends.new_zeros(1), ends[:-1] - counts.cumsum(0)[:-1]))
    slot = torch.arange(len(flat)) + shift[by_expert]
    bounds = [0, *ends.tolist()]
    source = torch.zeros(bounds[-1], dtype=torch.int64)
    source[slot] = order // chosen.shape[1]
    place = torch.empty_like(order)
    place[order] = slot
    return source, place, counts, bounds


def rope_tables(config: Config, length: int) -> tuple[Tensor, Tensor]:
    """cos, sin [length, head_dim]."""
    d = config.head_dim
    frequency = 1.0 / (config.theta ** (torch.arange(0, d, 2, dtype=torch.float32) / d))
    angle = torch.outer(torch.arange(length, dtype=torch.float32), frequency)
    angle = torch.cat((angle, angle), -1)
    return angle.cos().to(config.dtype), angle.sin().to(config.dtype)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps))


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """RoPE of x [B, heads, S, head_dim], halves paired."""
    a, b = x.chunk(2, -1)
    return x * cos + torch.cat((-b, a), -1) * sin


def swiglu(gate_up: Tensor) -> Tensor:
    gate, up = gate_up.chunk(2, -1)
    return F.silu(gate) * up


class Attention(nn.Module):
    def __init__(self, c: Config) -> None:
        super().__init__()
        self.c = c
        self.q = nn.Linear(c.hidden, c.heads * c.head_dim, bias=False)
        self.k = nn.Linear(c.hidden, c.kv_heads * c.head_dim, bias=False)
        self.v = nn.Linear(c.hidden, c.kv_heads * c.head_dim, bias=False)
        self.o = nn.Linear(c.heads * c.head_dim, c.hidden, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        b, s, _ = x.shape
        c = self.c
        w = torch.cat((self.q.weight, self.k.weight, self.v.weight)).to(c.dtype)
        rows = F.linear(x.to(c.dtype), w).view(b, s, c.heads + 2 * c.kv_heads, c.head_dim).transpose(1, 2)
        q, k, v = torch.split(rows, [c.heads, c.kv_heads, c.kv_heads], 1)
        group = c.heads // c.kv_heads
        k = rotate(k, cos, sin).repeat_interleave(group, 1).reshape(-1, s, c.head_dim)
        v = v.repeat_interleave(group, 1).reshape(-1, s, c.head_dim)
        q = rotate(q, cos, sin).reshape(-1, s, c.head_dim)
        mask = torch.full((s, s), float("-inf"), dtype=c.dtype).triu(1).expand(len(q), s, s)
        share = torch.baddbmm(mask, q, k.transpose(1, 2), alpha=c.head_dim**-0.5).softmax(-1)
        out = torch.bmm(share, v).view(b, c.heads, s, c.head_dim)
        return F.linear(out.transpose(1, 2).reshape(b, s, -1), self.o.weight.to(c.dtype)).float()


class Experts(nn.Module):
    """Router and experts; `forward` also gives the balance loss, the z-loss and the chosen experts [N, k]."""

    def __init__(self, c: Config) -> None:
        super().__init__()
        self.c = c
        self.gate = nn.Parameter(torch.empty(c.experts, c.hidden))
        self.gate_up = nn.Parameter(torch.empty(c.experts, 2 * c.intermediate, c.hidden))
        self.down = nn.Parameter(torch.empty(c.experts, c.hidden, c.intermediate))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        c = self.c
        n, h = x.shape
        logits = F.linear(x, self.gate)
        probability = logits.softmax(-1)
        weight, chosen = probability.topk(c.k, -1)
        weight = weight / weight.sum(-1, keepdim=True)
        source, place, counts, bounds = slots(chosen, c.experts)
        rows = dispatch(x.to(c.dtype), source, place, c.k)
        rows = swiglu(grouped_linear(rows, self.gate_up.to(c.dtype), bounds))
        rows = grouped_linear(rows, self.down.to(c.dtype), bounds)
        out = (collect(rows, place).view(n, c.k, h) * weight.unsqueeze(-1)).sum(1)
        balance = c.experts * (counts / (n * c.k) * probability.mean(0)).sum()
        z = logits.logsumexp(-1).pow(2).mean()
        return out, torch.stack((balance, z)), chosen


class Dense(nn.Module):
    """The dense twin's feed-forward: one SwiGLU, as wide as the k experts of a token together."""

    def __init__(self, c: Config) -> None:
        super().__init__()
        self.c = c
        self.gate_up = nn.Parameter(torch.empty(2 * c.k * c.intermediate, c.hidden))
        self.down = nn.Parameter(torch.empty(c.hidden, c.k * c.intermediate))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        t = self.c.dtype
        out = F.linear(swiglu(F.linear(x.to(t), self.gate_up.to(t))), self.down.to(t)).float()
        return out, x.new_zeros(2), torch.zeros(len(x), 1, dtype=torch.int64)


class Layer(nn.Module):
    def __init__(self, c: Config) -> None:
        super().__init__()
        self.c = c
        self.norm1 = nn.Parameter(torch.ones(c.hidden))
        self.norm2 = nn.Parameter(torch.ones(c.hidden))
        self.attention = Attention(c)
        self.mlp: nn.Module = Experts(c) if c.experts > 1 else Dense(c)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = x + self.attention(rms_norm(x, self.norm1, self.c.eps), cos, sin)
        y, losses, chosen = self.mlp(rms_norm(x, self.norm2, self.c.eps).view(-1, x.shape[-1]))
        return x + y.view_as(x), losses, chosen


class LanguageModel(nn.Module):
    def __init__(self, c: Config) -> None:
        super().__init__()
        self.c = c
        self.embedding = nn.Parameter(torch.empty(c.vocabulary, c.hidden))
        self.blocks = nn.ModuleList(Layer(c) for _ in range(c.layers))
        self.norm = nn.Parameter(torch.ones(c.hidden))
        self.head = nn.Parameter(torch.empty(c.vocabulary, c.hidden))

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        """ids [B, S] -> logits [B, S, vocabulary], mean (balance, z) loss over the layers [2], chosen experts a layer [N, k]."""
        cos, sin = rope_tables(self.c, ids.shape[1])
        x = F.embedding(ids, self.embedding)
        losses, chosen = [], []
        for block in self.blocks:
            x, loss, experts = block(x, cos, sin)
            losses.append(loss)
            chosen.append(experts)
        logits = F.linear(rms_norm(x, self.norm, self.c.eps).to(self.c.dtype), self.head.to(self.c.dtype)).float()
        return logits, torch.stack(losses).mean(0), chosen


def initialise(model: LanguageModel, seed: int) -> None:
    """Normal weights of variance 1 / fan-in; what is added to the residual stream divided by sqrt(2 layers) on top (GPT-2)."""
    draw = torch.Generator().manual_seed(seed)
    for name, p in model.named_parameters():
        if p.dim() == 1:
            continue
        std = 1.0 / math.sqrt(p.shape[-1])
        if name.endswith(("down", "o.weight")):
            std /= math.sqrt(2 * model.c.layers)
        if name.endswith(("head", "mlp.gate")):
            std = 0.02
        with torch.no_grad():
            p.normal_(0.0, std, generator=draw)
