"""The files that the package carries: what they claim of themselves holds."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from traces import bundled
from traces.describe.tokens import Tokens, tokens_of
from traces.routing import Routing, RoutingIndex, read_routing

torch = pytest.importorskip("torch", reason="the bundled model is run by torch, which is not installed")

CEILING = 1.55
"""Bits per byte on held-out text that docs/bundled-model.md states, with contexts of up to 1,024 bytes."""
SCORES = json.loads((bundled.MODEL / "scores.json").read_text())


@cache
def routing() -> Routing:
    return read_routing(bundled.ROUTING)


@cache
def transformers_model() -> Any:
    transformers = pytest.importorskip("transformers", reason="the checkpoint is compared under transformers, which is not installed")
    return transformers.MixtralForCausalLM.from_pretrained(bundled.MODEL, dtype=torch.float32).eval()


def same_text() -> bool:
    from traces.train import corpus

    return corpus.description() == SCORES["text"]


def test_sizes() -> None:
    assert (bundled.MODEL / "model.safetensors").stat().st_size < 12_000_000
    assert bundled.ROUTING.stat().st_size < 3_000_000


def test_stated_scores() -> None:
    assert SCORES["context_1024"]["bits_per_byte"] <= CEILING
    assert min(SCORES["context_1024"]["load_entropy"]) >= 0.9
    assert min(SCORES["context_1024"]["specialisation"]) >= 0.1


def test_the_checkpoint_scores_as_stated() -> None:
    """A fiftieth of the held-out text; other Python versions have other text, but of the same kind."""
    from traces.train.evaluate import evaluate
    from traces.train.export import load

    scores = evaluate(load(bundled.MODEL), 256, 192, batch=16)
    assert abs(scores.bits_per_byte - SCORES["context_256"]["bits_per_byte"]) < 0.15
    assert scores.load_entropy.min() > 0.88


def test_transformers_gives_the_logits_of_the_training_code() -> None:
    from traces.train import corpus
    from traces.train.export import load

    ids = torch.from_numpy(corpus.tokens(True)[9000:9400].astype(np.int64))[None, :]
    with torch.no_grad():
        theirs, ours = transformers_model()(ids).logits, load(bundled.MODEL)(ids)[0]
    assert torch.allclose(theirs, ours, atol=2e-4)


def test_the_executor_reads_the_checkpoint() -> None:
    from exec.weights import load_weights
    from sim.models.huggingface import load as load_spec

    spec = load_spec(bundled.MODEL)
    assert (spec.experts, spec.top_k, spec.layers) == (16, 2, 6)
    weights = load_weights(bundled.MODEL, spec)
    assert np.array_equal(weights.lm_head, transformers_model().lm_head.weight.detach().numpy())


@pytest.mark.parametrize("scheduler", ["cgopipe", "resident"])
def test_executor_and_transformers_route_alike(scheduler: str) -> None:
    transformers_model()
    from benchmarks.routing_agreement import compare

    found = compare(bundled.MODEL, 4, 24, scheduler)
    assert found.rows > 6 * 4 * (32 + 24), found
    assert found.different == 0, found
    assert found.ties + found.swapped <= 0.002 * found.rows, found
    assert found.weight_error < 1e-4, found


def test_a_row_that_differs_is_counted() -> None:
    from benchmarks.routing_agreement import judge

    clear, even, close = [0.1, 0.5, 0.3, 0.1], [0.4, 0.4, 0.1, 0.1], [0.5, 0.2, 0.2, 0.1]
    shares = np.array([clear, even, close, close, even])[:, None]
    theirs = np.array([[[1, 2]], [[0, 1]], [[0, 1]], [[0, 1]], [[0, 1]]])
    mine = np.array([[[1, 2]], [[1, 0]], [[0, 2]], [[0, 3]], [[0, 2]]])
    weights = np.ones(theirs.shape) / 2
    found = judge(mine, weights, theirs, weights, shares)
    assert (found.rows, found.same, found.swapped, found.ties, found.different) == (5, 1, 1, 1, 2)


def test_the_trace_has_prompts_and_decode_of_every_request() -> None:
    r = routing()
    assert r.provenance.made == "recorded" and (r.shape.experts, r.shape.k, r.shape.layers) == (16, 2, 6)
    for request in range(int(r.request_id.max()) + 1):
        mine = r.take((r.request_id == request) & (r.layer == 3))
        assert sorted(mine.position.tolist()) == list(range(len(mine))), f"request {request}"
        prompt = int((~mine.decode).sum())
        assert prompt >= 16 and np.array_equal(mine.step, np.maximum(0, mine.position - prompt + 1)), f"request {request}"
    assert 0.2 < r.decode.mean() < 0.8


def test_the_trace_replays() -> None:
    index = RoutingIndex(routing())
    counts = index.expert_tokens((0, 3, 5), "decode", 2, 4)
    assert counts is not None and sum(counts) == 3 * 2


def test_the_trace_is_even_over_time_but_local() -> None:
    """Load entropy of at least 0.9 in each layer; consecutive tokens share more experts than independent ones would."""
    from traces.describe import balance, locality

    tokens: Tokens = tokens_of(routing())
    assert balance.entropy(tokens.counts()).min() >= 0.9
    assert locality.overlap(tokens).mean() > 1.3 * locality.independent_overlap(tokens).mean()


def test_recording_the_first_requests_again_gives_the_bundled_rows(tmp_path: Path) -> None:
    if not same_text():
        pytest.skip(f"this Python's library is other text than the trace's ({SCORES['text']})")
    import traces
    from traces.train import bundle

    model = transformers_model()
    group = bundle.requests(bundle.Load())[:3]
    with torch.no_grad(), traces.record(model, ends=[bundle.BOUNDARY]) as recording:
        bundle.run_batch(model, group)
    found, stored = recording.routing(), routing()
    stored = stored.take(stored.request_id < len(group))
    places = [np.lexsort((r.layer, r.position, r.request_id)) for r in (found, stored)]
    assert len(found) == len(stored)
    same = (np.sort(found.experts[places[0]], 1) == np.sort(stored.experts[places[1]], 1)).all(axis=1)
    assert same.mean() > 0.998
