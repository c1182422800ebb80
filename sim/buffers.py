"""Names of the buffers that tasks read and write, and the memory that each lives in.

A name is a kind and its indexes, joined by dots. i is a layer, j a micro-batch, h a half of the
weight buffer, p a page, s a slot, all from 0. Rows of a micro-batch are its sequences in the order
of `Task.requests` (prefill: all prompt rows of each); a cache keeps the rows of its sequences by
position, so that writing a position twice leaves one entry.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple


class Kind(NamedTuple):
    memory: str
    """gpu, cpu, or pinned (page-locked host memory)."""
    indexes: str
    holds: str


KINDS: dict[str, Kind] = {
    "hidden": Kind("gpu", "j", "activations [tokens, hidden]"),
    "qkv": Kind("gpu", "j", "Q, K and V rows [tokens, qkv_dim]"),
    "attn": Kind("gpu", "j", "attention output [tokens, attention_out_dim]"),
    "token": Kind("gpu", "j", "last sampled token of each sequence [sequences]"),
    "w": Kind("gpu", "hp", "page p of the streamed experts of one layer, in half h of the weight buffer"),
    "kv_gpu": Kind("gpu", "ij", "KV cache that stays on the GPU"),
    "kv_stage": Kind("gpu", "s", "KV cache of one (layer, micro-batch), on a visit from the host"),
    "routed": Kind("gpu", "j", "normed rows and their routes [tokens, hidden], [tokens, k], for the experts"),
    "moe": Kind("gpu", "j", "what each expert made of its rows [tokens * k, hidden], before they are combined"),
    "moe_part": Kind("gpu", "j", "the CPU's share of it [tokens, hidden], weighted and summed"),
    "expert": Kind("gpu", "s", "one routed expert, in slot s of the expert cache"),
    "pin": Kind("pinned", "p", "page p on its way from pageable memory to the GPU"),
    "qkv_host": Kind("pinned", "j", "Q, K and V rows for CPU attention"),
    "attn_host": Kind("pinned", "j", "output of CPU attention"),
    "routed_host": Kind("pinned", "j", "rows for experts that the CPU computes"),
    "moe_host": Kind("pinned", "j", "what the CPU made of them"),
    "expert_host": Kind("cpu", "s", "one routed expert, in slot s of the host's memory"),
    "kv_host": Kind("cpu", "ij", "KV cache of one (layer, micro-batch)"),
    "hidden_host": Kind("cpu", "j", "activations of a prefill micro-batch between two layers"),
}


@cache
def hidden(j: int) -> str:
    return f"hidden.{j}"


@cache
def qkv(j: int) -> str:
    return f"qkv.{j}"


@cache
def attn(j: int) -> str:
    return f"attn.{j}"


@cache
def token(j: int) -> str:
    return f"token.{j}"


@cache
def routed(j: int) -> str:
    return f"routed.{j}"


@cache
def moe(j: int) -> str:
    return f"moe.{j}"


@cache
def moe_part(j: int) -> str:
    return f"moe_part.{j}"


@cache
def expert(s: int) -> str:
    return f"expert.{s}"


@cache
def routed_host(j: int) -> str:
    return f"routed_host.{j}"


@cache
def moe_host(j: int) -> str:
    return f"moe_host.{j}"


@cache
def expert_host(s: int) -> str:
    return f"expert_host.{s}"


@cache
def qkv_host(j: int) -> str:
    return f"qkv_host.{j}"


@cache
def attn_host(j: int) -> str:
    return f"attn_host.{j}"


@cache
def hidden_host(j: int) -> str:
    return f"hidden_host.{j}"


@cache
def kv_host(i: int, j: int) -> str:
    return f"kv_host.{i}.{j}"


@cache
def kv_gpu(i: int, j: int) -> str:
    return f"kv_gpu.{i}.{j}"


@cache
def kv_stage(s: int) -> str:
    return f"kv_stage.{s}"


@cache
def pin(p: int) -> str:
    return f"pin.{p}"


@cache
def weight(h: int, p: int) -> str:
    return f"w.{h}.{p}"


@cache
def half(h: int, pages: int) -> tuple[str, ...]:
    """All pages of one half of the weight buffer."""
    return tuple(weight(h, p) for p in range(pages))


def parse(name: str) -> tuple[str, tuple[int, ...]]:
    """Kind and indexes of a buffer name. Raises ValueError for a name that is none."""
    kind, *rest = name.split(".")
    if kind not in KINDS or len(rest) != len(KINDS[kind].indexes) or not all(r.isdecimal() for r in rest):
        raise ValueError(f"buffer {name!r}: want a kind of {', '.join(KINDS)} and its indexes, as in 'w.0.3'")
    return kind, tuple(map(int, rest))


def memory(name: str) -> str:
    """The memory that a buffer lives in."""
    return KINDS[parse(name)[0]].memory
