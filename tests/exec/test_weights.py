"""Weights: every layout that Hugging Face writes, and what happens to broken directories."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from exec.weights import Weights, load_weights, random_weights, save_hf, split_expert
from sim.errors import UserError
from sim.models import load as load_spec
from tests.exec import tiny

SPEC = tiny.spec()
SINGLE = "model.safetensors"
Tensors = dict[str, torch.Tensor]


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    save_hf(random_weights(SPEC, 0), SPEC, tmp_path)
    return tmp_path


def rewrite(directory: Path, change: Callable[[Tensors], Tensors]) -> None:
    tensors = {name: tensor.clone() for name, tensor in load_file(directory / SINGLE).items()}
    save_file({name: tensor.contiguous() for name, tensor in change(tensors).items()}, directory / SINGLE)


def arrays(weights: Weights) -> list[np.ndarray]:
    return [weights.embed, weights.final_norm, weights.lm_head, *(a for layer in weights.layers for a in layer.arrays()), *weights.experts]


def assert_same(a: Weights, b: Weights) -> None:
    assert all((x == y).all() for x, y in zip(arrays(a), arrays(b), strict=True))


def test_saved_weights_come_back(saved: Path) -> None:
    assert_same(load_weights(saved, SPEC), random_weights(SPEC, 0))
    spec = load_spec(saved)
    assert (spec.hidden, spec.experts, spec.head_dim, spec.rope_theta) == (SPEC.hidden, SPEC.experts, SPEC.head_dim, SPEC.rope_theta)


def test_what_transformers_saves_is_read(saved: Path, tmp_path: Path) -> None:
    from transformers import MixtralForCausalLM

    again = tmp_path / "again"
    MixtralForCausalLM.from_pretrained(saved, dtype=torch.float32).save_pretrained(again, max_shard_size="50KB")
    assert not (again / SINGLE).exists() and (again / "model.safetensors.index.json").exists()
    assert_same(load_weights(again, SPEC), random_weights(SPEC, 0))


def fuse(tensors: Tensors) -> Tensors:
    """The names and shapes that transformers 5 has in memory."""
    for i in range(SPEC.layers):
        old, new = f"model.layers.{i}.block_sparse_moe.", f"model.layers.{i}.mlp."
        parts = {w: [tensors.pop(f"{old}experts.{e}.{w}.weight") for e in range(SPEC.experts)] for w in ("w1", "w2", "w3")}
        tensors[new + "gate.weight"] = tensors.pop(old + "gate.weight")
        tensors[new + "experts.gate_up_proj"] = torch.cat([torch.stack(parts["w1"]), torch.stack(parts["w3"])], 1)
        tensors[new + "experts.down_proj"] = torch.stack(parts["w2"])
    return tensors


def test_fused_experts_are_read(saved: Path) -> None:
    rewrite(saved, fuse)
    assert_same(load_weights(saved, SPEC), random_weights(SPEC, 0))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_widened_exactly(saved: Path, dtype: torch.dtype) -> None:
    rewrite(saved, lambda tensors: {name: t.to(dtype) for name, t in tensors.items()})
    wanted = torch.from_numpy(random_weights(SPEC, 0).layers[1].wo).to(dtype).float().numpy()
    got = load_weights(saved, SPEC).layers[1].wo
    assert got.dtype == np.float32 and (got == wanted).all()


def test_random_weights_are_repeatable_and_differ_by_seed() -> None:
    assert_same(random_weights(SPEC, 3), random_weights(SPEC, 3))
    assert (random_weights(SPEC, 3).embed != random_weights(SPEC, 4).embed).any()
    deeper = random_weights(tiny.spec(layers=5), 3)
    assert (deeper.layers[1].router == random_weights(SPEC, 3).layers[1].router).all()
    assert deeper.experts[0].flags.c_contiguous and deeper.experts[0].ndim == 1


def test_expert_views_share_the_flat_array() -> None:
    weights = random_weights(SPEC, 3)
    gate, up, down = split_expert(SPEC, weights.experts[0], 2)
    start = 2 * 3 * SPEC.ffn * SPEC.hidden
    assert gate.shape == up.shape == (SPEC.ffn, SPEC.hidden) and down.shape == (SPEC.hidden, SPEC.ffn)
    assert gate[0, 0] == weights.experts[0][start] and down[-1, -1] == weights.experts[0][start + 3 * SPEC.ffn * SPEC.hidden - 1]
    assert np.shares_memory(gate, weights.experts[0])


def test_missing_directory(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere/model.safetensors: no such file"):
        load_weights(tmp_path / "nowhere", SPEC)


def test_missing_tensor(saved: Path) -> None:
    name = "model.layers.1.self_attn.k_proj.weight"
    rewrite(saved, lambda tensors: {n: t for n, t in tensors.items() if n != name})
    with pytest.raises(UserError, match=rf"model.safetensors: tensor {name} is missing; it needs shape \[32, 64\]"):
        load_weights(saved, SPEC)


def test_misshaped_tensor(saved: Path) -> None:
    name = "model.layers.0.block_sparse_moe.experts.3.w2.weight"
    rewrite(saved, lambda tensors: {**tensors, name: tensors[name].T})
    with pytest.raises(UserError, match=rf"tensor {name} has shape \[96, 64\]; config.json needs \[64, 96\]"):
        load_weights(saved, SPEC)


def test_quantised_tensor(saved: Path) -> None:
    rewrite(saved, lambda tensors: {**tensors, "model.norm.weight": tensors["model.norm.weight"].to(torch.int8)})
    with pytest.raises(UserError, match="tensor model.norm.weight has dtype torch.int8; float32"):
        load_weights(saved, SPEC)


@pytest.mark.parametrize("keep", [0, 5, 3000, -1])
def test_truncated_file(saved: Path, keep: int) -> None:
    path = saved / SINGLE
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UserError, match="model.safetensors: not a whole safetensors file") as caught:
        load_weights(saved, SPEC)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"weight_map": 3}', '{"weight_map": {"a": 1}}'])
def test_broken_index(saved: Path, text: str) -> None:
    (saved / "model.safetensors.index.json").write_text(text)
    with pytest.raises(UserError, match="index.json: not a safetensors index"):
        load_weights(saved, SPEC)


def test_index_that_names_an_absent_shard_or_tensor(saved: Path) -> None:
    names = list(load_file(saved / SINGLE))
    index = saved / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": dict.fromkeys(names, "model-00001.safetensors")}))
    with pytest.raises(UserError, match="model-00001.safetensors: no such file"):
        load_weights(saved, SPEC)
    index.write_text(json.dumps({"weight_map": dict.fromkeys(names, SINGLE)}))
    rewrite(saved, lambda tensors: {n: t for n, t in tensors.items() if n != "model.norm.weight"})
    with pytest.raises(UserError, match="tensor model.norm.weight is missing, though"):
        load_weights(saved, SPEC)


def test_failed_save_leaves_nothing_half_written(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (saved / SINGLE).read_bytes()
    monkeypatch.setattr("exec.weights.os.replace", lambda a, b: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        save_hf(random_weights(SPEC, 9), SPEC, saved)
    assert (saved / SINGLE).read_bytes() == before
