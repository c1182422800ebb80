"""The trained model as files: a `MixtralForCausalLM` checkpoint in half precision, and back."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from traces.train.corpus import BOUNDARY
from traces.train.model import Config, LanguageModel

WEIGHTS, CONFIG = "model.safetensors", "config.json"


def hub_config(c: Config) -> dict[str, Any]:
    """`config.json`, readable by transformers 4 and 5. The weights lie in float16; computation is meant to be in float32."""
    return {
        "architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "hidden_act": "silu", "torch_dtype": "float32",
        "vocab_size": c.vocabulary, "hidden_size": c.hidden, "intermediate_size": c.intermediate, "num_hidden_layers": c.layers,
        "num_attention_heads": c.heads, "num_key_value_heads": c.kv_heads, "head_dim": c.head_dim, "num_local_experts": c.experts,
        "num_experts_per_tok": c.k, "rms_norm_eps": c.eps, "rope_theta": c.theta, "sliding_window": None, "tie_word_embeddings": False,
        "max_position_embeddings": c.context, "bos_token_id": BOUNDARY, "eos_token_id": BOUNDARY, "pad_token_id": BOUNDARY + 1,
    }  # fmt: skip


def hub_tensors(model: LanguageModel) -> dict[str, Tensor]:
    """Tensors by the names that the hub's Mixtral checkpoints have; experts: w1 gate, w3 up, w2 down."""
    mine = {name: p.detach() for name, p in model.named_parameters()}
    named = {"model.embed_tokens.weight": mine["embedding"], "model.norm.weight": mine["norm"], "lm_head.weight": mine["head"]}
    for i in range(model.c.layers):
        here, there = f"blocks.{i}.", f"model.layers.{i}."
        named[there + "input_layernorm.weight"] = mine[here + "norm1"]
        named[there + "post_attention_layernorm.weight"] = mine[here + "norm2"]
        for letter in "qkvo":
            named[f"{there}self_attn.{letter}_proj.weight"] = mine[f"{here}attention.{letter}.weight"]
        named[there + "block_sparse_moe.gate.weight"] = mine[here + "mlp.gate"]
        for e, (both, down) in enumerate(zip(mine[here + "mlp.gate_up"], mine[here + "mlp.down"], strict=True)):
            gate, up = both.chunk(2)
            for name, w in (("w1", gate), ("w2", down), ("w3", up)):
                named[f"{there}block_sparse_moe.experts.{e}.{name}.weight"] = w
    return named


def save(model: LanguageModel, directory: Path, facts: dict[str, str]) -> None:
    """Write `model.safetensors` (float16) and `config.json`; `facts` go into the metadata of the former."""
    directory.mkdir(parents=True, exist_ok=True)
    half = {name: t.to(torch.float16).contiguous() for name, t in hub_tensors(model).items()}
    part = directory / (WEIGHTS + ".part")
    save_file(half, part, {"format": "pt", **facts})
    os.replace(part, directory / WEIGHTS)
    part = directory / (CONFIG + ".part")
    part.write_text(json.dumps(hub_config(model.c), indent=2) + "\n")
    os.replace(part, directory / CONFIG)


def load(directory: Path) -> LanguageModel:
    """The model of a directory that `save` wrote, in float32."""
    stated = json.loads((directory / CONFIG).read_text())
    model = LanguageModel(Config(
        hidden=stated["hidden_size"], intermediate=stated["intermediate_size"], layers=stated["num_hidden_layers"],
        heads=stated["num_attention_heads"], kv_heads=stated["num_key_value_heads"], experts=stated["num_local_experts"],
        k=stated["num_experts_per_tok"], vocabulary=stated["vocab_size"], theta=stated["rope_theta"], eps=stated["rms_norm_eps"],
        context=stated["max_position_embeddings"], bfloat16=False,
    ))  # fmt: skip
    found = load_file(directory / WEIGHTS)
    with torch.no_grad():
        for name, place in hub_tensors(model).items():
            place.copy_(found[name])
    return model
