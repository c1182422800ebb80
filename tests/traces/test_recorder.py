"""The recorder writes exactly what the model's own routers decided, for every family that transformers has here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import traces
from traces.errors import TraceError
from traces.routers import find_routers
from traces.routing import Routing, read_routing

torch = pytest.importorskip("torch", reason="the recorder works on torch models; torch is not installed")

SIZES: dict[str, Any] = {
    "vocab_size": 61, "hidden_size": 32, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": None,
}  # fmt: skip
FAMILIES: dict[str, dict[str, Any]] = {
    "Mixtral": {"num_local_experts": 8, "num_experts_per_tok": 2},
    "Qwen2Moe": {"num_experts": 10, "num_experts_per_tok": 4, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16},
    "Qwen3Moe": {"num_experts": 12, "num_experts_per_tok": 3, "moe_intermediate_size": 16, "norm_topk_prob": True, "head_dim": 8},
    "Olmoe": {"num_experts": 16, "num_experts_per_tok": 5, "norm_topk_prob": False},
    "DeepseekV2": {
        "n_routed_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 16, "first_k_dense_replace": 1, "n_shared_experts": 1,
        "kv_lora_rank": 8, "q_lora_rank": None, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8, "num_key_value_heads": 4,
        "routed_scaling_factor": 1.5, "topk_method": "greedy", "n_group": 1, "topk_group": 1,
    },
    "GptOss": {
        "num_local_experts": 8, "num_experts_per_tok": 4, "head_dim": 8,
        "layer_types": ["sliding_attention", "full_attention", "full_attention"],
    },
}  # fmt: skip


def build(family: str, **changed: Any) -> Any:
    """A model of random weights whose routers decide clearly."""
    transformers = pytest.importorskip("transformers", reason="the families come from transformers, which is not installed")
    config = getattr(transformers, f"{family}Config")(**{**SIZES, **FAMILIES[family], **changed})
    torch.manual_seed(0)
    model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    for router in find_routers(model):
        torch.nn.init.normal_(router.gate.weight)
    return model


def gate_outputs(model: Any) -> tuple[list[tuple[Any, Any]], Callable[[], None]]:
    """What the model's gates return, call by call: (experts, weights), read by our own hooks on modules named by the families."""
    seen: list[tuple[Any, Any]] = []
    gates = [m for n, m in model.named_modules() if n.endswith((".gate", ".router"))]
    handles = [g.register_forward_hook(lambda module, given, out: seen.append((out[2].clone(), out[1].clone()))) for g in gates]
    return seen, lambda: [h.remove() for h in handles] and None


@pytest.mark.parametrize("family", FAMILIES)
def test_records_what_the_gates_return(family: str) -> None:
    model = build(family)
    seen, stop = gate_outputs(model)
    prompt = torch.arange(2, 16).view(2, 7)
    with torch.no_grad(), traces.record(model) as recording:
        model.generate(prompt, max_new_tokens=5, do_sample=False)
    stop()
    rows = recording.routing()
    layers = 2 if family == "DeepseekV2" else 3
    assert rows.shape.layers == layers and len(rows) == layers * (2 * 7 + 4 * 2)
    for call, (experts, weights) in enumerate(seen):
        step, layer = divmod(call, layers)
        mine = rows.take((rows.step == step) & (rows.layer == layer))
        assert np.array_equal(mine.experts, experts.numpy()), f"{family}, step {step}, layer {layer}"
        assert np.array_equal(mine.weights, weights.float().numpy()), f"{family}, step {step}, layer {layer}"
    assert call == 5 * layers - 1


@pytest.mark.parametrize("family", ["Mixtral", "Qwen2Moe", "Qwen3Moe", "Olmoe"])
def test_agrees_with_output_router_logits(family: str) -> None:
    model = build(family)
    ids = torch.arange(3, 13).view(1, 10)
    with torch.no_grad(), traces.record(model) as recording:
        logits = model(ids, output_router_logits=True).router_logits
    rows, k = recording.routing(), recording.routing().shape.k
    for layer, found in enumerate(logits):
        share = found.float().softmax(-1)
        top = share.topk(k)
        mine = rows.take(rows.layer == layer)
        assert np.array_equal(mine.experts, top.indices.numpy())
        whole = family == "Mixtral" or getattr(model.config, "norm_topk_prob", False)
        expected = top.values / top.values.sum(-1, keepdim=True) if whole else top.values
        assert np.allclose(mine.weights, expected.numpy(), rtol=1e-6, atol=0)


