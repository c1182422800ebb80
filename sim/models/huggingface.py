"""Reads a Hugging Face `config.json` into a ModelSpec.

One function a family. Keys that the sizes do not depend on are ignored; a key that they do depend
on must be there and be a positive integer.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sim.errors import UserError, unknown
from sim.models.spec import MLA, ModelSpec

_DTYPES = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}


class Config:
    """A config's keys, checked when they are read; errors name the file and the key."""

    def __init__(self, path: Path, values: dict[str, Any], prefix: str = "") -> None:
        self.path, self._values, self._prefix = path, values, prefix

    def error(self, key: str, what: str) -> UserError:
        return UserError(f"{self.path}: {self._prefix}{key}: {what}")

    def size(self, key: str, default: int | None = None) -> int:
        """A positive integer; `default` where the key is absent or null."""
        value = self._values.get(key)
        if value is None and default is not None:
            return default
        if value is None:
            raise self.error(key, "missing; a positive integer is needed")
        if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
            raise self.error(key, f"is {value!r}; a positive integer is needed")
        return value

    def renamed(self, key: str, newer: str) -> int:
        """`size(key)` under the name that transformers 5 writes, where only that is there."""
        return self.size(newer if key not in self._values and newer in self._values else key)

    def number(self, key: str, default: float) -> float:
        value = self._values.get(key)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
            raise self.error(key, f"is {value!r}; a positive number is needed")
        return float(value)

    def flag(self, key: str, default: bool = False) -> bool:
        value = self._values.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.error(key, f"is {value!r}; true or false is needed")
        return value

    def get(self, key: str) -> Any:
        return self._values.get(key)

    def part(self, key: str) -> Config:
        value = self._values.get(key)
        if not isinstance(value, dict):
            raise self.error(key, "missing; an object is needed" if value is None else f"is {value!r}; an object is needed")
        return Config(self.path, value, f"{self._prefix}{key}.")

    def rope_theta(self, default: float) -> float:
        """Top level up to transformers 4, under `rope_parameters` since 5."""
        if isinstance(self._values.get("rope_parameters"), dict) and "rope_theta" not in self._values:
            return self.part("rope_parameters").number("rope_theta", default)
        return self.number("rope_theta", default)

    def dtype(self) -> str:
        """bf16 where the file does not say; `torch_dtype` up to transformers 4, `dtype` since."""
        key = "dtype" if self._values.get("dtype") is not None else "torch_dtype"
        value = self._values.get(key)
        if value is None:
            return "bf16"
        if value not in _DTYPES:
            raise self.error(key, f"is {value!r}; one of {', '.join(_DTYPES)} is needed")
        return _DTYPES[value]


def load(directory: Path) -> ModelSpec:
    """Read `directory/config.json` (or that file itself). Raises `UserError` naming file and key."""
    path = directory if directory.name == "config.json" else directory / "config.json"
    config = Config(path, _read(path))
    family = config.get("model_type")
    if not isinstance(family, str):
        raise config.error("model_type", f"{'missing' if family is None else f'is {family!r}'}; one of {', '.join(_FAMILIES)} is needed")
    if family not in _FAMILIES:
        raise unknown(f"{path}: model_type", family, _FAMILIES)
    sizes = _FAMILIES[family](config)
    spec = ModelSpec(name=str(path.parent), family=family, dtype=config.dtype(), tie_embeddings=config.flag("tie_word_embeddings"), **sizes)
    _check(config, spec)
    return spec


