"""Reading config.json: counts equal to transformers' own modules, and errors that name file and key."""

import json
from pathlib import Path
from typing import Any

import pytest

from sim import models
from sim.errors import UserError

TINY: dict[str, Any] = {
    "model_type": "mixtral", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "num_local_experts": 4, "num_experts_per_tok": 2, "vocab_size": 128, "torch_dtype": "float32",
    "sliding_window": None, "something_new": {"nested": [1, 2]},
}  # fmt: skip


def write(directory: Path, values: Any) -> Path:
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text(values if isinstance(values, str) else json.dumps(values))
    return directory


def test_reads_sizes_and_ignores_unknown_keys(tmp_path: Path) -> None:
    spec = models.load(write(tmp_path / "m", TINY))
    assert (spec.layers, spec.hidden, spec.ffn, spec.experts, spec.top_k, spec.head_dim, spec.dtype) == (3, 64, 96, 4, 2, 16, "fp32")
    assert spec.executable


def oracle_configs() -> list[Any]:
    import transformers as t

    shared = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "vocab_size": 128}
    return [
        t.MixtralConfig(**shared, intermediate_size=96, num_key_value_heads=2, num_local_experts=4),
        t.Qwen3MoeConfig(**shared, intermediate_size=96, moe_intermediate_size=32, num_key_value_heads=2, num_experts=8, head_dim=16),
        t.OlmoeConfig(**shared, intermediate_size=32, num_key_value_heads=4, num_experts=8, num_experts_per_tok=2),
        t.GptOssConfig(**shared, intermediate_size=64, num_key_value_heads=2, num_local_experts=4, head_dim=16),
        t.DeepseekV2Config(
            **shared, intermediate_size=96, moe_intermediate_size=32, n_routed_experts=8, n_shared_experts=2, first_k_dense_replace=1,
            num_key_value_heads=4, kv_lora_rank=16, q_lora_rank=None, qk_nope_head_dim=16, qk_rope_head_dim=8, v_head_dim=16,
            num_experts_per_tok=2, n_group=1, topk_group=1,
        ),
        t.DeepseekV2Config(
            **shared, intermediate_size=96, moe_intermediate_size=32, n_routed_experts=8, n_shared_experts=1, first_k_dense_replace=2,
            num_key_value_heads=4, kv_lora_rank=16, q_lora_rank=24, qk_nope_head_dim=16, qk_rope_head_dim=8, v_head_dim=16,
            num_experts_per_tok=2, n_group=1, topk_group=1,
        ),
        t.DbrxConfig(
            d_model=64, n_heads=4, n_layers=3, vocab_size=128, attn_config={"kv_n_heads": 2, "rope_theta": 5e5},
            ffn_config={"ffn_hidden_size": 96, "moe_num_experts": 4, "moe_top_k": 2, "hidden_size": 64}, tie_word_embeddings=False,
        ),
    ]  # fmt: skip


@pytest.mark.parametrize("index", range(7))
def test_counts_equal_those_of_transformers(tmp_path: Path, index: int) -> None:
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    config = oracle_configs()[index]
    with torch.device("meta"):
        module = transformers.AutoModelForCausalLM.from_config(config)
    config.save_pretrained(tmp_path)
    spec = models.load(tmp_path)
    assert spec.total_params == sum(p.numel() for p in module.parameters()), config.model_type


REQUIRED = [k for k in TINY if k not in {"model_type", "torch_dtype", "sliding_window", "something_new", "num_key_value_heads"}]


@pytest.mark.parametrize("key", [*REQUIRED, "model_type"])
def test_missing_key_is_named(tmp_path: Path, key: str) -> None:
    write(tmp_path, {k: v for k, v in TINY.items() if k != key})
    with pytest.raises(UserError, match=rf"config\.json: {key}: missing"):
        models.load(tmp_path)


@pytest.mark.parametrize("value", [0, -4, 2.5, "64", True])
def test_bad_size_is_named(tmp_path: Path, value: Any) -> None:
    write(tmp_path, {**TINY, "hidden_size": value})
    with pytest.raises(UserError, match=r"config\.json: hidden_size: is .*; a positive integer is needed"):
        models.load(tmp_path)


@pytest.mark.parametrize("text", ["", "{", json.dumps(TINY)[:40], "not json"])
def test_malformed_or_truncated(tmp_path: Path, text: str) -> None:
    write(tmp_path, text)
    with pytest.raises(UserError, match=r"config\.json: line 1 column \d+: malformed or truncated JSON"):
        models.load(tmp_path)


def test_not_an_object_nor_text(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds a list; a JSON object is needed"):
        models.load(write(tmp_path / "list", [1]))
    (tmp_path / "config.json").write_bytes(b"\xff\xfe{}")
    with pytest.raises(UserError, match="not UTF-8"):
        models.load(tmp_path)


def test_directory_without_config(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"config\.json: cannot be read"):
        models.load(tmp_path)


def test_other_family_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="model_type: unknown name 'qwen2_moe'; did you mean 'qwen3_moe'"):
        models.load(write(tmp_path, {**TINY, "model_type": "qwen2_moe"}))


def test_nested_key_is_named_with_its_path(tmp_path: Path) -> None:
    dbrx = {"model_type": "dbrx", "d_model": 64, "n_heads": 4, "n_layers": 2, "vocab_size": 128, "attn_config": {"kv_n_heads": 2}}
    with pytest.raises(UserError, match=r"config\.json: ffn_config: missing"):
        models.load(write(tmp_path, dbrx))
    dbrx["ffn_config"] = {"ffn_hidden_size": 96, "moe_num_experts": 4}
    with pytest.raises(UserError, match=r"ffn_config\.moe_top_k: missing"):
        models.load(write(tmp_path, dbrx))


def test_contradicting_sizes(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="5 experts a token of only 4"):
        models.load(write(tmp_path, {**TINY, "num_experts_per_tok": 5}))
    with pytest.raises(UserError, match="divisor of the 4 query heads"):
        models.load(write(tmp_path, {**TINY, "num_key_value_heads": 3}))


def test_sliding_mixtral_is_simulated_only(tmp_path: Path) -> None:
    spec = models.load(write(tmp_path, {**TINY, "sliding_window": 16}))
    assert spec.sliding_layers == (0, 1, 2)
    assert not spec.executable
