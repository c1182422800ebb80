"""Small models of the Mixtral architecture, and transformers' verdict on them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from sim.models import ModelSpec
from sim.models import load as load_spec


def spec(**sizes: Any) -> ModelSpec:
    small = dict(layers=2, hidden=64, ffn=96, experts=8, top_k=2, heads=4, kv_heads=2, head_dim=16, vocab=300)
    return replace(load_spec("tiny-mixtral"), name="test", **{**small, **sizes})


def prompts(lengths: Sequence[int], vocab: int, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, vocab, n) for n in lengths]


def transformers_logits(directory: Path, sequences: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Logits [length, V] of each sequence by `MixtralForCausalLM`, one forward pass each."""
    import torch
    from transformers import MixtralForCausalLM

    model = MixtralForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    with torch.inference_mode():
        return [model(torch.from_numpy(s)[None]).logits[0].numpy() for s in sequences]
