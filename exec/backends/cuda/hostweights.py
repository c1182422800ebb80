"""Expert weights as they lie on the host: mapped from safetensors in their own dtype, or random ones.

The CPU executor converts to float32; what is streamed to a device stays as the file has it, and is read
from the file by the page when it is first copied.
"""

from __future__ import annotations

from pathlib import Path

import torch

from exec.backends.cuda.experts import Layer
from exec.checkpoint import Checkpoint
from exec.weights import Weights, expert_floats, load_dense, moe_prefix, random_dense
from sim.models.spec import ModelSpec

DTYPES = {"": torch.float32, "fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
BLOCK = 1 << 24
"""Random values that are drawn; a layer repeats them, shifted by a prime, so that no two experts are alike."""


def mapped_weights(directory: Path, spec: ModelSpec) -> Weights:
    """Dense weights in float32, experts as views of the file. Raises UserError as `exec.weights.load_weights`,
    and where the file's experts are not of `spec.expert_dtype`."""
    with Checkpoint(directory) as files:
        return load_dense(files, spec, tuple(_mapped_layer(files, spec, i) for i in range(spec.layers)))


def _mapped_layer(files: Checkpoint, spec: ModelSpec, layer: int) -> Layer:
    prefix, dtype = moe_prefix(files, layer) + "experts.", DTYPES[spec.expert_dtype]
    up, down = (spec.ffn, spec.hidden), (spec.hidden, spec.ffn)
    if prefix + "gate_up_proj" in files:
        fused = files.view(prefix + "gate_up_proj", (spec.experts, 2 * spec.ffn, spec.hidden), dtype)
        contract = files.view(prefix + "down_proj", (spec.experts, *down), dtype)
        return [part[e].flatten() for e in range(spec.experts) for part in (fused, contract)]
    names = (("w1", up), ("w3", up), ("w2", down))
    return [files.view(f"{prefix}{e}.{n}.weight", shape, dtype).flatten() for e in range(spec.experts) for n, shape in names]


def random_expert_weights(spec: ModelSpec, seed: int) -> Weights:
    """Random weights of the model's dtype in memory of their own, at the speed of a copy: for timing, at sizes
    for which drawing each value would take minutes."""
    dtype, size = DTYPES[spec.expert_dtype], spec.experts * expert_floats(spec)
    drawn = (torch.randn(min(size, BLOCK), generator=torch.Generator().manual_seed(seed)) * spec.hidden**-0.5).to(dtype)
    return random_dense(spec, seed, tuple([_repeated(drawn, size, 7919 * i)] for i in range(spec.layers)))


def _repeated(block: torch.Tensor, size: int, shift: int) -> torch.Tensor:
    """`size` values: the block over and over, each time turned by a prime."""
    out = torch.empty(size, dtype=block.dtype)
    for turn, start in enumerate(range(0, size, len(block))):
        part = out[start : start + len(block)]
        part.copy_(block.roll(shift + 104_729 * turn)[: len(part)])
    return out
