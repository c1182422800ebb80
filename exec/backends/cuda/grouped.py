"""SwiGLU of each expert over its own rows, their numbers known to the device only."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F

from kernels import expert_ffn as kernel

GROUPED, NUMBA, ONE_BY_ONE = "torch._grouped_mm", "Numba-CUDA", "one product an expert, the host waiting for the router"


def expert_ffn(spec: Any, pieces: Sequence[torch.Tensor], rows: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
    """[T k, H] float32; rows [T k, H] sorted by expert, expert e's being offsets[e] to offsets[e + 1] (int32).

    pieces: flat weights of whole experts in order. Which form runs: see `how`.
    """
    form = how(rows.device, pieces[0].dtype, len(pieces))
    if form == GROUPED:
        return _grouped(spec, pieces[0], rows, offsets)
    if form == NUMBA:
        return _numba(spec, pieces, rows, offsets)
    return _one_by_one(spec, pieces, rows, offsets.tolist())


@cache
def how(device: torch.device, dtype: torch.dtype, pieces: int = 1) -> str:
    """The form for weights of a dtype in so many pieces: torch's takes bf16 in one piece from sm_80 on;
    ours anything, where Numba-CUDA is installed. Only the last looks at the offsets on the host."""
    if device.type != "cuda":
        return ONE_BY_ONE
    modern = torch.cuda.get_device_capability(device) >= (8, 0)
    if pieces == 1 and dtype == torch.bfloat16 and modern and hasattr(torch, "_grouped_mm"):
        return GROUPED
    return NUMBA if importlib.util.find_spec("numba_cuda") else ONE_BY_ONE


def matrices(spec: Any, flat: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Views gate_up [E, 2 F, H] and down [E, H, F] of whole experts, flat."""
    size = 3 * spec.hidden * spec.ffn
    count = flat.numel() // size
    expand = flat.as_strided((count, 2 * spec.ffn, spec.hidden), (size, spec.hidden, 1))
    split = flat.storage_offset() + 2 * spec.ffn * spec.hidden
    return expand, flat.as_strided((count, spec.hidden, spec.ffn), (size, spec.ffn, 1), split)


def numba_stream() -> Any:
    """torch's current stream, as Numba-CUDA's launches take it."""
    from kernels.cuda.jit import numba_cuda

    return numba_cuda().external_stream(torch.cuda.current_stream().cuda_stream)


def _grouped(spec: Any, flat: torch.Tensor, rows: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
    expand, contract = matrices(spec, flat)
    ends = offsets[1:]
    gate, up = torch._grouped_mm(rows.to(flat.dtype), expand.transpose(1, 2), offs=ends).float().chunk(2, dim=-1)
    return torch._grouped_mm((F.silu(gate) * up).to(flat.dtype), contract.transpose(1, 2), offs=ends).float()


def _numba(spec: Any, pieces: Sequence[torch.Tensor], rows: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
    dtype, count = pieces[0].dtype, len(rows)
    x = rows.to(dtype)
    gate_up, act = (torch.empty((count, width), dtype=dtype, device=rows.device) for width in (2 * spec.ffn, spec.ffn))
    out, first = torch.empty_like(x), 0
    for piece in pieces:
        kernel.grouped_cuda(x, offsets, piece, first, gate_up, act, out, stream=numba_stream())
        first += piece.numel() // (3 * spec.hidden * spec.ffn)
    return out.float()


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
