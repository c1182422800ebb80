"""Policies: YAML, defaults, and errors that name the field."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from sim.errors import UserError
from sim.schedulers import policy, registry
from sim.schedulers.policy import Policy
from sim.schedulers.sizes import page_bytes, sizes
from sim.testing.cases import tiny_model


def test_reads_yaml(tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text("batch: 504\nmicrobatch: 36\nattention: cpu\n")
    found = policy.load(path)
    assert (found.batch, found.microbatch, found.microbatches, found.attention) == (504, 36, 14, "cpu")
    assert (found.static_experts, found.prefill_rows, found.padded, found.pages) == (0, 36, False, None)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("batch: 0\nmicrobatch: 1\n", "batch: Input should be greater than 0"),
        ("batch: 4\n", "microbatch: missing"),
        ("batch: 4\nmicrobatch: 8\n", "microbatch: is 8, more than the batch of 4"),
        ("batch: 4\nmicrobatch: 2\nprefill_microbatch: 3\n", "prefill_microbatch: is 3; at most the microbatch of 2"),
        ("batch: 4\nmicrobatch: 2\nubs: 2\n", "ubs: unknown field"),
        ("batch: 4\nmicrobatch: 2\nattention: tpu\n", "attention: Input should be 'cpu' or 'gpu'"),
        ("batch: 4\nmicrobatch: 2\nrefill: 0\n", "refill: Input should be greater than 0"),
        ("batch: 4\nmicrobatch: 2\nstatic_experts: -1\n", "static_experts: Input should be greater than or equal to 0"),
    ],
)
def test_errors_name_file_and_field(tmp_path: Path, text: str, told: str) -> None:
    path = tmp_path / "p.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as e:
        policy.load(path)
    assert str(e.value).startswith(str(path)) and told in str(e.value)


def test_is_frozen() -> None:
    with pytest.raises(ValidationError):
        Policy(batch=4, microbatch=2).batch = 5  # type: ignore[misc]


def test_microbatches_round_up() -> None:
    assert [Policy(batch=b, microbatch=4).microbatches for b in (4, 5, 8, 9)] == [1, 2, 2, 3]


def test_attention_that_the_scheduler_does_not_do_is_refused() -> None:
    for name, where in (("flexgen", "cpu"), ("flexgen-c", "gpu"), ("fastdecode", "gpu"), ("deepspeed", "cpu"), ("resident", "cpu")):
        with pytest.raises(UserError, match=f"policy.attention: is '{where}'"):
            registry.load(name)(tiny_model(), Policy(batch=1, microbatch=1, attention=where))


def test_more_static_experts_than_there_are_is_refused() -> None:
    registry.load("cgopipe")(tiny_model(experts=4), Policy(batch=1, microbatch=1, static_experts=4))
    with pytest.raises(UserError, match="policy.static_experts: is 5; tiny-3x4 has 4 experts a layer"):
        registry.load("cgopipe")(tiny_model(experts=4), Policy(batch=1, microbatch=1, static_experts=5))


def test_pages_have_whole_rows_and_the_last_takes_the_rest() -> None:
    """4 experts of 3 * 24 rows [32] in 2 bytes: 288 rows of 64 bytes over 5 pages."""
    model = tiny_model(experts=4)
    assert page_bytes(model, Policy(batch=5, microbatch=1)) == (57 * 64,) * 4 + (60 * 64,)
    assert page_bytes(model, Policy(batch=5, microbatch=1, pages=1)) == (288 * 64,)
    assert sum(page_bytes(model, Policy(batch=5, microbatch=1, static_experts=3))) == model.expert_bytes
    assert page_bytes(model, Policy(batch=5, microbatch=1, static_experts=4)) == ()


def test_row_sizes_of_mixtral() -> None:
    """D1 12,288 B and D2 8,192 B a token and layer; 2.8186 GB of experts a layer (MoE-Lightning 1.3)."""
    from sim import models

    z = sizes(models.load("mixtral-8x7b"), Policy(batch=1020, microbatch=68))
    assert (z.qkv_bytes, z.attn_bytes, z.hidden_bytes, z.kv_bytes) == (12288, 8192, 8192, 4096)
    assert (z.pages, z.layer_bytes) == (15, 2_818_572_288)
