"""Weights of a Mixtral-architecture model in float32: read from safetensors, drawn from a seed, saved.

Each layer's experts are one flat array, expert after expert: gate [F, H], up [F, H] (adjacent: one
[2F, H] product), down [H, F]. Pages of a layer are slices of it. Q, K and V are fused into one
matrix [(h + 2 g) D, H].
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from exec.checkpoint import Checkpoint


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """What a layer has beside its experts; shapes in `layer_shapes`."""

    attn_norm: np.ndarray
    wqkv: np.ndarray
    wo: np.ndarray
    ffn_norm: np.ndarray
    router: np.ndarray

    def arrays(self) -> tuple[np.ndarray, ...]:
        return self.attn_norm, self.wqkv, self.wo, self.ffn_norm, self.router

    @property
    def nbytes(self) -> int:
        return sum(a.nbytes for a in self.arrays())


@dataclass(frozen=True, slots=True)
class Weights:
    """embed, lm_head [V, H]; final_norm [H]; experts[layer] [E * 3 F H] flat."""

    embed: np.ndarray
    final_norm: np.ndarray
    lm_head: np.ndarray
    layers: tuple[LayerWeights, ...]
    experts: tuple[np.ndarray, ...]


def layer_shapes(spec: Any) -> dict[str, tuple[int, ...]]:
    """Shapes of the fields of `LayerWeights`."""
    q, kv = spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim
    return {
        "attn_norm": (spec.hidden,), "wqkv": (q + 2 * kv, spec.hidden), "wo": (spec.hidden, q),
        "ffn_norm": (spec.hidden,), "router": (spec.experts, spec.hidden),
    }  # fmt: skip


def expert_floats(spec: Any) -> int:
    """float32 elements of one expert."""
    return int(3 * spec.hidden * spec.ffn)


def split_expert(spec: Any, experts: np.ndarray, expert: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Views gate [F, H], up [F, H], down [H, F] of one expert of a layer's flat array."""
    fh = spec.ffn * spec.hidden
    gate, up, down = np.split(experts[expert * 3 * fh : (expert + 1) * 3 * fh], 3)
    return gate.reshape(spec.ffn, spec.hidden), up.reshape(spec.ffn, spec.hidden), down.reshape(spec.hidden, spec.ffn)


# Random ------------------------------------------------------------------------------------------


def random_weights(spec: Any, seed: int) -> Weights:
    """Weights drawn from `seed`; a layer's do not depend on how many layers there are.

    Products keep unit variance (std 1 / sqrt(fan-in)), the two that write to the residual stream
    are shrunk by sqrt(2 layers), router logits have a standard deviation of 2, so that the choice
    of experts is clear and not always the same.
    """
    narrow = 1 / np.sqrt(2 * spec.layers)

    def experts(rng: np.random.Generator) -> np.ndarray:
        flat = _draw(rng, (spec.experts * expert_floats(spec),), spec.hidden**-0.5)
        for e in range(spec.experts):
            down = split_expert(spec, flat, e)[2]
            down *= np.float32(narrow * (spec.hidden / spec.ffn) ** 0.5)
        return flat

    return random_dense(spec, seed, tuple(experts(np.random.default_rng([seed, 2, i])) for i in range(spec.layers)))


def random_dense(spec: Any, seed: int, experts: tuple[Any, ...]) -> Weights:
    """As `random_weights`, around experts that the caller has."""
    shapes = layer_shapes(spec)
    narrow = 1 / np.sqrt(2 * spec.layers)

    def norm(rng: np.random.Generator) -> np.ndarray:
        return 1 + _draw(rng, (spec.hidden,), 0.1)

    def layer(rng: np.random.Generator) -> LayerWeights:
        inner = spec.heads * spec.head_dim
        return LayerWeights(
            norm(rng), _draw(rng, shapes["wqkv"], spec.hidden**-0.5), _draw(rng, shapes["wo"], narrow * inner**-0.5),
            norm(rng), _draw(rng, shapes["router"], 2 * spec.hidden**-0.5),
        )  # fmt: skip

    top = np.random.default_rng([seed, 0])
    embed = _draw(top, (spec.vocab, spec.hidden), 1)
    head = embed if spec.tie_embeddings else _draw(top, (spec.vocab, spec.hidden), spec.hidden**-0.5)
    final = norm(top)
    return Weights(embed, final, head, tuple(layer(np.random.default_rng([seed, 1, i])) for i in range(spec.layers)), experts)


def _draw(rng: np.random.Generator, shape: tuple[int, ...], scale: float) -> np.ndarray:
    values = rng.standard_normal(shape, dtype=np.float32)
    values *= np.float32(scale)
    return values


# Hugging Face ------------------------------------------------------------------------------------


def load_weights(directory: Path, spec: Any) -> Weights:
    """Read the safetensors of a `MixtralForCausalLM` directory, single or sharded, any float dtype.

    Raises `UserError` naming the file and the tensor that is missing, misshaped or truncated.
    """
    with Checkpoint(Path(directory)) as files:
        return load_dense(files, spec, tuple(load_experts(files, spec, i) for i in range(spec.layers)))


def load_dense(files: Checkpoint, spec: Any, experts: tuple[Any, ...]) -> Weights:
    """As `load_weights`, around experts that the caller has."""
    embed = files.read("model.embed_tokens.weight", (spec.vocab, spec.hidden))
    head = embed if spec.tie_embeddings else files.read("lm_head.weight", (spec.vocab, spec.hidden))
    final = files.read("model.norm.weight", (spec.hidden,))
    return Weights(embed, final, head, tuple(_load_layer(files, spec, i) for i in range(spec.layers)), experts)


