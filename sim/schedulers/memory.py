"""Peak bytes of a schedule, by memory and consumer, and the refusal of what does not fit.

Formulas follow the memory constraints of MoE-Lightning's released optimizer (home, double buffer,
workspace; "gpu_home" and "T4"/"L4" forms), with the sizes of the buffers that the schedule really
keeps in place of its constants.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from typing import TYPE_CHECKING

from sim.errors import UserError
from sim.events import Request
from sim.machines.schema import Memory
from sim.schedulers.batching import cache_tokens, prompt_rows
from sim.schedulers.passes import KV_STAGE
from sim.schedulers.policy import Policy
from sim.schedulers.prefill import LINES
from sim.schedulers.sequences import Sequences, generation
from sim.schedulers.sizes import Sizes

if TYPE_CHECKING:
    from sim.schedulers.base import Scheduler

Peak = dict[str, dict[str, int]]
"""Bytes by memory ("gpu", "cpu", "pinned") and consumer."""

WORKSPACE_MARGIN = 1.2
"""Fragmentation beside the MoE kernel's intermediates (released optimizer)."""

KNOBS = {
    ("gpu", "weights"): "lower static_experts in the policy, or take a scheduler that streams experts",
    ("gpu", "weight_buffer"): "raise static_experts only if the weights then fit, or take a machine with more GPU memory",
    ("gpu", "kv"): "lower --batch",
    ("gpu", "activations"): "lower --microbatch",
    ("gpu", "workspace"): "lower --microbatch",
    ("cpu", "weights"): "raise static_experts in the policy",
    ("cpu", "kv"): "lower --batch",
    ("cpu", "activations"): "lower --batch",
    ("pinned", "pages"): "raise static_experts in the policy",
    ("pinned", "activations"): "lower --batch",
}


@dataclass(frozen=True, slots=True)
class Load:
    """The most that is in a batch at a time.

    sequences: in the batch. kv_bytes: of all of them at their longest, over all layers;
    microbatch_kv: entries of one layer and micro-batch. prompt_rows: of all of them; microbatch_rows: of one prefill micro-batch.
    """

    sequences: int
    kv_bytes: int
    microbatch_kv: int
    prompt_rows: int
    microbatch_rows: int
    microbatches: int


def load(scheduler: Scheduler, requests: Sequence[Request]) -> Load:
    """Largest batch that `requests` lead to: over the batches, where each is served to its end; where
    newcomers take the places of what ended, whatever Algorithm 2's cache size lets in."""
    policy = scheduler.policy
    rows, gen = prompt_rows(requests, policy.padded), generation(requests, policy)
    limit = cache_tokens(policy, [rows[r.request_id] for r in requests[: policy.batch]], gen)
    limit = cache_tokens(policy, list(rows.values()), gen, limit)
    lengths = {r.output_tokens for r in requests}
    if None in lengths or len(lengths) > 1:
        shortest = min(generation([r], policy) for r in requests)
        return refilled(policy, scheduler.sizes, max(rows.values()), gen, shortest, limit, len(requests))
    s = Sequences(policy)
    s.waiting, s.closed = list(requests), True
    batches, caches, kv = [], dict.fromkeys(range(policy.microbatches), 0), 0
    while s.waiting:
        s.admit()
        batches.append(_batch(s))
        for r in s.decode_rows():
            caches[r.cache] = max(caches[r.cache], sum(scheduler.model.kv_bytes(n + gen) for n in r.lengths))
            kv = max(kv, sum(r.lengths) + r.sequences * gen)
        s.clear()
    most = Load(*(max(column) for column in zip(*map(astuple, batches), strict=True)))
    # A micro-batch's cache is as large as the largest of all batches makes it.
    return replace(most, kv_bytes=sum(caches.values()), microbatch_kv=kv)


def _batch(s: Sequences) -> Load:
    prompts = [r.tokens for r in s.prefill_rows()]
    return Load(s.live, 0, 0, sum(prompts), max(prompts), len(prompts))


