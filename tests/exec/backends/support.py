"""A small model, a machine, workloads with unequal prompts, and the plain decoder that all schedules must equal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache

import numpy as np

from exec.backends.cuda.device import Device
from exec.local import compute_stream
from exec.session import Outcome, run
from exec.weights import Weights, random_weights, split_expert
from sim.events import Request
from sim.machines.schema import Lane, Machine, Memory, OpRate, Resource
from sim.models.spec import ModelSpec
from sim.schedulers import registry
from sim.schedulers.policy import Policy

SPEC = ModelSpec(
    "small", "mixtral", layers=3, hidden=64, ffn=96, experts=4, top_k=2, heads=4, kv_heads=2, head_dim=16, vocab=211, dtype="fp32",
    rope_theta=1e4, norm_eps=1e-5, max_positions=512,
)  # fmt: skip
SCHEDULERS = registry.names()
MIB = 1 << 20


@cache
def weights() -> Weights:
    return random_weights(SPEC, 7)


def machine(rates: Mapping[str, float] | None = None, threads: int = 1, **budgets: int) -> Machine:
    """rates: bytes/s of paced lanes; budgets: bytes by memory."""
    paced = dict(rates or {})
    sizes = {"gpu": 64 * MIB, "cpu": 64 * MIB, "pinned": 16 * MIB, **budgets}
    lanes = [
        Lane(name="gpu", kind="compute", compute="flops", memory="dram", cores="cores", threads=threads, home="gpu"),
        Lane(name="cpu", kind="compute", compute="flops", memory="dram", cores="cores", threads=threads, home="cpu"),
        *(Lane(name=n, kind="copy", path=("dram",), threads=1, paced_bytes_per_s=paced.get(n)) for n in ("h2d", "d2h", "pin")),
    ]
    return Machine(
        name="here",
        resources={
            "flops": Resource(kind="flops", capacity=1e11, source="a test"),
            "dram": Resource(kind="memory", capacity=1e10, source="a test"),
            "cores": Resource(kind="cores", capacity=2, source="a test"),
        },
        memories={n: Memory(bytes=b, source="a test") for n, b in sizes.items()},
        lanes=tuple(lanes),
        ops=tuple(OpRate(op="*", lane=lane.name, source="a test") for lane in lanes),
    )


def machine_of(device: Device, **budgets: int) -> Machine:
    """`machine`, its compute stream that of the device."""
    made, (unit, gpu) = machine(**budgets), compute_stream(device.blocks() or 1)
    return made.model_copy(update={"resources": {**made.resources, "gpu": unit}, "lanes": (gpu, *made.lanes[1:])})


Work = tuple[list[Request], list[list[int]], list[int]]
"""Requests, prompts and lengths."""


def workload(prompts: Sequence[int], gen: int | Sequence[int], seed: int = 0, known: bool = True) -> Work:
    """known: whether requests state how many tokens they generate."""
    rng = np.random.default_rng(seed)
    lengths = [gen] * len(prompts) if isinstance(gen, int) else list(gen)
    most = max(lengths)
    requests = [Request(i, n, lengths[i] if known else most, lengths[i] if known else None) for i, n in enumerate(prompts)]
    return requests, [rng.integers(0, SPEC.vocab, n).tolist() for n in prompts], lengths


def execute(scheduler: str, policy: Policy, work: Work, on: Machine | None = None, **options: object) -> Outcome:
    requests, prompts, lengths = work
    made = registry.load(scheduler)(SPEC, policy)
    return run(SPEC, weights(), on or machine(), made, requests, prompts, lengths=lengths, **options)  # type: ignore[arg-type]


# The plain decoder ----------------------------------------------------------------------------------


def plain(prompt: Sequence[int], gen: int) -> tuple[list[int], np.ndarray]:
    """Greedy tokens and their logits [gen, vocab]: the whole sequence again for every token, in float64, no cache."""
    ids, rows = list(prompt), []
    for _ in range(gen):
        rows.append(_logits(np.array(ids)))
        ids.append(int(rows[-1].argmax()))
    return ids[len(prompt) :], np.stack(rows)


def _norm(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + SPEC.norm_eps) * weight


def _rotate(x: np.ndarray) -> np.ndarray:
    """x [tokens, heads, D]"""
    half = SPEC.head_dim // 2
    angles = np.arange(len(x))[:, None] / SPEC.rope_theta ** (np.arange(half) / half)
    cos, sin = np.cos(angles)[:, None], np.sin(angles)[:, None]
    a, b = x[..., :half], x[..., half:]
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], -1)


def _attention(qkv: np.ndarray) -> np.ndarray:
    t, h, g, d = len(qkv), SPEC.heads, SPEC.kv_heads, SPEC.head_dim
    q, k, v = (part.reshape(t, -1, d) for part in np.split(qkv, [h * d, (h + g) * d], axis=1))
    q, k, v = _rotate(q), np.repeat(_rotate(k), h // g, 1), np.repeat(v, h // g, 1)
    scores = np.einsum("qhd,khd->hqk", q, k) / np.sqrt(d) + np.triu(np.full((t, t), -np.inf), 1)
    p = np.exp(scores - scores.max(-1, keepdims=True))
    return np.einsum("hqk,khd->qhd", p / p.sum(-1, keepdims=True), v).reshape(t, -1)


def _moe(x: np.ndarray, router: np.ndarray, experts: np.ndarray) -> np.ndarray:
    logits, out = x @ router.T, np.zeros_like(x)
    for t, row in enumerate(x):
        chosen = np.argsort(-logits[t], kind="stable")[: SPEC.top_k]
        p = np.exp(logits[t, chosen] - logits[t, chosen].max())
        for e, weight in zip(chosen, p / p.sum(), strict=True):
            gate, up, down = split_expert(SPEC, experts, int(e))
            inner = gate @ row
            out[t] += weight * (down @ (inner / (1 + np.exp(-inner)) * (up @ row)))
    return out


def _logits(ids: np.ndarray) -> np.ndarray:
    w = weights()
    x = w.embed[ids].astype(np.float64)
    for layer, experts in zip(w.layers, w.experts, strict=True):
        x = x + _attention(_norm(x, layer.attn_norm) @ layer.wqkv.T) @ layer.wo.T
        x = x + _moe(_norm(x, layer.ffn_norm), layer.router, experts)
    return _norm(x[-1:], w.final_norm)[0] @ w.lm_head.T


@cache
def _plain(prompt: tuple[int, ...], gen: int) -> tuple[list[int], np.ndarray]:
    return plain(prompt, gen)


def assert_equals_plain(outcome: Outcome, work: Work) -> float:
    """Tokens are the plain decoder's, logits within 1e-4 of the row's largest magnitude; returns the largest error."""
    worst = 0.0
    for request, prompt, length in zip(*work, strict=True):
        tokens, logits = _plain(tuple(prompt), length)
        assert outcome.tokens[request.request_id] == tokens, f"request {request.request_id}"
        found = outcome.logits[request.request_id][:length]
        worst = max(worst, float((np.abs(found - logits).max(1) / np.abs(logits).max(1)).max()))
    assert worst < 1e-4
    return worst
