"""SwiGLU of each expert over its own rows, their numbers known to the device only."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F


def expert_ffn(spec: Any, pieces: Sequence[torch.Tensor], rows: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
    """[T k, H] float32; rows [T k, H] sorted by expert, expert e's being offsets[e] to offsets[e + 1] (int32).

    `torch._grouped_mm` takes the offsets on the device; without it (see `how`) they are read by the
    host, which then waits for the router.
    """
    if how(rows.device, pieces[0].dtype) == GROUPED and len(pieces) == 1:
        return _grouped(spec, pieces[0], rows, offsets)
    return _one_by_one(spec, pieces, rows, offsets.tolist())


GROUPED, ONE_BY_ONE = "torch._grouped_mm", "one product an expert"


@cache
def how(device: torch.device, dtype: torch.dtype) -> str:
    """Which form `expert_ffn` takes on a device for weights of a dtype held in one piece."""
    if device.type != "cuda" or dtype != torch.bfloat16 or not hasattr(torch, "_grouped_mm"):
        return ONE_BY_ONE
    return GROUPED if torch.cuda.get_device_capability(device) >= (8, 0) else ONE_BY_ONE


def matrices(spec: Any, flat: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Views gate_up [E, 2 F, H] and down [E, H, F] of whole experts, flat."""
    size = 3 * spec.hidden * spec.ffn
    count = flat.numel() // size
    expand = flat.as_strided((count, 2 * spec.ffn, spec.hidden), (size, spec.hidden, 1))
    split = flat.storage_offset() + 2 * spec.ffn * spec.hidden
    return expand, flat.as_strided((count, spec.hidden, spec.ffn), (size, spec.ffn, 1), split)


def _grouped(spec: Any, flat: torch.Tensor, rows: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
    expand, contract = matrices(spec, flat)
    ends = offsets[1:]
    gate, up = torch._grouped_mm(rows.to(flat.dtype), expand.transpose(1, 2), offs=ends).float().chunk(2, dim=-1)
    return torch._grouped_mm((F.silu(gate) * up).to(flat.dtype), contract.transpose(1, 2), offs=ends).float()


def _one_by_one(spec: Any, pieces: Sequence[torch.Tensor], rows: torch.Tensor, offsets: Sequence[int]) -> torch.Tensor:
    out = torch.empty_like(rows)
    first = 0
    for piece in pieces:
        expand, contract = matrices(spec, piece)
        for e in range(len(expand)):
            a, b = offsets[first + e], offsets[first + e + 1]
            if a < b:
                gate, up = (rows[a:b].to(piece.dtype) @ expand[e].t()).float().chunk(2, dim=-1)
                out[a:b] = (F.silu(gate) * up).to(piece.dtype) @ contract[e].t()
        first += len(expand)
    assert first == spec.experts, f"weights of {first} experts given, {spec.experts} needed"
    return out
