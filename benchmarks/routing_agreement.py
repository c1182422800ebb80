"""Do the executor and transformers route alike? `python benchmarks/routing_agreement.py [DIR] [--requests N] [--steps N]`

The executor's plain decoder generates from held-out text; transformers is fed the same tokens, prefill and decode, under
`traces.record`; the choices are compared token by token and layer by layer. Where they differ, the router's own
probabilities say whether it was a tie: the last expert taken and the first one left out within `TIE` of each other.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import traces
from exec.plain import PlainDecoder
from exec.prompts import byte_prompts
from exec.weights import load_weights
from sim.models.huggingface import load as load_spec
from traces import bundled

TIE = 1e-4
"""Relative difference of two probabilities below which float32 sums in another order may turn them round."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """Counts of (token, layer) rows.

    same: equal experts in equal order. swapped: equal experts, order turned round at a tie. ties: another expert, at a tie.
    different: neither; must be 0. weight_error: largest difference of a gate weight in the rows that are the same.
    """

    rows: int
    same: int
    swapped: int
    ties: int
    different: int
    weight_error: float


def compare(directory: Path, lengths: list[int], steps: int, seed: int = 0) -> Agreement:
    """Prompts of these lengths, `steps` decode steps each."""
    spec = load_spec(directory)
    prompts = byte_prompts(lengths, seed)
    mine, fed = executor_choices(spec, directory, prompts, steps)
    found = [transformers_choices(directory, tokens, len(p)) for tokens, p in zip(fed, prompts, strict=True)]
    experts, weights, shares = (np.concatenate([f[i] for f in found]) for i in range(3))
    return judge(*mine, experts, weights, shares)


def executor_choices(
    spec: Any, directory: Path, prompts: list[list[int]], steps: int
) -> tuple[tuple[np.ndarray, np.ndarray], list[np.ndarray]]:
    """(experts, weights) [tokens, layers, k] request after request, and the tokens that each request was fed."""
    plain = PlainDecoder(spec, load_weights(directory, spec), [np.array(p) for p in prompts], steps + 1)
    newest = plain.prefill()
    cuts = np.cumsum([len(p) for p in prompts])[:-1]
    parts = [[p] for p in zip(*(np.split(a, cuts) for a in _layers(plain)), strict=True)]
    fed = [list(p) for p in prompts]
    for _ in range(steps):
        for tokens, token in zip(fed, newest.tolist(), strict=True):
            tokens.append(token)
        newest = plain.step()
        for part, row in zip(parts, zip(*(np.split(a, len(prompts)) for a in _layers(plain)), strict=True), strict=True):
            part.append(row)
    rows = [row for part in parts for row in part]
    return (np.concatenate([r[0] for r in rows]), np.concatenate([r[1] for r in rows])), [np.array(t) for t in fed]


def _layers(plain: PlainDecoder) -> tuple[np.ndarray, np.ndarray]:
    return np.stack([ids for ids, _ in plain.routing], 1), np.stack([w for _, w in plain.routing], 1)


def transformers_choices(directory: Path, tokens: np.ndarray, prompt: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(experts, weights) [tokens, layers, k] as recorded, and the routers' probabilities [tokens, layers, E]."""
    model = _model(directory)
    shares: list[Any] = []
    gates = [m for n, m in model.named_modules() if n.endswith("mlp.gate")]
    handles = [g.register_forward_hook(lambda module, given, out: shares.append(out[0].softmax(-1).numpy())) for g in gates]
    ids = torch.from_numpy(tokens)[None, :]
    with torch.no_grad(), traces.record(model, ends=()) as recording:
        cache = model(ids[:, :prompt], use_cache=True).past_key_values
        for at in range(prompt, len(tokens)):
            model(ids[:, at : at + 1], past_key_values=cache, use_cache=True)
    for handle in handles:
        handle.remove()
    r = recording.routing()
    order = np.lexsort((r.layer, r.position))
    k, layers = r.shape.k, r.shape.layers
    calls = [np.stack(shares[i : i + layers], 1) for i in range(0, len(shares), layers)]
    return r.experts[order].reshape(-1, layers, k), r.weights[order].reshape(-1, layers, k), np.concatenate(calls)


_MODELS: dict[Path, Any] = {}


def _model(directory: Path) -> Any:
    if directory not in _MODELS:
        from transformers import MixtralForCausalLM

        _MODELS[directory] = MixtralForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    return _MODELS[directory]


def judge(mine: np.ndarray, my_weights: np.ndarray, theirs: np.ndarray, weights: np.ndarray, shares: np.ndarray) -> Agreement:
    """Count the rows of two recordings of the same tokens."""
    k = mine.shape[-1]
    same = (mine == theirs).all(-1)
    together = ~same & (np.sort(mine, -1) == np.sort(theirs, -1)).all(-1)
    ordered = -np.sort(-shares, -1)
    gaps = 1 - ordered[..., 1 : k + 1] / ordered[..., :k]  # the last: between the chosen and the first left out
    swapped = together & (gaps[..., : k - 1].min(-1, initial=np.inf) < TIE)
    ties = ~same & ~together & (gaps.min(-1) < TIE)
    different = int((~same & ~swapped & ~ties).sum())
    error = float(np.abs(my_weights - weights)[same].max())
    return Agreement(same.size, int(same.sum()), int(swapped.sum()), int(ties.sum()), different, error)


def main() -> None:
    parse = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parse.add_argument("directory", type=Path, nargs="?", default=bundled.MODEL)
    parse.add_argument("--requests", type=int, default=32)
    parse.add_argument("--steps", type=int, default=64)
    asked = parse.parse_args()
    torch.set_num_threads(1)
    lengths = np.random.default_rng(0).integers(32, 400, asked.requests).tolist()
    print(compare(asked.directory, lengths, asked.steps))


if __name__ == "__main__":
    main()
