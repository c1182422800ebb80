"""Acceptance: under every scheduler the executor's logits are those of transformers' MixtralForCausalLM."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest

from exec import session
from exec.weights import load_weights, random_weights, save_hf
from sim import models
from sim.events import Request
from sim.models import ModelSpec
from sim.schedulers import registry
from sim.schedulers.policy import Policy
from tests.exec import tiny
from tests.exec.backends.support import machine

GEN = 17  # the prefill's token and 16 decode steps
MODELS = {
    "three small layers": tiny.spec(layers=3, hidden=96, ffn=160, heads=6, kv_heads=2, vocab=320),
    "tiny-mixtral": models.load("tiny-mixtral"),
}
SHAPES = {
    "one micro-batch of equal prompts": (Policy(batch=3, microbatch=3), (9, 9, 9)),
    "four micro-batches, unequal prompts": (Policy(batch=8, microbatch=2), (5, 31, 1, 12, 20, 3, 17, 8)),
    "a smaller last micro-batch": (Policy(batch=5, microbatch=3), (14, 2, 26, 7, 11)),
}
CASES = [*(("three small layers", shape) for shape in SHAPES), ("tiny-mixtral", "a smaller last micro-batch")]
MIB = 1024 * 1024
BUDGETS = {
    "three small layers": {},
    "tiny-mixtral": {"gpu": 250 * MIB, "cpu": 600 * MIB, "pinned": 120 * MIB},  # 380 MiB of weights: they are paged
}
CLOSE = 1e-5
"""A router whose k-th and next logits are closer than this may choose either."""


@pytest.fixture(scope="module")
def directories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    pytest.importorskip("transformers", reason="transformers is the oracle; `pip install tandem-moe[dev]` brings it")
    where = tmp_path_factory.mktemp("models")
    for name, spec in MODELS.items():
        save_hf(random_weights(spec, 11), spec, where / name)
    return {name: where / name for name in MODELS}


@cache
def _oracle(directory: Path):
    import torch
    from transformers import MixtralForCausalLM

    return MixtralForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()


def _by_transformers(directory: Path, spec: ModelSpec, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Logits [tokens, vocab] and whether each row's routers were decided clearly [tokens]."""
    import torch

    with torch.inference_mode():
        out = _oracle(directory)(torch.from_numpy(tokens)[None], output_router_logits=True)
    router = np.sort(np.stack([r.numpy() for r in out.router_logits]), axis=-1)
    margin = router[..., -spec.top_k] - router[..., -spec.top_k - 1]
    return out.logits[0].numpy(), np.minimum.accumulate(margin.min(axis=0)) > CLOSE


@pytest.mark.parametrize(("model", "shape"), CASES)
@pytest.mark.parametrize("scheduler", registry.names())
def test_logits_are_those_of_transformers(scheduler: str, model: str, shape: str, directories: dict[str, Path]) -> None:
    spec, directory = MODELS[model], directories[model]
    policy, lengths = SHAPES[shape]
    prompts = tiny.prompts(lengths, spec.vocab, seed=3)
    requests = [Request(i, n, GEN, GEN) for i, n in enumerate(lengths)]
    budgets = {**BUDGETS[model], **({} if registry.load(scheduler).streams else {"gpu": 600 * MIB})}
    weights, made = load_weights(directory, spec), registry.load(scheduler)(spec, policy)
    outcome = session.run(spec, weights, machine(**budgets), made, requests, prompts, keep_logits=True, poison=True)
    close, rows = 0, 0
    for request, prompt in zip(requests, prompts, strict=True):
        tokens = outcome.tokens[request.request_id]
        expected, clear = _by_transformers(directory, spec, np.concatenate([prompt, tokens[:-1]]))
        expected, clear = expected[len(prompt) - 1 :], clear[len(prompt) - 1 :]
        found = outcome.logits[request.request_id]
        assert found.shape == expected.shape == (GEN, spec.vocab)
        error = np.abs(found - expected).max(axis=1) / np.abs(expected).max(axis=1)
        assert (error[clear] < 1e-4).all(), f"request {request.request_id}: {error.max():.2g}"
        close, rows = close + int((~clear).sum()), rows + GEN
    assert close <= rows * 0.001, f"{close} of {rows} rows hang on a router's choice within {CLOSE}"
