"""Bytes that a schedule states, worked out by hand, and the refusal of what does not fit."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from sim import models
from sim.errors import UserError
from sim.events import Request
from sim.machines.schema import Memory
from sim.schedulers import registry
from sim.schedulers.memory import refuse_if_too_big
from sim.schedulers.policy import Policy
from sim.testing.cases import tiny_model

B = 2
MODEL = tiny_model(layers=3, experts=4)
HIDDEN, QKV, ATTN, KV = 32 * B, (4 + 2 * 2) * 8 * B, 4 * 8 * B, 2 * 2 * 8 * B
EXPERT = 3 * 32 * 24 * B


def stated(name: str, policy: Policy, requests: list[Request] | None = None) -> dict[str, dict[str, int]]:
    out: dict[str, dict[str, int]] = registry.load(name)(MODEL, policy).memory(requests or [Request(i, 10, 6, 6) for i in range(8)])
    return out


def test_cgopipe() -> None:
    """8 sequences of 10 + 6 tokens in 4 micro-batches of 2; one expert of four at home on the GPU."""
    found = stated("cgopipe", Policy(batch=8, microbatch=2, static_experts=1))
    assert found == {
        "gpu": {
            "weights": MODEL.dense_bytes + 3 * EXPERT,
            "weight_buffer": 2 * 3 * EXPERT,
            "kv": 0,
            "activations": 20 * (2 * (HIDDEN + QKV) + ATTN),
            "workspace": int(1.2 * B * 20 * 2 * (32 + 3 * 24)),
        },
        "cpu": {"weights": 3 * 3 * EXPERT, "kv": 3 * 8 * 16 * KV, "activations": 80 * HIDDEN},
        "pinned": {"pages": 3 * EXPERT, "activations": 8 * (QKV + ATTN)},
    }


def test_flexgen_stages_two_caches_and_pins_nothing() -> None:
    found = stated("flexgen", Policy(batch=8, microbatch=2))
    assert found["gpu"]["kv"] == 2 * 2 * 16 * KV
    assert found["pinned"] == {"pages": 0, "activations": 0}
    assert found["cpu"]["kv"] == 3 * 8 * 16 * KV


def test_deepspeed_keeps_cache_and_activations_on_the_gpu() -> None:
    found = stated("deepspeed", Policy(batch=8, microbatch=2))
    assert found["gpu"]["kv"] == 3 * 8 * 16 * KV and found["cpu"]["kv"] == 0
    assert found["gpu"]["activations"] == 80 * HIDDEN + 20 * (QKV + ATTN)
    assert found["cpu"] == {"weights": 3 * 4 * EXPERT, "kv": 0, "activations": 0}


def test_resident_has_everything_on_the_gpu() -> None:
    found = stated("resident", Policy(batch=8, microbatch=2))
    assert found["gpu"]["weights"] == MODEL.weight_bytes and found["gpu"]["weight_buffer"] == 0
    assert found["gpu"]["activations"] == 20 * (HIDDEN + QKV + ATTN)
    assert not any(found["cpu"].values()) and not any(found["pinned"].values())


def test_cgopipe_with_attention_on_the_gpu_is_flexgen() -> None:
    policy = Policy(batch=8, microbatch=2, attention="gpu")
    assert stated("cgopipe", policy) == stated("flexgen", Policy(batch=8, microbatch=2))


def test_two_micro_batches_are_not_swapped() -> None:
    assert stated("cgopipe", Policy(batch=4, microbatch=2), [Request(i, 10, 6, 6) for i in range(4)])["cpu"]["activations"] == 0


def test_the_largest_of_several_batches_counts() -> None:
    short, long = [Request(i, 2, 6, 6) for i in range(4)], [Request(i, 10, 6, 6) for i in range(4, 8)]
    both = stated("cgopipe", Policy(batch=4, microbatch=2, cache_tokens=99), short + long)
    assert both["cpu"]["kv"] == 3 * 4 * 16 * KV


def test_padded_prompts_count_at_the_longest() -> None:
    mixed = [Request(i, i + 3, 6, 6) for i in range(8)]
    longest = [Request(i, 10, 6, 6) for i in range(8)]
    padded = stated("cgopipe", Policy(batch=8, microbatch=2, padded=True), mixed)
    assert padded == stated("cgopipe", Policy(batch=8, microbatch=2), longest)
    assert padded["cpu"]["kv"] > stated("cgopipe", Policy(batch=8, microbatch=2), mixed)["cpu"]["kv"]
    # Where newcomers take the places of what ended, Algorithm 2's cache size bounds them: padded too.
    mixed, longest = [replace(r, output_tokens=None) for r in mixed], [replace(r, output_tokens=None) for r in longest]
    assert stated("cgopipe", Policy(batch=4, microbatch=2, padded=True), mixed) == stated("cgopipe", Policy(batch=4, microbatch=2), longest)


def test_decode_rows_count_where_prompts_are_short() -> None:
    found = stated("cgopipe", Policy(batch=8, microbatch=1), [Request(i, 1, 6, 6) for i in range(8)])
    assert found["gpu"]["activations"] == 8 * (HIDDEN + QKV + ATTN)


def test_refills_are_bounded_by_the_cache_size() -> None:
    requests = [Request(i, 10, 6) for i in range(20)]
    found = stated("cgopipe", Policy(batch=8, microbatch=2, cache_tokens=25), requests)
    assert found["cpu"]["kv"] == 3 * 4 * 25 * KV
    assert found["gpu"]["activations"] == 19 * (2 * (HIDDEN + QKV) + ATTN), "25 entries, 6 of them to come"
    loose = stated("cgopipe", Policy(batch=8, microbatch=2, cache_tokens=99), requests)
    assert loose["cpu"]["kv"] == 3 * 4 * 2 * 16 * KV


def test_mixtral_on_the_l4_as_published() -> None:
    """Settings S2(p), gen 128: 13 micro-batches of 68 padded prompts of 418; 2 x 2.8186 GB of buffer."""
    mixtral = models.load("mixtral-8x7b")
    scheduler = registry.load("cgopipe")(mixtral, Policy(batch=884, microbatch=68, padded=True))
    found = scheduler.memory([Request(i, 418, 128, 128) for i in range(884)])
    assert found["gpu"]["weight_buffer"] == 2 * 2_818_572_288
    assert found["cpu"]["weights"] == 32 * 2_818_572_288
    assert found["cpu"]["kv"] == 4096 * 32 * 884 * (418 + 128)
    assert found["pinned"]["pages"] == 2_818_572_288
    assert sum(found["gpu"].values()) < 0.86 * 24 * 2**30


def test_no_requests_are_refused() -> None:
    with pytest.raises(UserError, match="requests: there are none"):
        registry.load("cgopipe")(MODEL, Policy(batch=8, microbatch=2)).memory([])


def memories(**sizes: int) -> dict[str, Memory]:
    return {name: Memory(bytes=size, usable=0.5, source="test") for name, size in sizes.items()}


NEEDED = {"gpu": {"weights": 10, "kv": 50}, "cpu": {"weights": 5, "kv": 0}, "pinned": {"pages": 7, "activations": 2}}


def test_what_fits_exactly_is_taken() -> None:
    refuse_if_too_big(NEEDED, memories(gpu=120, cpu=10, pinned=18))


@pytest.mark.parametrize(
    ("sizes", "told"),
    [
        ({"gpu": 118, "cpu": 10, "pinned": 18}, "'gpu': 1 bytes are missing; needed 60 (weights 10, kv 50), usable 59; lower --batch"),
        ({"gpu": 120, "cpu": 8, "pinned": 18}, "memory 'cpu': 1 bytes are missing; needed 5 (weights 5), usable 4; raise static_experts"),
        ({"gpu": 120, "cpu": 10, "pinned": 2}, "memory 'pinned': 8 bytes are missing; needed 9 (pages 7, activations 2), usable 1"),
        ({"gpu": 120, "cpu": 26}, "memory 'cpu': 1 bytes are missing; needed 14 (weights 5, pages 7, activations 2), usable 13"),
        ({"cpu": 100}, "machine: has no memory 'gpu', of which 60 bytes are needed"),
    ],
)
def test_refusals_name_memory_bytes_and_knob(sizes: dict[str, int], told: str) -> None:
    with pytest.raises(UserError, match=re.escape(told)):
        refuse_if_too_big(NEEDED, memories(**sizes))


def test_every_consumer_has_a_knob() -> None:
    from sim.schedulers.memory import KNOBS

    found = stated("cgopipe", Policy(batch=8, microbatch=2))
    assert {(home, c) for home, parts in found.items() for c in parts} == set(KNOBS)


def test_a_memory_that_is_not_needed_need_not_exist() -> None:
    refuse_if_too_big({"gpu": {"weights": 1}, "cpu": {"kv": 0}, "pinned": {"pages": 0}}, memories(gpu=10))