def test_positions_steps_and_requests_of_batches() -> None:
    model = build("Mixtral")
    with torch.no_grad(), traces.record(model) as recording:
        model.generate(torch.arange(2, 8).view(2, 3), max_new_tokens=3, do_sample=False)
        model.generate(torch.arange(2, 7).view(1, 5), max_new_tokens=2, do_sample=False)
    rows = recording.routing()
    rows = rows.take(rows.layer == 1)
    found = [(r, s, p) for r, s, p in zip(rows.request_id.tolist(), rows.step.tolist(), rows.position.tolist(), strict=True)]
    first = [(r, 0, p) for r in (0, 1) for p in range(3)] + [(r, s, 2 + s) for s in (1, 2) for r in (0, 1)]
    assert found == first + [(2, 0, p) for p in range(5)] + [(2, 1, 5)]
    assert rows.decode.tolist() == [s > 0 for _, s, _ in found]


def test_left_padding_is_left_out() -> None:
    model = build("Mixtral")
    ids = torch.tensor([[0, 0, 0, 5, 6], [3, 4, 5, 6, 7]])
    mask = (ids != 0).long()
    with torch.no_grad(), traces.record(model) as recording:
        model.generate(ids, attention_mask=mask, max_new_tokens=3, do_sample=False)
    padded = recording.routing()
    with torch.no_grad(), traces.record(model) as recording:
        model.generate(ids[:1, 3:], max_new_tokens=3, do_sample=False)
    alone = recording.routing()
    mine = padded.take(padded.request_id == 0)
    assert mine.position.max() == 3 and np.array_equal(by_place(mine), by_place(alone))
    assert (padded.request_id == 1).sum() == 3 * (5 + 2)


def by_place(rows: Routing) -> Any:
    """Experts in the order of (position, layer)."""
    return rows.experts[np.lexsort((rows.layer, rows.position))]


def test_nothing_after_the_end_token() -> None:
    model = build("Mixtral")
    ids = torch.arange(2, 8).view(2, 3)
    with torch.no_grad():
        out = model.generate(ids, max_new_tokens=6, do_sample=False)
    end = int(out[0, 4])  # the second token that sequence 0 samples; it is fed in decode step 2
    assert end not in out[1, 3:].tolist() + [int(out[0, 3])]
    with torch.no_grad(), traces.record(model, ends=[end]) as recording:
        model.generate(ids, max_new_tokens=6, do_sample=False)
    rows = recording.routing()
    assert rows.step[rows.request_id == 0].max() == 1 and rows.step[rows.request_id == 1].max() == 5


def test_prefill_in_parts_is_one_prefill() -> None:
    model = build("Mixtral")
    ids = torch.arange(2, 12).view(1, 10)
    with torch.no_grad(), traces.record(model) as recording:
        first = model(ids[:, :6], use_cache=True)
        second = model(ids[:, 6:], past_key_values=first.past_key_values, use_cache=True)
        model(torch.tensor([[4]]), past_key_values=second.past_key_values)
    rows = recording.routing()
    rows = rows.take(rows.layer == 0)
    assert rows.position.tolist() == list(range(11)) and rows.step.tolist() == [0] * 10 + [1]


def test_streams_to_a_file_the_same_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("traces.recorder.FLUSH_ROWS", 20)
    model, out = build("Olmoe"), tmp_path / "routing.parquet"
    ids = torch.arange(2, 12).view(2, 5)
    with torch.no_grad(), traces.record(model) as recording:
        model.generate(ids, max_new_tokens=8, do_sample=False)
    with torch.no_grad(), traces.record(model, out, name="tiny") as streamed:
        model.generate(ids, max_new_tokens=8, do_sample=False)
    rows, read = recording.routing(), read_routing(out)
    assert read.shape.model == "tiny" and read.provenance.made == "recorded"
    for name in ("experts", "weights", "position", "step", "request_id", "layer", "decode"):
        assert np.array_equal(getattr(rows, name), getattr(read, name)), name
    with pytest.raises(TraceError, match="streamed to this file"):
        streamed.routing()


def test_no_file_after_an_error(tmp_path: Path) -> None:
    model, out = build("Mixtral"), tmp_path / "routing.parquet"
    before = forwards(model)
    with pytest.raises(RuntimeError, match="stop"), traces.record(model, out):
        model(torch.arange(4).view(1, 4))
        raise RuntimeError("stop")
    assert list(tmp_path.iterdir()) == []
    assert forwards(model) == before


def forwards(model: Any) -> list[Any]:
    return [m.forward for m in model.modules()]


def test_another_wrapper_of_forward_stays() -> None:
    """As accelerate puts on the modules that it moves between devices."""
    model = build("Mixtral")
    bank = find_routers(model)[0].bank
    inner, calls = bank.forward, []
    bank.forward = lambda *given, **named: calls.append(1) or inner(*given, **named)
    outer = bank.forward
    with torch.no_grad(), traces.record(model) as recording:
        model(torch.arange(4).view(1, 4))
    assert bank.forward is outer and calls == [1] and len(recording.routing()) == 3 * 4