def _read(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as e:
        raise UserError(f"{path}: cannot be read ({e.strerror}); a directory with a Hugging Face config.json is needed") from None
    except UnicodeDecodeError as e:
        raise UserError(f"{path}: not UTF-8 text at byte {e.start}; a Hugging Face config.json is needed") from None
    except json.JSONDecodeError as e:
        raise UserError(f"{path}: line {e.lineno} column {e.colno}: malformed or truncated JSON ({e.msg})") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: holds a {type(values).__name__}; a JSON object is needed")
    return values


def _check(config: Config, spec: ModelSpec) -> None:
    """Relations between sizes that no single key shows."""
    if spec.top_k > spec.experts:
        raise config.error("top-k", f"{spec.top_k} experts a token of only {spec.experts}")
    if spec.heads % spec.kv_heads:
        raise config.error("num_key_value_heads", f"is {spec.kv_heads}; a divisor of the {spec.heads} query heads is needed")
    if spec.dense_layers >= spec.layers:
        raise config.error("first_k_dense_replace", f"is {spec.dense_layers}; fewer than the {spec.layers} layers are needed")


def _decoder(c: Config, *, theta: float, eps: float) -> dict[str, Any]:
    """The keys that most families share."""
    hidden, heads = c.size("hidden_size"), c.size("num_attention_heads")
    return {
        "layers": c.size("num_hidden_layers"), "hidden": hidden, "heads": heads, "kv_heads": c.size("num_key_value_heads", heads),
        "head_dim": c.size("head_dim", max(1, hidden // heads)), "vocab": c.size("vocab_size"), "rope_theta": c.rope_theta(theta),
        "norm_eps": c.number("rms_norm_eps", eps), "max_positions": c.size("max_position_embeddings", 32768),
    }  # fmt: skip


def _routed(c: Config, ffn: str, experts: str) -> dict[str, Any]:
    """Sizes of the routed experts, under the family's own keys."""
    return {"ffn": c.size(ffn), "experts": c.renamed(experts, "num_local_experts"), "top_k": c.size("num_experts_per_tok")}


def _sliding(c: Config, layers: int) -> dict[str, Any]:
    """Layers that slide: `layer_types` where it is given, all of them otherwise."""
    if c.get("sliding_window") is None:
        return {}
    kinds = c.get("layer_types")
    if kinds is None:
        chosen = tuple(range(layers))
    elif not isinstance(kinds, list) or len(kinds) != layers:
        raise c.error("layer_types", f"a list of {layers} names is needed, one a layer")
    else:
        chosen = tuple(i for i, kind in enumerate(kinds) if kind == "sliding_attention")
    if not chosen:
        return {}
    return {"attention": "sliding", "sliding_window": c.size("sliding_window"), "sliding_layers": chosen}


def _mixtral(c: Config) -> dict[str, Any]:
    sizes = _decoder(c, theta=1e6, eps=1e-5)
    routed = _routed(c, "intermediate_size", "num_local_experts")
    return {**sizes, **routed, **_sliding(c, sizes["layers"])}


def _dbrx(c: Config) -> dict[str, Any]:
    attention, ffn = c.part("attn_config"), c.part("ffn_config")
    hidden, heads = c.size("d_model"), c.size("n_heads")
    return {
        "layers": c.size("n_layers"), "hidden": hidden, "heads": heads, "kv_heads": attention.size("kv_n_heads"),
        "head_dim": max(1, hidden // heads), "vocab": c.size("vocab_size"), "rope_theta": attention.rope_theta(5e5), "norm_eps": 1e-5,
        "max_positions": c.size("max_seq_len", 32768), "ffn": ffn.size("ffn_hidden_size"), "experts": ffn.size("moe_num_experts"),
        "top_k": ffn.size("moe_top_k"),
    }  # fmt: skip


def _deepseek_v2(c: Config) -> dict[str, Any]:
    sizes = _decoder(c, theta=1e4, eps=1e-6)
    mla = MLA(
        kv_lora_rank=c.size("kv_lora_rank"), qk_nope_head_dim=c.size("qk_nope_head_dim"), qk_rope_head_dim=c.size("qk_rope_head_dim"),
        v_head_dim=c.size("v_head_dim"), q_lora_rank=c.size("q_lora_rank") if c.get("q_lora_rank") else 0,
    )  # fmt: skip
    dense = c.size("first_k_dense_replace") if c.get("first_k_dense_replace") else 0
    ffn, shared = c.size("moe_intermediate_size"), c.size("n_shared_experts") if c.get("n_shared_experts") else 0
    return {
        **sizes, "head_dim": mla.qk_nope_head_dim + mla.qk_rope_head_dim, "attention": "mla", "mla": mla, "ffn": ffn,
        "experts": c.renamed("n_routed_experts", "num_local_experts"), "top_k": c.size("num_experts_per_tok"), "shared_experts": shared,
        "shared_ffn": ffn if shared else 0, "dense_layers": dense, "dense_ffn": c.size("intermediate_size") if dense else 0,
    }  # fmt: skip


def _qwen3_moe(c: Config) -> dict[str, Any]:
    if c.size("decoder_sparse_step", 1) != 1 or c.get("mlp_only_layers"):
        raise c.error("decoder_sparse_step", "only models with experts in every layer are supported (1, and mlp_only_layers empty)")
    sizes = _decoder(c, theta=1e6, eps=1e-6)
    routed = _routed(c, "moe_intermediate_size", "num_experts")
    slides = _sliding(c, sizes["layers"]) if c.flag("use_sliding_window") else {}
    biased = c.flag("attention_bias")
    return {**sizes, **routed, **slides, "attention_bias": biased, "output_bias": biased, "qk_norm": "head"}


def _gpt_oss(c: Config) -> dict[str, Any]:
    sizes = _decoder(c, theta=1.5e5, eps=1e-5)
    routed = _routed(c, "intermediate_size", "num_local_experts")
    quantised = c.get("quantization_config") is not None and c.part("quantization_config").get("quant_method") == "mxfp4"
    biased = c.flag("attention_bias", True)
    return {
        **sizes, **routed, **_sliding(c, sizes["layers"]), "expert_dtype": "mxfp4" if quantised else "", "router_bias": True,
        "expert_bias": True, "attention_bias": biased, "output_bias": biased, "sinks": True,
    }  # fmt: skip


def _olmoe(c: Config) -> dict[str, Any]:
    sizes = _decoder(c, theta=1e4, eps=1e-5)
    routed = _routed(c, "intermediate_size", "num_experts")
    biased = c.flag("attention_bias")
    return {**sizes, **routed, "attention_bias": biased, "output_bias": biased, "qk_norm": "full"}


_FAMILIES: dict[str, Callable[[Config], dict[str, Any]]] = {
    "mixtral": _mixtral, "dbrx": _dbrx, "deepseek_v2": _deepseek_v2, "qwen3_moe": _qwen3_moe, "gpt_oss": _gpt_oss, "olmoe": _olmoe,
}  # fmt: skip
