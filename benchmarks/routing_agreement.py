"""Do the executor and transformers route alike? `python benchmarks/routing_agreement.py [DIR] [--requests N] [--steps N] [--scheduler S]`

The executor really runs a scheduler on held-out text and records its routing, as `exec run --record-routing` does; transformers is fed
the same tokens, prefill and decode, under `traces.record`; the choices are compared token by token and layer by layer. Where
they differ, the router's own probabilities say whether it was a tie: experts that take each other's place are within `TIE`.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import traces
from exec.execute import execute, spec_of, stdlib_prompts
from exec.local import this_computer
from exec.weights import load_weights
from sim.job import prepare
from sim.schedulers.policy import Policy
from sim.workloads.lengths import Fixed, Uniform
from sim.workloads.schema import Workload
from traces import bundled
from traces.routing import Routing

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


def compare(directory: Path, requests: int, steps: int, scheduler: str = "cgopipe", seed: int = 0) -> Agreement:
    """Requests with prompts of 32 to 400 tokens and `steps` decode steps each, in four micro-batches."""
    recorded, prompts, fed = executor_choices(directory, requests, steps, scheduler, seed)
    found = [transformers_choices(directory, tokens, prompt) for tokens, prompt in zip(fed, prompts, strict=True)]
    experts, weights, shares = (np.concatenate([f[i] for f in found]) for i in range(3))
    return judge(*_by_token(recorded), experts, weights, shares)


def executor_choices(directory: Path, requests: int, steps: int, scheduler: str, seed: int) -> tuple[Routing, list[int], list[np.ndarray]]:
    """What the executor recorded; lengths of the prompts; what each request was fed: its prompt and all that was sampled but the last."""
    spec = spec_of(str(directory))
    workload = Workload(name="agreement", source="chosen", prompt=Uniform(min=32, max=400), generation=Fixed(tokens=steps + 1))
    job = prepare(spec, this_computer(), workload, scheduler, Policy(batch=requests, microbatch=-(-requests // 4)), seed=seed)
    done = execute(job, load_weights(directory, spec), record_routing=True)
    assert done.outcome.routing is not None
    prompts = stdlib_prompts(job)
    fed = [np.array([*p, *done.outcome.tokens[i][:-1]]) for i, p in enumerate(prompts)]
    return done.outcome.routing, [len(p) for p in prompts], fed


def _by_token(r: Routing) -> tuple[np.ndarray, np.ndarray]:
    """(experts, weights) [tokens, layers, k], request after request."""
    order = np.lexsort((r.layer, r.position, r.request_id))
    return tuple(a[order].reshape(-1, r.shape.layers, r.shape.k) for a in (r.experts, r.weights))  # type: ignore[return-value]


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
    layers = recording.routing().shape.layers
    calls = [np.stack(shares[i : i + layers], 1) for i in range(0, len(shares), layers)]
    return *_by_token(recording.routing()), np.concatenate(calls)


_MODELS: dict[Path, Any] = {}


def _model(directory: Path) -> Any:
    if directory not in _MODELS:
        from transformers import MixtralForCausalLM

        _MODELS[directory] = MixtralForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    return _MODELS[directory]


def judge(mine: np.ndarray, my_weights: np.ndarray, theirs: np.ndarray, weights: np.ndarray, shares: np.ndarray) -> Agreement:
    """Count the rows of two recordings of the same tokens."""
    same = (mine == theirs).all(-1)
    mine_p, theirs_p = (np.take_along_axis(shares, chosen.astype(np.int64), -1) for chosen in (mine, theirs))
    tied = ~same & (np.abs(mine_p / theirs_p - 1) < TIE).all(-1)
    together = (np.sort(mine, -1) == np.sort(theirs, -1)).all(-1)
    swapped, ties, different = tied & together, tied & ~together, int((~same & ~tied).sum())
    error = float(np.abs(my_weights - weights)[same].max())
    return Agreement(same.size, int(same.sum()), int(swapped.sum()), int(ties.sum()), different, error)


def main() -> None:
    parse = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parse.add_argument("directory", type=Path, nargs="?", default=bundled.MODEL)
    parse.add_argument("--requests", type=int, default=32)
    parse.add_argument("--steps", type=int, default=64)
    parse.add_argument("--scheduler", default="cgopipe")
    asked = parse.parse_args()
    torch.set_num_threads(1)
    print(compare(asked.directory, asked.requests, asked.steps, asked.scheduler))


if __name__ == "__main__":
    main()