def refilled(policy: Policy, sizes: Sizes, longest: int, gen: int, shortest_gen: int, limit: int, requests: int) -> Load:
    """Where newcomers take the places of what ended. longest: prompt; gen, shortest_gen: the most and the least that a
    sequence may generate; limit: cache entries of one micro-batch."""
    sequences = min(policy.batch, requests)
    together = min(policy.microbatch, sequences)
    slots = min(policy.microbatches, sequences)
    kv = min(limit, together * (longest + gen))
    prompts = min(limit - shortest_gen, together * longest)
    all_kv = slots * kv * sizes.kv_bytes * sizes.layers  # each micro-batch may be full at some time
    rows = min(prompts, policy.prefill_rows * longest)
    pieces = -(-together // policy.prefill_rows) * slots
    return Load(sequences, all_kv, kv, min(slots * prompts, sequences * longest), rows, pieces)


def peak(scheduler: Scheduler, requests: Sequence[Request]) -> Peak:
    """Bytes of each consumer in each memory when a run of `requests` needs most.

    Activations are those of prefill or decode, whichever needs more. Raises UserError where the
    requests cannot be batched at all.
    """
    if not requests:
        raise UserError("requests: there are none; at least one is needed")
    return peak_of(scheduler, load(scheduler, requests))


def peak_of(scheduler: Scheduler, most: Load) -> Peak:
    """As `peak`, of what is known to be in a batch at a time."""
    return {"gpu": _gpu(scheduler, most), "cpu": _cpu(scheduler, most), "pinned": _pinned(scheduler, most)}


def _gpu(s: Scheduler, most: Load) -> dict[str, int]:
    z, m = s.sizes, s.model
    experts_home = m.moe_layers * (m.layer_expert_bytes - z.layer_bytes)
    kv = most.kv_bytes if s.kv == "gpu" else s.pools.get(KV_STAGE, 0) * most.microbatch_kv * z.kv_bytes
    rows = max(most.microbatch_rows, min(s.policy.microbatch, most.sequences))
    at_once = 1.0 if s.experts_at_once else 1 / m.experts
    workspace = WORKSPACE_MARGIN * m.dtype_bytes * rows * m.top_k * (m.hidden + 3 * m.ffn * at_once)
    return {
        "weights": m.dense_bytes + experts_home,
        "weight_buffer": 2 * z.layer_bytes,
        "kv": kv,
        "activations": _activations(s, most),
        "workspace": int(workspace),
    }


def _activations(s: Scheduler, most: Load) -> int:
    """hidden, qkv and attn rows on the GPU."""
    z = s.sizes
    transient = z.qkv_bytes + z.attn_bytes
    if s.kv == "cpu":
        prefill = most.microbatch_rows * (LINES * (z.hidden_bytes + z.qkv_bytes) + z.attn_bytes)
    else:
        held = most.prompt_rows if s.streams else most.microbatch_rows
        prefill = held * z.hidden_bytes + most.microbatch_rows * transient
    return max(prefill, most.sequences * (z.hidden_bytes + transient))


def _cpu(s: Scheduler, most: Load) -> dict[str, int]:
    z, m = s.sizes, s.model
    swapped = s.kv == "cpu" and most.microbatches > LINES
    return {
        "weights": m.moe_layers * z.layer_bytes,
        "kv": most.kv_bytes if s.kv == "cpu" else 0,
        "activations": most.prompt_rows * z.hidden_bytes if swapped else 0,
    }


def _pinned(s: Scheduler, most: Load) -> dict[str, int]:
    z = s.sizes
    return {
        "pages": z.layer_bytes if s.stages else 0,
        "activations": most.sequences * (z.qkv_bytes + z.attn_bytes) if s.attention_on == "cpu" else 0,
    }


def refuse_if_too_big(needed: Peak, memories: Mapping[str, Memory]) -> None:
    """Raises UserError where a memory's budget is smaller than what is needed of it, naming the
    bytes that are missing and the knob to turn. Pinned memory counts as the CPU's where the machine
    states none."""
    for name, consumers in _by_budget(needed, memories).items():
        total, budget = sum(consumers.values()), memories[name].budget_bytes
        if total > budget:
            (home, what), most = max(consumers.items(), key=lambda kv: kv[1])
            parts = ", ".join(f"{c} {b:,}" for (_, c), b in consumers.items() if b)
            raise UserError(
                f"memory {name!r}: {total - budget:,} bytes are missing; needed {total:,} ({parts}), usable {budget:,}; {_knob(home, what)}"
            )


def short_of(needed: Peak, memories: Mapping[str, Memory]) -> dict[str, int]:
    """Bytes that are missing, by memory; all of them where the machine has no such memory."""
    totals: dict[str, int] = {}
    for home, consumers in needed.items():
        name = _budget_of(home, memories)
        totals[name] = totals.get(name, 0) + sum(consumers.values())
    budgets = {name: memories[name].budget_bytes if name in memories else 0 for name in totals}
    return {name: total - budgets[name] for name, total in totals.items() if total > budgets[name]}


def _budget_of(home: str, memories: Mapping[str, Memory]) -> str:
    return "cpu" if home == "pinned" and "pinned" not in memories else home


def _by_budget(needed: Peak, memories: Mapping[str, Memory]) -> dict[str, dict[tuple[str, str], int]]:
    budgets: dict[str, dict[tuple[str, str], int]] = {}
    for home, consumers in needed.items():
        name = _budget_of(home, memories)
        if name not in memories:
            if any(consumers.values()):
                total = sum(consumers.values())
                raise UserError(f"machine: has no memory {name!r}, of which {total:,} bytes are needed; add it to memories")
            continue
        budgets.setdefault(name, {}).update({(home, c): b for c, b in consumers.items()})
    return budgets


def _knob(home: str, consumer: str) -> str:
    return KNOBS[home, consumer]