def test_a_pass_that_raises_leaves_nothing() -> None:
    """As when memory runs out in the middle of a step and the caller tries again."""
    model = build("Mixtral")
    ids = torch.arange(2, 8).view(2, 3)
    last, forward = find_routers(model)[2].bank, find_routers(model)[2].bank.forward
    fails = [True, False, True, False]

    def flaky(*given: Any, **named: Any) -> Any:
        if fails.pop(0):
            raise MemoryError
        return forward(*given, **named)

    last.forward = flaky
    with torch.no_grad(), traces.record(model) as recording:
        with pytest.raises(MemoryError):
            model(ids, use_cache=True)
        cache = model(ids, use_cache=True).past_key_values
        with pytest.raises(MemoryError):
            model(ids[:, :1], past_key_values=cache)
        model(ids[:, :1], past_key_values=cache)
    rows = recording.routing()
    assert sorted(set(rows.request_id.tolist())) == [0, 1] and len(rows) == 3 * (2 * 3 + 2)
    assert rows.step[rows.decode].tolist() == [1] * 6 and rows.position[rows.decode].tolist() == [3] * 6


def test_misuse_is_refused() -> None:
    model = build("Mixtral")
    ids = torch.arange(2, 8).view(2, 3)
    with torch.no_grad():
        before = model(ids, use_cache=True).past_key_values
        with pytest.raises(TraceError, match="filled before the recording"), traces.record(model):
            model(ids[:, :1], past_key_values=before)
        with pytest.raises(TraceError, match="2 tokens at once"), traces.record(model):
            cache = model(ids, use_cache=True).past_key_values
            model(ids[:, :1], past_key_values=cache)
            model(ids[:, :2], past_key_values=cache)
        with pytest.raises(TraceError, match="outside a forward pass"), traces.record(model):
            model.model(ids)
        with traces.record(model) as recording, pytest.raises(TraceError, match="nothing was recorded"):
            recording.routing()
    with pytest.raises(TraceError, match="no Mixture-of-Experts layer"), traces.record(torch.nn.Linear(2, 2)):
        pass


# Structure alone: blocks that no library has -------------------------------------------------


class ListedBlock(torch.nn.Module):
    """As transformers 4 writes Mixtral: a linear gate, a list of experts."""

    def __init__(self, normalise: bool | None) -> None:
        super().__init__()
        self.chooser = torch.nn.Linear(6, 5, bias=False)
        self.specialists = torch.nn.ModuleList(torch.nn.Sequential(torch.nn.Linear(6, 4), torch.nn.Linear(4, 6)) for _ in range(5))
        self.top_k = 2
        if normalise is not None:
            self.norm_topk_prob = normalise

    def forward(self, x: Any) -> Any:
        return x + self.chooser(x).sum(-1, keepdim=True)


class Listed(torch.nn.Module):
    def __init__(self, normalise: bool | None) -> None:
        super().__init__()
        self.embedding, self.block = torch.nn.Embedding(9, 6), ListedBlock(normalise)

    def forward(self, input_ids: Any) -> Any:
        return self.block(self.embedding(input_ids).view(-1, 6))


@pytest.mark.parametrize("normalise", [None, True, False])
def test_linear_gates_of_listed_experts(normalise: bool | None) -> None:
    torch.manual_seed(1)
    model = Listed(normalise)
    ids = torch.arange(8).view(2, 4)
    with torch.no_grad(), traces.record(model) as recording:
        model(ids)
    with torch.no_grad():
        share = model.block.chooser(model.embedding(ids).view(-1, 6)).softmax(-1)
    top = share.topk(2)
    rows = recording.routing()
    expected = top.values if normalise is False else top.values / top.values.sum(-1, keepdim=True)
    assert np.array_equal(rows.experts, top.indices.numpy()) and np.allclose(rows.weights, expected.numpy())


def test_scattered_scores_are_gathered() -> None:
    """As transformers 4 writes gpt-oss: scores [tokens, E] beside the chosen experts [tokens, k]."""
    bank = torch.nn.Module()
    bank.a, bank.b = torch.nn.Parameter(torch.ones(4, 2, 3)), torch.nn.Parameter(torch.ones(4, 3, 2))
    block = torch.nn.Module()
    block.experts, block.router = bank, torch.nn.Linear(3, 4)
    (router,) = find_routers(block)
    scores = torch.tensor([[0.0, 0.3, 0.0, 0.7], [0.9, 0.0, 0.1, 0.0]])
    given = (torch.ones(2, 3), torch.tensor([[3, 1], [0, 2]]), scores)
    chosen, weights = router._pick(given, *router._places(dict(enumerate(given)), "here"))
    assert chosen.tolist() == [[3, 1], [0, 2]] and torch.equal(weights, torch.tensor([[0.7, 0.3], [0.9, 0.1]]))
