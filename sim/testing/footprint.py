"""Bytes that the buffers of a run really occupied, to hold against what a scheduler states."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from itertools import groupby

from sim import buffers
from sim.models.spec import ModelSpec
from sim.tasks import Time
from sim.testing.observed import Observed, Ran

STANDING = frozenset({"w", "pin", "kv_host", "kv_gpu", "kv_stage"})
"""Kinds that are allocated once; the others live from a write to the last read before the next."""


def memory(o: Observed) -> str:
    """No memory ever holds more than `memory(requests)` states for it, workspace of kernels apart."""
    stated = {name: sum(b for c, b in parts.items() if c != "workspace") for name, parts in o.scheduler.memory(o.case.requests).items()}
    fixed = _fixed(o)
    try:
        found = peaks(o)
    except ValueError as e:
        return str(e)
    for name, most in found.items():
        if most + fixed[name] > stated.get(name, 0):
            return f"memory {name!r} holds {most + fixed[name]:,} bytes; the scheduler states {stated.get(name, 0):,}"
    return ""


def _fixed(o: Observed) -> dict[str, int]:
    """Weights at home: dense ones on the GPU, and every expert either there or on the host."""
    model, parts = o.case.model, o.scheduler.memory(o.case.requests)
    at_home = parts["gpu"]["weights"]
    return {"gpu": at_home, "cpu": model.weight_bytes - at_home, "pinned": 0}


def peaks(o: Observed) -> dict[str, int]:
    """Most bytes that buffers of each memory occupy at a time."""
    steps: dict[str, list[tuple[Time, int]]] = {"gpu": [], "cpu": [], "pinned": []}
    for name, size, since, until in _lives(o):
        steps[buffers.memory(name)] += [(since, size), (until, -size)]
    out = {}
    for home, changes in steps.items():
        held = most = 0
        for _, size in sorted(changes):
            held += size
            most = max(most, held)
        out[home] = most
    return out


def _lives(o: Observed) -> Iterator[tuple[str, int, Time, Time]]:
    """(buffer, bytes, from, until) of every life of every buffer."""
    end = max((r.end for r in o.ran), default=0) + 1
    touched: dict[str, list[Ran]] = defaultdict(list)
    for r in o.done:
        for b in sorted({*r.task.reads, *r.task.writes}):
            touched[b].append(r)
    for b, ran in touched.items():
        kind = buffers.parse(b)[0]
        if kind in STANDING:
            # Copies of one page tell its size; those of a whole layer only an average.
            single = [r for r in ran if r.task.page >= 0]
            yield b, max(_bytes(o.case.model, b, kind, r) for r in single or ran), 0, end
            continue
        for life in _split(b, ran):
            yield b, _bytes(o.case.model, b, kind, life[0]), life[0].start, max(r.end for r in life)


def _split(b: str, ran: list[Ran]) -> Iterator[list[Ran]]:
    """Accesses grouped by the write that began them; an update in place begins nothing."""
    lives = 0

    def life(r: Ran) -> int:
        nonlocal lives
        lives += b in r.task.writes and b not in r.task.reads
        return lives

    yield from (list(group) for _, group in groupby(ran, key=life))


def _bytes(model: ModelSpec, b: str, kind: str, r: Ran) -> int:
    w = r.task.work
    if kind in ("w", "pin"):
        return w.bytes // sum(1 for x in r.task.writes if x.startswith(kind)) if b in r.task.writes else 0
    if kind.startswith("kv_"):
        return _cached(model, r) * model.kv_bytes_per_token_layer
    if kind == "token":
        return 0
    width = {"hidden": model.hidden, "qkv": model.qkv_dim, "attn": model.attention_out_dim}[kind.removesuffix("_host")]
    return w.tokens * width * model.dtype_bytes


def _cached(model: ModelSpec, r: Ran) -> int:
    """Entries that a task leaves in or finds in a cache; a windowed layer's prompt attention does not tell."""
    w = r.task.work
    if w.bytes:
        return w.bytes // model.kv_bytes_per_token_layer
    if w.op == "attn_prefill":
        return 0 if r.task.layer in model.sliding_layers else w.tokens
    return w.context
