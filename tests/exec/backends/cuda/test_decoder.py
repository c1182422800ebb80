"""The device's steps against the CPU's, which are tested against float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from exec import decoder as host
from exec.backends.cuda import decoder, grouped
from exec.backends.cuda.decoder import DeviceLayer
from tests.exec.backends.support import SPEC, weights

RNG = np.random.default_rng(3)


def rows(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape, dtype=np.float32)


def layer() -> DeviceLayer:
    return DeviceLayer(*(torch.from_numpy(a) for a in weights().layers[0].arrays()))


def scratch(tokens: int) -> np.ndarray:
    return np.zeros(host.scratch_floats(SPEC, tokens, longest=tokens), np.float32)


def assert_close(found: torch.Tensor, wanted: np.ndarray) -> None:
    assert np.abs(found.numpy() - wanted).max() <= 2e-5 * np.abs(wanted).max()


def test_pre_attn() -> None:
    hidden, positions, wanted = rows(5, SPEC.hidden), np.array([0, 3, 9, 1, 100]), np.empty((5, SPEC.qkv_dim), np.float32)
    host.pre_attn(SPEC, weights().layers[0], hidden, positions, wanted, scratch(5))
    table = decoder.rope_table(SPEC.rope_theta, SPEC.head_dim, 128, torch.device("cpu"))
    found = torch.empty(5, SPEC.qkv_dim)
    decoder.pre_attn(SPEC, layer(), torch.from_numpy(hidden), torch.from_numpy(positions), table, found)
    assert_close(found, wanted)


def test_attn_prefill() -> None:
    qkv, offsets, wanted = rows(9, SPEC.qkv_dim), np.array([0, 1, 6, 9]), np.empty((9, SPEC.attention_out_dim), np.float32)
    host.attn_prefill(SPEC, qkv, offsets, wanted, scratch(9))
    found = torch.empty(9, SPEC.attention_out_dim)
    decoder.attn_prefill(SPEC, torch.from_numpy(qkv), offsets.tolist(), found)
    assert_close(found, wanted)


@pytest.mark.parametrize("gather_bytes", [1, 1 << 26])
def test_attn_decode(gather_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sequences of unequal lengths anywhere in the cache, one of them empty; gathered one by one or together."""
    monkeypatch.setattr(decoder, "GATHER_BYTES", gather_bytes)
    width, before, starts = SPEC.kv_dim // 2, np.array([4, 0, 11]), np.array([20, 3, 0])
    k, v, qkv = rows(32, width), rows(32, width), rows(3, SPEC.qkv_dim)
    wanted, theirs = np.empty((3, SPEC.attention_out_dim), np.float32), [torch.from_numpy(x.copy()) for x in (k, v)]
    host.attn_decode(SPEC, qkv, k[:, None], v[:, None], starts, before, wanted, scratch(3))
    found = torch.empty(3, SPEC.attention_out_dim)
    decoder.attn_decode(SPEC, torch.from_numpy(qkv), *theirs, torch.from_numpy(starts), torch.from_numpy(before), 16, found)
    assert_close(found, wanted)
    assert_close(theirs[0], k)


@pytest.mark.parametrize("tokens", [1, 7, 40])
@pytest.mark.parametrize("split", [0, 1, 4])
def test_post_attn(tokens: int, split: int) -> None:
    """With the experts in one piece or two."""
    attn, hidden = rows(tokens, SPEC.attention_out_dim), rows(tokens, SPEC.hidden)
    there, experts = torch.from_numpy(hidden.copy()), weights().experts[0]
    ids, chosen = host.post_attn(SPEC, weights().layers[0], (experts,), attn, hidden, scratch(tokens))
    at = split * 3 * SPEC.hidden * SPEC.ffn
    pieces = [p for p in (torch.from_numpy(experts[:at]), torch.from_numpy(experts[at:])) if len(p)]
    found_ids, found_weights = decoder.post_attn(SPEC, layer(), pieces, torch.from_numpy(attn), there)
    assert_close(there, hidden)
    assert np.array_equal(found_ids.numpy(), ids)
    assert_close(found_weights, chosen)


def test_forced_routing_keeps_the_routers_weights() -> None:
    logits = torch.tensor([[3.0, 1.0, 2.0, 0.0]])
    ids, chosen = decoder.route(logits, 2, torch.tensor([[3, 2]]))
    assert ids.tolist() == [[3, 2]]
    assert torch.allclose(chosen, torch.tensor([[0.0, 2.0]]).softmax(-1))


def test_sample_takes_the_last_rows() -> None:
    w, hidden = weights(), torch.from_numpy(rows(6, SPEC.hidden))
    norm, head = torch.from_numpy(w.final_norm), torch.from_numpy(w.lm_head)
    new = torch.empty(2, dtype=torch.int64)
    logits = decoder.sample(SPEC, norm, head, hidden, torch.tensor([1, 5]), new)
    wanted = np.empty((2, SPEC.vocab), np.float32)
    tokens = host.sample_tokens(SPEC, w.final_norm, w.lm_head, hidden[[1, 5]].numpy(), wanted, scratch(6))
    assert_close(logits, wanted)
    assert new.tolist() == tokens.tolist()


def test_matrices_are_views_of_the_flat_experts() -> None:
    flat = torch.arange(2 * 3 * SPEC.hidden * SPEC.ffn, dtype=torch.float32)
    expand, contract = grouped.matrices(SPEC, flat)
    size = 3 * SPEC.hidden * SPEC.ffn
    assert expand[1, 0, 0] == size and contract[1, 0, 0] == size + 2 * SPEC.hidden * SPEC.ffn
    assert expand.data_ptr() == flat.data_ptr()
