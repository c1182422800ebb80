"""The decoder's steps against transformers' `MixtralForCausalLM` on the same files."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from exec import decoder, products
from exec.plain import PlainDecoder
from exec.products import set_threads
from exec.weights import Weights, expert_floats, load_weights, random_weights, save_hf
from tests.exec import tiny
from tests.kernels.arrays import assert_close, floats, poisoned

STEPS = 16


@pytest.fixture(autouse=True)
def _two_threads() -> Any:
    set_threads(2)
    yield
    set_threads(1)


def decode(spec: Any, weights: Weights, prompts: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Greedy tokens [S, 1 + STEPS] and logits [S, 1 + STEPS, V]."""
    plain = PlainDecoder(spec, weights, prompts, STEPS + 1)
    tokens, logits = [plain.prefill()], [plain.logits.copy()]
    for _ in range(STEPS):
        tokens.append(plain.step())
        logits.append(plain.logits.copy())
    return np.stack(tokens, 1), np.stack(logits, 1)


@pytest.mark.parametrize(
    ("sizes", "lengths"),
    [
        ({}, [1]),
        ({}, [1, 7, 40, 129]),
        ({"top_k": 1, "heads": 4, "kv_heads": 4}, [5, 3]),
        ({"top_k": 8, "heads": 6, "kv_heads": 2, "head_dim": 32}, [9] * 12),
        ({"experts": 3, "top_k": 2, "rope_theta": 1e4, "norm_eps": 1e-6, "tie_embeddings": True}, [33, 70]),
        ({"hidden": 128, "ffn": 80, "layers": 3}, [700, 2, 30]),
    ],
)
def test_equals_transformers(sizes: dict[str, Any], lengths: list[int], tmp_path: Path) -> None:
    spec = tiny.spec(**sizes)
    save_hf(random_weights(spec, 0), spec, tmp_path)
    prompts = tiny.prompts(lengths, spec.vocab)
    tokens, logits = decode(spec, load_weights(tmp_path, spec), prompts)
    full = [np.concatenate([p, t[:-1]]) for p, t in zip(prompts, tokens, strict=True)]
    for prompt, mine, theirs in zip(prompts, logits, tiny.transformers_logits(tmp_path, full), strict=True):
        wanted = theirs[len(prompt) - 1 :]
        error = np.abs(mine - wanted).max(1) / np.abs(wanted).max(1)
        assert error.max() < 1e-5, error
    assert (tokens == logits.argmax(2)).all()


def layer_inputs(spec: Any, tokens: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(5)
    attn, hidden = floats(rng, tokens, spec.heads * spec.head_dim), floats(rng, tokens, spec.hidden)
    return attn, hidden, poisoned(decoder.scratch_floats(spec, tokens, threads=2))


@pytest.mark.parametrize("tokens", [1, 12, 700])
def test_experts_in_two_pieces_are_the_same_experts(tokens: int) -> None:
    spec = tiny.spec()
    weights = random_weights(spec, 1)
    outcomes = []
    for split in (0, 3, 8):
        attn, hidden, scratch = layer_inputs(spec, tokens)
        cut = split * expert_floats(spec)
        pieces = [weights.experts[0][:cut], weights.experts[0][cut:]]
        ids, chosen = decoder.post_attn(spec, weights.layers[0], pieces, attn, hidden, scratch)
        assert ids.dtype == np.int16 and chosen.dtype == np.float32 and ids.shape == chosen.shape == (tokens, spec.top_k)
        outcomes.append(hidden)
    assert (outcomes[0] == outcomes[1]).all() and (outcomes[0] == outcomes[2]).all()


def test_missing_experts_are_noticed() -> None:
    spec = tiny.spec()
    weights = random_weights(spec, 1)
    attn, hidden, scratch = layer_inputs(spec, 2)
    with pytest.raises(AssertionError, match="weights of 7 experts given, 8 needed"):
        decoder.post_attn(spec, weights.layers[0], [weights.experts[0][expert_floats(spec) :]], attn, hidden, scratch)


@pytest.mark.parametrize("tokens", [70, 300, 1500])
def test_streamed_products_and_blas_agree(tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = tiny.spec()
    weights = random_weights(spec, 1)
    outcomes = []
    for rows in (0, 10**6):
        for module in (decoder, products):
            monkeypatch.setattr(module, "streamed_rows", lambda rows=rows: rows)
        attn, hidden, scratch = layer_inputs(spec, tokens)
        decoder.post_attn(spec, weights.layers[0], [weights.experts[0]], attn, hidden, scratch)
        outcomes.append(hidden)
    assert_close(outcomes[0], outcomes[1], 5e-6)


def test_forced_routing_replays_a_trace() -> None:
    spec = tiny.spec()
    weights, prompts = random_weights(spec, 1), tiny.prompts([4, 9], spec.vocab)
    free = PlainDecoder(spec, weights, prompts, 2)
    free.prefill()
    routing = [ids for ids, _ in free.routing]
    replay = PlainDecoder(spec, weights, prompts, 2)
    replay.prefill(routing)
    assert (replay.logits == free.logits).all()
    other = PlainDecoder(spec, weights, prompts, 2)
    other.prefill([(ids + 1) % spec.experts for ids in routing])
    assert np.abs(other.logits - free.logits).max() > 1e-3
    assert all(((a + 1) % spec.experts == b).all() for a, (b, _) in zip(routing, other.routing, strict=True))


def test_scratch_is_enough_and_fully_written_before_it_is_read() -> None:
    """NaN in the scratch would reach the outputs; too little of it would raise."""
    spec = tiny.spec(ffn=700)
    weights = random_weights(spec, 1)
    for tokens in (1, 30, 600):
        attn, hidden, scratch = layer_inputs(spec, tokens)
        decoder.post_attn(spec, weights.layers[0], [weights.experts[0]], attn, hidden, scratch)
        assert np.isfinite(hidden).all()
    with pytest.raises(AssertionError, match="scratch of 10 floats"):
        decoder.post_attn(spec, weights.layers[0], [weights.experts[0]], attn, hidden, scratch[:10])


def test_a_sequence_s_logits_do_not_depend_on_its_batch() -> None:
    spec = tiny.spec()
    weights, prompts = random_weights(spec, 1), tiny.prompts([4, 90, 17], spec.vocab)
    _, together = decode(spec, weights, prompts)
    for s, prompt in enumerate(prompts):
        assert_close(decode(spec, weights, [prompt])[1][0], together[s], 1e-5)


def test_bad_token_ids_are_noticed() -> None:
    table = np.zeros((4, 8), np.float32)
    for ids in ([4], [-1]):
        with pytest.raises(AssertionError):
            decoder.embed_tokens(table, np.array(ids), np.empty((1, 8), np.float32))


def test_each_thread_keeps_its_own_thread_count() -> None:
    both, counts = threading.Barrier(2), {}

    def lane(count: int) -> None:
        set_threads(count)
        both.wait()
        torch.mm(torch.ones(64, 64), torch.ones(64, 64))
        both.wait()
        counts[count] = torch.get_num_threads()

    threads = [threading.Thread(target=lane, args=(n,)) for n in (1, 2)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert counts == {1: 1, 2: 2}
