"""Parameter counts and bytes of the built-in models, against the published figures."""

import pytest

from sim import models
from sim.errors import UserError

PUBLISHED = {  # billions: total, active; from each model card
    "mixtral-8x7b": (46.70, 12.88),
    "mixtral-8x22b": (140.6, 39.1),
    "dbrx": (131.6, 36.0),
    "deepseek-v2-lite": (15.7, 2.4),
    "qwen3-30b-a3b": (30.5, 3.3),
    "gpt-oss-20b": (20.9, 3.6),
    "olmoe": (6.9, 1.3),
}
EMBEDDING_NOT_COUNTED = {"deepseek-v2-lite", "gpt-oss-20b"}  # as active, by their authors


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_parameter_counts(name: str) -> None:
    spec = models.load(name)
    total, active = PUBLISHED[name]
    counted = spec.active_params - (spec.embedding_params if name in EMBEDDING_NOT_COUNTED else 0)
    assert spec.total_params / 1e9 == pytest.approx(total, abs=0.05)
    assert counted / 1e9 == pytest.approx(active, rel=0.025)


def test_exact_counts() -> None:
    assert models.load("mixtral-8x7b").total_params == 46_702_792_704
    assert models.load("qwen3-30b-a3b").total_params == 30_532_122_624
    assert models.load("gpt-oss-20b").total_params == 20_914_757_184


@pytest.mark.parametrize(("name", "gigabytes"), [("mixtral-8x7b", 2.8186), ("mixtral-8x22b", 4.8318), ("dbrx", 6.3418)])
def test_expert_bytes_of_a_layer_match_the_paper(name: str, gigabytes: float) -> None:
    assert models.load(name).layer_expert_bytes / 1e9 == pytest.approx(gigabytes, abs=5e-5)


def test_weights_are_experts_plus_the_rest() -> None:
    for name in models.names():
        spec = models.load(name)
        if not spec.expert_dtype:
            assert spec.weight_bytes == spec.total_params * spec.dtype_bytes, name
        assert spec.weight_bytes - spec.dense_bytes == spec.moe_layers * spec.experts * spec.expert_bytes > 0, name


def test_leading_dense_layer_has_no_experts() -> None:
    spec = models.load("deepseek-v2-lite")
    assert spec.weight_bytes - spec.dense_bytes == (spec.layers - 1) * spec.layer_expert_bytes > 0


def test_kv_row_of_each_attention_kind() -> None:
    assert models.load("mixtral-8x7b").kv_bytes_per_token_layer == 2 * 8 * 128 * 2
    assert models.load("deepseek-v2-lite").kv_bytes_per_token_layer == (512 + 64) * 2
    assert models.load("tiny-mixtral").kv_bytes_per_token_layer == 2 * 4 * 64 * 4


def test_sliding_layers_keep_the_window_only() -> None:
    spec = models.load("gpt-oss-20b")
    assert [spec.kv_entries(layer, 1000) for layer in (0, 1)] == [128, 1000]
    assert spec.kv_bytes(1000) == 12 * (128 + 1000) * 2 * 8 * 64 * 2


def test_offload_sizes_of_a_token_match_the_paper() -> None:
    """D1 (QKV to the host) 12,288 B and D2 (attention output) 8,192 B a token and layer."""
    spec = models.load("mixtral-8x7b")
    assert spec.qkv_dim * spec.dtype_bytes == 12_288
    assert spec.attention_out_dim * spec.dtype_bytes == 8_192


def test_mxfp4_experts_take_4_25_bits() -> None:
    spec = models.load("gpt-oss-20b")
    assert spec.weight_bytes / 2**30 == pytest.approx(12.8, abs=0.05)  # "12.8 GiB checkpoint", gpt-oss model card


def test_only_plain_mixtral_is_executable() -> None:
    executable = {n for n in models.names() if models.load(n).executable}
    assert executable == {"mixtral-8x7b", "mixtral-8x22b", "tiny-mixtral"}
    assert "MLA" in models.load("deepseek-v2-lite").not_executable_because
    assert "sliding-window" in models.load("gpt-oss-20b").not_executable_because


def test_unknown_name_names_the_nearest() -> None:
    with pytest.raises(UserError, match="--model: unknown name 'mixtral-8x7'; did you mean 'mixtral-8x7b'"):
        models.load("mixtral-8x7")
