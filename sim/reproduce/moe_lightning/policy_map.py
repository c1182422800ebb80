"""Fig. 10: which hardware makes attention on the CPU the better policy, by the paper's own performance model.

The sweep of the artifact (plots/performance_model/cost_model.py): Mixtral 8x7B on two A100 80 GB, prompts of 512
tokens, the host scaled by r and the link from 100 to 500 GB/s. Its GB is 2^30. Attention on the CPU is what
`sim.policy.paper` answers; here is the other branch, which the released optimiser has not.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sim import models
from sim.models.spec import ModelSpec
from sim.policy import paper
from sim.reproduce.moe_lightning import published

PROMPT = 512
LINKS = (100, 200, 300, 400, 500)
RATIOS = tuple(range(1, 11))
GENS = (32, 128)
"""The paper says 32, its code sets 128."""

GPU_BYTES, GPU_BYTES_PER_S, GPU_FLOPS = 160 * paper.GIB, 4000 * paper.GIB, 600e12
"""Two A100 80 GB."""
HOST_BYTES, HOST_BYTES_PER_S, HOST_FLOPS = 200 * paper.GIB, 100 * paper.GIB, 1.6e12
"""The host at r = 1. (The paper swaps the units of the first two.)"""


@dataclass(frozen=True, slots=True)
class Point:
    """Tokens/s of the best policy with attention on either side; ratio: r; link: GB/s."""

    gen: int
    ratio: int
    link: int
    cpu: float
    gpu: float
    gpu_weights: float
    """Share of the expert weights that it keeps on the host."""

    @property
    def on_cpu(self) -> bool:
        return self.cpu > self.gpu


def sweep(gen: int) -> list[Point]:
    """Every point of the map."""
    model = models.load(published.MODEL)
    return [_point(model, gen, ratio, link) for ratio in RATIOS for link in LINKS]


def _point(model: ModelSpec, gen: int, ratio: int, link: int) -> Point:
    hardware = paper.Hardware(GPU_BYTES, GPU_BYTES_PER_S, GPU_FLOPS, HOST_FLOPS * ratio, link * paper.GIB)
    case = paper.Case(model, hardware, 1, PROMPT, gen, HOST_BYTES * ratio, HOST_BYTES_PER_S * ratio, "l4-padding")
    best = paper.optimise(case)
    gpu, weights = attention_on_gpu(case)
    return Point(gen, ratio, link, best.tokens_per_s if best else 0.0, gpu, weights)


def attention_on_gpu(case: paper.Case) -> tuple[float, float]:
    """Tokens/s and share of weights on the host of the best policy with A_g = 1.

    The artifact's rule charges the whole KV cache to the GPU however it is split, so that all of it stays there
    and the link brings weights only. The scan over batches stops at the first drop, and starts from what
    would fit with attention on the CPU.
    """
    most, weights = 0.0, 0.0
    microbatch = 1
    while (counts := paper.most_microbatches(case, microbatch)) > 0:
        tokens_per_s, on_host = _of_counts(case, microbatch, np.arange(1, counts + 1))
        drops = np.flatnonzero(np.diff(np.maximum(tokens_per_s, 0.0)) < 0)
        kept = tokens_per_s[: drops[0] + 1 if len(drops) else None]
        at = int(kept.argmax())
        if kept[at] >= most:
            most, weights = float(kept[at]), float(on_host[at])
        microbatch += 1 if microbatch < 4 else paper.MICROBATCH_STEP
    return most, weights


def _of_counts(case: paper.Case, microbatch: int, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(tokens/s, share of weights on the host) for each number of micro-batches [counts]; 0 where nothing fits."""
    m, batch = case.model, microbatch * counts
    context, width = case.prompt + case.gen, m.hidden // m.heads
    flops = microbatch * context * m.heads * (2 * width + 2)
    moved = paper.BYTES_PER_VALUE * microbatch * (2 * m.heads * width + 2 * context * m.kv_heads * width)
    attention_s = max(flops / case.hardware.gpu_flops, moved / case.hardware.gpu_bytes_per_s)
    gpu_s = (paper.experts_s(case, microbatch) + attention_s) * counts
    cache, all_layers, buffer = 4 * context * case.h_kv * batch * m.layers, case.layer_bytes * m.layers, 2 * case.layer_bytes
    home, work = paper.gpu_fixed(case, microbatch, 0)
    prefill = home + 4 * case.prompt * case.h_kv * (batch - 2 * microbatch)
    needed = np.maximum(prefill, 4 * m.hidden * batch + cache)
    free = case.hardware.gpu_bytes * paper.GPU_USABLE - case.other_bytes - needed - work - buffer
    on_gpu = np.minimum(1.0, free / (all_layers - buffer))
    link_s = case.layer_bytes * (1 - on_gpu) / case.hardware.link_bytes_per_s
    host = (1 - on_gpu) * (all_layers + buffer) + 2 * m.hidden * batch * case.prompt
    step_s = np.maximum(link_s, gpu_s)
    fits = (on_gpu >= 0) & (host <= case.cpu_bytes * paper.CPU_USABLE)
    return np.where(fits, batch * case.gen / (step_s * (case.gen - 1) * m.layers), 0.0), 1 - on_gpu


def agreement(points: list[Point]) -> tuple[int, int]:
    """(points whose winner is that of the released code, points of which that is known)."""
    told = published.CPU_ATTENTION_WINS[points[0].gen]
    known = [p for p in points if p.ratio in told]
    return sum((p.link in told[p.ratio]) == p.on_cpu for p in known), len(known)
