"""A whole routed layer on the CPU: the fused kernel, the same steps kernel by kernel, and torch."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F

from exec import decoder
from exec.bench.case import Case, agree, floats
from exec.fused import program_of
from exec.products import product
from kernels import combine, dispatch, router
from kernels.fused_moe.host import HostLaunch, Layer
from kernels.fused_moe.tiles import work
from sim.models.spec import ModelSpec
from sim.schedulers.ticket import body_of, tiles_of

TOKENS = (1, 8, 64)


def cases(spec: ModelSpec, threads: int) -> Iterator[Case]:
    """From the layer's normed input to what is added to the residual, for a few numbers of tokens."""
    gate = floats(spec.experts, spec.hidden) * np.float32(2 * spec.hidden**-0.5)
    experts = floats(spec.experts * 3 * spec.hidden * spec.ffn) * np.float32(spec.hidden**-0.5)
    for tokens in TOKENS:
        yield _case(spec, tokens, threads, gate, experts)


def _case(spec: ModelSpec, tokens: int, threads: int, gate: np.ndarray, experts: np.ndarray) -> Case:
    x, residual = floats(tokens, spec.hidden), floats(tokens, spec.hidden + 1)[:, 1:].copy()
    fused, steps = np.empty_like(x), np.empty_like(x)
    ids, weights = np.empty((tokens, spec.top_k), np.int16), np.empty((tokens, spec.top_k), np.float32)
    tiles = tiles_of(spec, tokens, blocks=threads)
    launch = HostLaunch(tiles, program_of(body_of(tiles)), threads)
    layer = Layer(x, gate, experts, residual, fused, ids, weights)
    space = np.zeros(decoder.scratch_floats(spec, tokens, threads=threads), np.float32)

    def unfused() -> None:
        take = decoder.Scratch(space)
        logits = take.take(tokens, spec.experts)
        product(x, gate, logits)
        chosen, shares = decoder.route(logits, spec.top_k)
        positions, offsets = take.take(tokens, spec.top_k).view(np.int32), take.take(spec.experts + 1).view(np.int32)
        rows = take.take(tokens * spec.top_k, spec.hidden)
        dispatch.forward(x, chosen, offsets, positions, rows)
        decoder.run_experts(spec, (experts,), rows, offsets, take)
        np.copyto(steps, residual)
        combine.forward(rows, positions, shares, steps)

    by_torch = _Torch(spec, x, residual, gate, experts)

    def check() -> None:
        for found in (fused, steps):
            agree(found, by_torch().numpy())()

    shape = f"{tokens} tokens, {spec.experts} experts, top-{spec.top_k}, hidden {spec.hidden}, ffn {spec.ffn}"
    variants = {"fused kernel": lambda: launch(layer), "kernel by kernel": unfused, "torch, one product an expert": by_torch}
    return Case("fused_moe", shape, "fp32", threads, work(tiles.shape, _expert_rows(x, gate, spec.top_k), 4), variants, check)


def _expert_rows(x: np.ndarray, gate: np.ndarray, top_k: int) -> list[int]:
    """What this input really chooses."""
    ids, _ = router.reference(x @ gate.T, top_k)
    return np.bincount(ids.ravel(), minlength=len(gate)).tolist()


class _Torch:
    """The layer as torch users write it."""

    def __init__(self, spec: ModelSpec, x: np.ndarray, residual: np.ndarray, gate: np.ndarray, experts: np.ndarray) -> None:
        self.spec = spec
        self.x, self.residual, self.gate = (torch.from_numpy(a) for a in (x, residual, gate))
        flat, split = torch.from_numpy(experts).view(spec.experts, -1), 2 * spec.ffn * spec.hidden
        self.expand = flat[:, :split].view(spec.experts, 2 * spec.ffn, spec.hidden)
        self.contract = flat[:, split:].view(spec.experts, spec.hidden, spec.ffn)

    def __call__(self) -> torch.Tensor:
        shares, ids = (self.x @ self.gate.t()).topk(self.spec.top_k, dim=-1)
        shares, out = shares.softmax(-1), self.residual.clone()
        for e in ids.unique().tolist():
            tokens, place = (ids == e).nonzero(as_tuple=True)
            gate, up = (self.x[tokens] @ self.expand[e].t()).chunk(2, dim=-1)
            out.index_add_(0, tokens, ((F.silu(gate) * up) @ self.contract[e].t()) * shares[tokens, place, None])
        return out
