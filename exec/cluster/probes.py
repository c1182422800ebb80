"""What ranks are calibrated with: whole layers of sizes that no validation grid has."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import NamedTuple

from exec.cluster.runs import Setup, layers_setup
from sim import models
from sim.models.spec import ModelSpec

LAYERS = 4
WEIGHTS = 2


class Probe(NamedTuple):
    """Layers to calibrate with: none of them is one of the grid that validates."""

    scheduler: str
    tokens: int
    hidden: int
    ffn: int
    experts: int
    top_k: int
    skew: float


PROBES = (
    Probe("bulk-sync", 384, 512, 1792, 8, 2, 0.0),
    Probe("overlapped", 800, 512, 1024, 8, 2, 0.4),
    Probe("chunked", 640, 384, 1536, 8, 2, 0.0),
    Probe("bulk-sync", 200, 640, 1280, 16, 4, 0.3),
    Probe("overlapped", 1300, 256, 768, 16, 2, 0.0),
    Probe("chunked", 320, 768, 1024, 8, 1, 0.2),
    Probe("overlapped", 96, 512, 1792, 8, 2, 0.0),
    Probe("bulk-sync", 1100, 384, 640, 8, 3, 0.0),
)

ON_GPUS = (
    Probe("bulk-sync", 4096, 2048, 4096, 8, 2, 0.0),
    Probe("overlapped", 8192, 1024, 4096, 16, 2, 0.4),
    Probe("chunked", 6144, 2048, 2048, 16, 2, 0.0),
    Probe("bulk-sync", 1536, 3072, 4096, 16, 4, 0.3),
    Probe("overlapped", 12288, 1024, 2048, 32, 2, 0.0),
    Probe("chunked", 2048, 4096, 2048, 16, 1, 0.2),
    Probe("overlapped", 256, 2048, 4096, 8, 2, 0.0),
    Probe("bulk-sync", 10240, 1024, 2048, 16, 3, 0.0),
)
"""On GPUs layers as short as those above are launches and nothing else."""


def probes_of(device: str) -> tuple[Probe, ...]:
    """For ranks with a device of that kind, see `Order.device`."""
    return ON_GPUS if device == "cuda" else PROBES


def sized(hidden: int, ffn: int, experts: int, top_k: int, layers: int = WEIGHTS) -> ModelSpec:
    """MoE layers of these sizes; what else a model has is the bundled one's."""
    base = models.load("tiny-mixtral")
    return replace(base, name=f"moe-{hidden}x{ffn}x{experts}", hidden=hidden, ffn=ffn, experts=experts, top_k=top_k, layers=layers)


def threads_of(ranks: int) -> int:
    """Threads of each rank's compute lane, where all ranks run on this computer."""
    return max(1, (os.cpu_count() or 1) // ranks)


def setup_of(probe: Probe, ranks: int, device: str = "") -> Setup:
    spec = sized(probe.hidden, probe.ffn, probe.experts, probe.top_k)
    return layers_setup(
        spec, [probe.tokens] * ranks, probe.scheduler, layers=LAYERS, skew=probe.skew, seed=17, threads=threads_of(ranks), device=device
    )
