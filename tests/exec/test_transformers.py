"""Acceptance: under every scheduler the executor's logits are those of transformers' MixtralForCausalLM."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest

from exec import session
from exec.weights import load_weights, random_weights, save_hf
from sim.events import Request
from sim.schedulers import registry
from sim.schedulers.policy import Policy
from tests.exec import tiny
from tests.exec.backends.support import machine

GEN = 17  # the prefill's token and 16 decode steps
SPEC = tiny.spec(layers=3, hidden=96, ffn=160, heads=6, kv_heads=2, vocab=320)
SHAPES = {
    "one micro-batch of equal prompts": (Policy(batch=3, microbatch=3), (9, 9, 9)),
    "four micro-batches, unequal prompts": (Policy(batch=8, microbatch=2), (5, 31, 1, 12, 20, 3, 17, 8)),
    "a smaller last micro-batch": (Policy(batch=5, microbatch=3), (14, 2, 26, 7, 11)),
}
CLOSE = 1e-5
"""A router whose k-th and next logits are closer than this may choose either."""


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("transformers", reason="transformers is the oracle; `pip install tandem-moe[dev]` brings it")
    where = tmp_path_factory.mktemp("model")
    save_hf(random_weights(SPEC, 11), SPEC, where)
    return where


@cache
def _oracle(directory: Path):
    import torch
    from transformers import MixtralForCausalLM

    return MixtralForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()


def _by_transformers(directory: Path, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Logits [tokens, vocab] and whether each row's routers were decided clearly [tokens]."""
    import torch

    with torch.inference_mode():
        out = _oracle(directory)(torch.from_numpy(tokens)[None], output_router_logits=True)
    router = np.sort(np.stack([r.numpy() for r in out.router_logits]), axis=-1)
    margin = router[..., -SPEC.top_k] - router[..., -SPEC.top_k - 1]
    return out.logits[0].numpy(), np.minimum.accumulate(margin.min(axis=0)) > CLOSE


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("scheduler", registry.names())
def test_logits_are_those_of_transformers(scheduler: str, shape: str, directory: Path) -> None:
    policy, lengths = SHAPES[shape]
    prompts = tiny.prompts(lengths, SPEC.vocab, seed=3)
    requests = [Request(i, n, GEN, GEN) for i, n in enumerate(lengths)]
    weights, made = load_weights(directory, SPEC), registry.load(scheduler)(SPEC, policy)
    outcome = session.run(SPEC, weights, machine(), made, requests, prompts, keep_logits=True, poison=True)
    close, rows = 0, 0
    for request, prompt in zip(requests, prompts, strict=True):
        tokens = outcome.tokens[request.request_id]
        expected, clear = _by_transformers(directory, np.concatenate([prompt, tokens[:-1]]))
        expected, clear = expected[len(prompt) - 1 :], clear[len(prompt) - 1 :]
        found = outcome.logits[request.request_id]
        assert found.shape == expected.shape == (GEN, SPEC.vocab)
        error = np.abs(found - expected).max(axis=1) / np.abs(expected).max(axis=1)
        assert (error[clear] < 1e-4).all(), f"request {request.request_id}: {error.max():.2g}"
        close, rows = close + int((~clear).sum()), rows + GEN
    assert close <= rows * 0.001, f"{close} of {rows} rows hang on a router's choice within {CLOSE}"
