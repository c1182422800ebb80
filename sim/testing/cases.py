"""Small runs that reach every branch of a scheduler: the inputs of the conformance battery."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from sim.events import Request
from sim.machines.schema import Lane, Machine, Memory, OpRate, Resource
from sim.models.spec import ModelSpec
from sim.schedulers.policy import Policy
from sim.tasks import PS_PER_S

LANES = ("gpu", "cpu", "h2d", "d2h", "pin")


@dataclass(frozen=True, slots=True)
class Case:
    """requests with `lengths[request_id]`, the tokens that each really generates."""

    name: str
    model: ModelSpec
    policy: Policy
    requests: tuple[Request, ...]
    lengths: tuple[int, ...]
    seed: int = 0


def tiny_model(layers: int = 3, experts: int = 4, dense_layers: int = 0, window: int = 0) -> ModelSpec:
    """A Mixtral of a few thousand parameters; `window`: every other layer sees that many tokens only."""
    return ModelSpec(
        name=f"tiny-{layers}x{experts}", family="mixtral", layers=layers, hidden=32, ffn=24, experts=experts, top_k=min(2, experts),
        heads=4, kv_heads=2, head_dim=8, vocab=64, dense_layers=dense_layers, dense_ffn=24 if dense_layers else 0,
        attention="sliding" if window else "gqa", sliding_window=window, sliding_layers=tuple(range(0, layers, 2)) if window else (),
    )  # fmt: skip


def requests(
    prompts: Sequence[int], lengths: Sequence[int], known: bool = True, longest: int = 0, every_ps: int = 0
) -> tuple[Request, ...]:
    """One request for each prompt; `every_ps`: time between arrivals."""
    longest = max(longest, *lengths)
    return tuple(
        Request(i, p, n if known else longest, n if known else None, i * every_ps)
        for i, (p, n) in enumerate(zip(prompts, lengths, strict=True))
    )


def _case(name: str, model: ModelSpec, policy: Policy, prompts: Sequence[int], lengths: Sequence[int], **how: int | bool) -> Case:
    return Case(name, model, policy, requests(prompts, lengths, **how), tuple(lengths))  # type: ignore[arg-type]


def cases(seed: int = 0) -> tuple[Case, ...]:
    """The battery's runs: batches known beforehand, batches that end raggedly and refill, odd shapes."""
    rng = Random(seed)

    def some(n: int, low: int, high: int) -> list[int]:
        return [rng.randint(low, high) for _ in range(n)]

    return (
        _case("one batch", tiny_model(3), Policy(batch=8, microbatch=2), some(8, 3, 9), [5] * 8),
        _case("even layers", tiny_model(4), Policy(batch=6, microbatch=2), some(6, 3, 9), [6] * 6),
        _case("prefill only", tiny_model(2), Policy(batch=4, microbatch=1), some(4, 3, 9), [1] * 4),
        _case("two batches and a rest", tiny_model(3), Policy(batch=4, microbatch=2), some(10, 3, 9), [3] * 10),
        _case("one micro-batch", tiny_model(3), Policy(batch=3, microbatch=3), some(3, 3, 9), [4] * 3),
        _case("two micro-batches", tiny_model(2), Policy(batch=2, microbatch=1), some(2, 3, 9), [4] * 2),
        _case("one layer", tiny_model(1), Policy(batch=6, microbatch=2), some(6, 3, 9), [4] * 6),
        _case("leading dense layer", tiny_model(4, dense_layers=1), Policy(batch=6, microbatch=2), some(6, 3, 9), [5] * 6),
        _case("sliding window", tiny_model(3, window=6), Policy(batch=6, microbatch=2), some(6, 3, 9), [9] * 6),
        _case("experts on the GPU", tiny_model(3), Policy(batch=6, microbatch=2, static_experts=1), some(6, 3, 9), [4] * 6),
        _case("all experts on the GPU", tiny_model(3), Policy(batch=6, microbatch=2, static_experts=4), some(6, 3, 9), [4] * 6),
        _case("pages of their own", tiny_model(3), Policy(batch=6, microbatch=2, pages=5), some(6, 3, 9), [4] * 6),
        _case("fewer pages", tiny_model(3), Policy(batch=10, microbatch=2, pages=2), some(10, 3, 9), [4] * 10),
        _case("prompts in pieces", tiny_model(3), Policy(batch=6, microbatch=3, prefill_microbatch=1), some(6, 3, 9), [4] * 6),
        _case("padded", tiny_model(2), Policy(batch=6, microbatch=2, padded=True), some(6, 3, 9), [4] * 6),
        _case("refill", tiny_model(3), Policy(batch=8, microbatch=2), some(20, 3, 9), some(20, 1, 7), known=False, longest=7),
        _case("refill late", tiny_model(2), Policy(batch=6, microbatch=2, refill=1.0), some(14, 3, 9), some(14, 1, 6), known=False,
              longest=9),
        _case("known but unequal", tiny_model(3), Policy(batch=6, microbatch=2), some(9, 3, 9), some(9, 1, 6)),
        _case("slow arrivals", tiny_model(2), Policy(batch=3, microbatch=1), some(9, 3, 9), some(9, 1, 5), known=False, longest=5,
              every_ps=PS_PER_S // 500),
        _case("tight cache", tiny_model(2), Policy(batch=6, microbatch=3, cache_tokens=24), some(12, 3, 12), some(12, 1, 6), known=False,
              longest=6),
    )  # fmt: skip


def machine(rng: Random, memories: dict[str, int] | None = None) -> Machine:
    """A machine on which any lane may be the slow one. memories: budgets in bytes."""

    def rate(low: float, high: float) -> float:
        return float(low * (high / low) ** rng.random())

    def resource(kind: str, low: float, high: float) -> Resource:
        return Resource.model_validate({"kind": kind, "capacity": rate(low, high), "source": "drawn for a test"})

    compute = {"gpu": ("gpu.flops", "gpu.memory"), "cpu": ("cpu.flops", "cpu.memory")}
    paths = {"h2d": ("link.h2d", "cpu.memory"), "d2h": ("link.d2h", "cpu.memory"), "pin": ("cpu.memory",)}
    budgets = memories or {"gpu": 2**40, "cpu": 2**40, "pinned": 2**40}
    return Machine(
        name="drawn",
        resources={
            "gpu.flops": resource("flops", 1e8, 1e11), "gpu.memory": resource("memory", 1e8, 1e10),
            "cpu.flops": resource("flops", 1e8, 1e11), "cpu.memory": resource("memory", 1e8, 1e10),
            "link.h2d": resource("link", 1e6, 1e9), "link.d2h": resource("link", 1e6, 1e9),
        },
        memories={name: Memory(bytes=max(1, size), usable=1.0, source="drawn for a test") for name, size in budgets.items()},
        lanes=tuple(_lane(name, compute, paths) for name in LANES),
        ops=tuple(OpRate(op="*", lane=name, latency_s=rate(1e-7, 1e-3), source="drawn for a test") for name in LANES),
    )  # fmt: skip


def _lane(name: str, compute: dict[str, tuple[str, str]], paths: dict[str, tuple[str, ...]]) -> Lane:
    if name in compute:
        return Lane(name=name, kind="compute", compute=compute[name][0], memory=compute[name][1], home=name)
    return Lane(name=name, kind="copy", path=paths[name], home={"h2d": "gpu", "d2h": "cpu", "pin": "pinned"}[name])