def moe_prefix(files: Checkpoint, layer: int) -> str:
    """`block_sparse_moe` up to transformers 4 and as 5 saves it; `mlp` where its in-memory names were saved."""
    prefix = f"model.layers.{layer}."
    return prefix + ("mlp." if prefix + "mlp.gate.weight" in files else "block_sparse_moe.")


def _load_layer(files: Checkpoint, spec: Any, layer: int) -> LayerWeights:
    prefix, shapes = f"model.layers.{layer}.", layer_shapes(spec)
    wqkv = np.empty(shapes["wqkv"], np.float32)
    q, kv = spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim
    for name, start, stop in (("q", 0, q), ("k", q, q + kv), ("v", q + kv, q + 2 * kv)):
        files.read_into(f"{prefix}self_attn.{name}_proj.weight", wqkv[start:stop])
    return LayerWeights(
        files.read(prefix + "input_layernorm.weight", shapes["attn_norm"]),
        wqkv,
        files.read(prefix + "self_attn.o_proj.weight", shapes["wo"]),
        files.read(prefix + "post_attention_layernorm.weight", shapes["ffn_norm"]),
        files.read(moe_prefix(files, layer) + "gate.weight", shapes["router"]),
    )


def load_experts(files: Checkpoint, spec: Any, layer: int, mine: range | None = None) -> np.ndarray:
    """A layer's experts, or the consecutive ones that `mine` names, flat. Separate w1 (gate), w3 (up), w2 (down) of each
    expert, or fused gate_up_proj [E, 2F, H] and down_proj [E, H, F]."""
    prefix = moe_prefix(files, layer) + "experts."
    mine = range(spec.experts) if mine is None else mine
    flat = np.empty(len(mine) * expert_floats(spec), np.float32)
    by_expert = flat.reshape(len(mine), 3 * spec.ffn, spec.hidden)
    if prefix + "gate_up_proj" in files:
        files.read_into(prefix + "gate_up_proj", by_expert[:, : 2 * spec.ffn], (spec.experts, 2 * spec.ffn, spec.hidden), mine)
        down = flat.reshape(len(mine), -1)[:, 2 * spec.ffn * spec.hidden :]
        files.read_into(prefix + "down_proj", down, (spec.experts, spec.hidden, spec.ffn), mine)
        return flat
    for k, e in enumerate(mine):
        for name, part in zip(("w1", "w3", "w2"), split_expert(spec, flat, k), strict=True):
            files.read_into(f"{prefix}{e}.{name}.weight", part)
    return flat


def save_hf(weights: Weights, spec: Any, directory: Path) -> None:
    """Write config.json and model.safetensors that transformers' `MixtralForCausalLM` loads."""
    from safetensors.numpy import save_file

    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    partial = directory / "model.safetensors.partial"
    save_file(_named(weights, spec), partial, metadata={"format": "pt"})
    os.replace(partial, directory / "model.safetensors")
    partial = directory / "config.json.partial"
    partial.write_text(json.dumps(hf_config(spec), indent=2) + "\n")
    os.replace(partial, directory / "config.json")


def _named(weights: Weights, spec: Any) -> dict[str, np.ndarray]:
    """Tensors by the names of `MixtralForCausalLM` (views, no copies)."""
    tensors = {"model.embed_tokens.weight": weights.embed, "model.norm.weight": weights.final_norm}
    if not spec.tie_embeddings:
        tensors["lm_head.weight"] = weights.lm_head
    q, kv = spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim
    for i, (layer, experts) in enumerate(zip(weights.layers, weights.experts, strict=True)):
        prefix = f"model.layers.{i}."
        tensors[prefix + "input_layernorm.weight"] = layer.attn_norm
        tensors[prefix + "post_attention_layernorm.weight"] = layer.ffn_norm
        tensors[prefix + "self_attn.q_proj.weight"] = layer.wqkv[:q]
        tensors[prefix + "self_attn.k_proj.weight"] = layer.wqkv[q : q + kv]
        tensors[prefix + "self_attn.v_proj.weight"] = layer.wqkv[q + kv :]
        tensors[prefix + "self_attn.o_proj.weight"] = layer.wo
        tensors[prefix + "block_sparse_moe.gate.weight"] = layer.router
        for e in range(spec.experts):
            for name, part in zip(("w1", "w3", "w2"), split_expert(spec, experts, e), strict=True):
                tensors[f"{prefix}block_sparse_moe.experts.{e}.{name}.weight"] = part
    return tensors


def hf_config(spec: Any) -> dict[str, Any]:
    """`config.json` of a model of these sizes, readable by transformers 4 and 5."""
    return {
        "architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "hidden_act": "silu", "torch_dtype": "float32",
        "vocab_size": spec.vocab, "hidden_size": spec.hidden, "intermediate_size": spec.ffn, "num_hidden_layers": spec.layers,
        "num_attention_heads": spec.heads, "num_key_value_heads": spec.kv_heads, "head_dim": spec.head_dim,
        "num_local_experts": spec.experts, "num_experts_per_tok": spec.top_k, "rms_norm_eps": spec.norm_eps,
        "rope_theta": spec.rope_theta, "sliding_window": None, "tie_word_embeddings": spec.tie_embeddings,
        "max_position_embeddings": getattr(spec, "max_positions", 32768), "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
