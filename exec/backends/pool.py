"""PoolBackend: the CPU backend for schedules whose experts come from disk, through RAM, to the device and go again.

A schedule names slots (buffers expert.S on the device, expert_host.S in RAM); which expert a slot holds is the pool's
to know, and what a task computes with is checked against it. See `sim.schedulers.expert_cache` for the ops.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from exec import decoder
from exec.backends.buffers import of_kind
from exec.backends.copies import append_rows, check_bytes
from exec.backends.cpu import CpuBackend, Floats, Needed
from exec.backends.experts import Experts
from exec.backends.routing import RoutingRecorder, forced
from exec.links import Link
from exec.pool.pool import ExpertPool, Store
from exec.pool.tiers import Expert, Tier
from exec.products import set_threads, thread_count
from exec.runtime import Interrupt, Record
from exec.state import MicroBatch
from exec.weights import Weights
from kernels import combine, rms_norm
from sim import buffers
from sim.events import Result
from sim.residency.prefetch import NEXT_GATE


@dataclass(slots=True)
class Routed:
    """One micro-batch between its router and its combine.

    normed [T, H]; sorted [T k, H] by expert; out [T k, H] what the experts made of those. on_cpu: experts whose share comes
    from the CPU, weighted and summed.
    """

    routes: decoder.Routes
    normed: Floats
    sorted: Floats
    out: Floats
    on_cpu: set[int] = field(default_factory=set)


class PoolBackend(CpuBackend):
    """As `CpuBackend`, with `needed["gpu"]["expert_slots"]` and `needed["cpu"]["expert_slots"]` bytes for the two tiers.

    store: the checkpoint. next_gate: whether routers tell what the next layer's would choose on the same rows.
    Where the RAM tier has room for every expert, all are read before the clock starts, expert e of layer i to slot
    i * experts + e.
    """

    def __init__(self, *args: object, store: Store, next_gate: bool = False, **options: object) -> None:
        self._store = store
        self.gates = RoutingRecorder() if next_gate else None
        self._routed: dict[int, Routed] = {}
        super().__init__(*args, **options)  # type: ignore[arg-type]
        self._ops.update({
            "gate": self._gate, "experts": self._on_device, "cpu_experts": self._on_cpu, "combine": self._combine,
            "read_expert": self._read_expert, "load_expert": self._load_expert,
            "offload_normed": self._offload_normed, "load_partial": self._load_partial,
        })  # fmt: skip

    def _place_experts(self, weights: Weights, needed: Needed) -> Experts:
        """The pool's tiers. (There are no weights that a plan streams.)"""
        floats = {name: needed[name]["expert_slots"] // 4 for name in ("cpu", "gpu")}
        memory = {name: self.arenas[name].take("expert_slots", count, touch=True) for name, count in floats.items()}
        self.pool = ExpertPool(self._store, memory["cpu"], memory["gpu"])
        self._all_in_ram = floats["cpu"] >= self.model.layers * self.model.experts * self._store.expert_floats
        if self._all_in_ram:
            start = Link("start")
            for layer in range(self.model.layers):
                for e in range(self.model.experts):
                    self.pool.read(self._key(layer, e), (layer, e), start, Interrupt())
        return Experts([np.zeros(0, np.float32)], self.arenas, 0, False)

    def _key(self, layer: int, expert: int) -> int:
        return layer * self.model.experts + expert

    # Before the clock starts --------------------------------------------------------------------

    def prefill(self, requests: Sequence[int]) -> None:
        """Run the prompts of these requests as one micro-batch, experts straight from disk, and sample their first tokens."""
        gpu, model = self.arenas["gpu"], self.model
        set_threads(self._threads["gpu"])
        ids, batch = self.sequences.prompts(tuple(requests), self.sequences.prompt_tokens(requests))
        shapes = {
            "hidden": (batch.rows, model.hidden), "qkv": (batch.rows, model.qkv_dim), "attn": (batch.rows, model.attention_out_dim),
            "expert": (self._store.expert_floats,),
        }  # fmt: skip
        hidden, qkv, attn, expert = (gpu.take(f"prefill.{name}", shape) for name, shape in shapes.items())
        decoder.embed_tokens(self._embed, ids, hidden)
        for i, layer in enumerate(self._layers):
            decoder.pre_attn(model, layer, hidden, batch.positions, qkv, self._workspace("gpu", "pre_attn", batch))
            decoder.attn_prefill(model, qkv, batch.offsets, attn, self._workspace("gpu", "attn_prefill", batch))
            append_rows(self._cache, self.sequences, qkv, batch, i)
            decoder.post_attn(model, layer, self._streamed(i, expert), attn, hidden, self._workspace("gpu", "post_attn", batch))
        self._first_tokens(batch, hidden)
        for name in shapes:
            gpu.give(f"prefill.{name}")

    def _streamed(self, layer: int, room: Floats) -> Iterator[Floats]:
        for e in range(self.model.experts):
            self._store.fill((layer, e), room, Interrupt())
            yield room

    def _first_tokens(self, batch: MicroBatch, hidden: Floats) -> None:
        last, logits = hidden[batch.offsets[1:] - 1], np.empty((len(batch.requests), self.model.vocab), np.float32)
        space = self._workspace("gpu", "sample", batch, last.size)
        tokens = decoder.sample_tokens(self.model, self._final_norm, self._lm_head, last, logits, space)
        self.keep(batch, logits)
        self.sequences.sampled(batch.requests, tokens.tolist())

    # Loads --------------------------------------------------------------------------------------

    def _read_expert(self, task: Record, interrupt: Interrupt) -> None:
        slot = _slot(of_kind(task.writes, "expert_host"))
        self.pool.read(slot, (task.layer, task.page), self.links[self._lane(task)], interrupt, task.work.bytes)

    def _load_expert(self, task: Record, interrupt: Interrupt) -> None:
        source, slot = _slot(of_kind(task.reads, "expert_host")), _slot(of_kind(task.writes, "expert"))
        self.pool.load(source, slot, (task.layer, task.page), self.links[self._lane(task)], interrupt, task.work.bytes)

    @staticmethod
    def _lane(task: Record) -> str:
        assert task.lane is not None, task.number
        return task.lane

    # A layer ------------------------------------------------------------------------------------

    def _gate(self, task: Record, _: Interrupt) -> Result:
        model = self.model
        attn, hidden = (self._buffers.read(of_kind(task.reads, kind)) for kind in ("attn", "hidden"))
        batch, t = hidden.batch, hidden.batch.rows
        rows = self._buffers.write(of_kind(task.writes, "routed"), (t * (1 + model.top_k), model.hidden), batch)
        out = self._buffers.write(buffers.moe(task.microbatch), (t * model.top_k, model.hidden), batch)
        space = decoder.Scratch(self._space(task, batch))
        choice = forced(self._replay, task, batch)
        found = decoder.gate(model, self._layers[task.layer], attn.array, hidden.array, rows[:t], rows[t:], space, choice)
        routes = found._replace(positions=found.positions.copy(), offsets=found.offsets.copy())
        self._routed[task.microbatch] = Routed(routes, rows[:t], rows[t:], out)
        self._buffers.drop(of_kind(task.reads, "attn"))
        if self.recorder is not None:
            self.recorder.record(task, batch, routes.ids, routes.weights)
        return Result(experts=tuple(np.diff(routes.offsets).tolist()), facts=self._next_gate(task, batch, hidden.array, routes))

    def _next_gate(self, task: Record, batch: MicroBatch, hidden: Floats, routes: decoder.Routes) -> dict[str, list[int]]:
        """Rows of each expert by the next layer's router, on the rows that this one saw."""
        if self.gates is None:
            return {}
        if task.layer == 0:
            self.gates.record(task, batch, routes.ids, routes.weights)
        if task.layer + 1 == self.model.layers:
            return {}
        weights = self._layers[task.layer + 1]
        normed, logits = np.empty_like(hidden), np.empty((len(hidden), self.model.experts), np.float32)
        rms_norm.forward(hidden, weights.ffn_norm, self.model.norm_eps, normed)
        np.matmul(normed, weights.router.T, out=logits)
        ids, shares = decoder.route(logits, self.model.top_k)
        self.gates.record(task, batch, ids, shares, layer=task.layer + 1)
        return {NEXT_GATE: np.bincount(ids.ravel(), minlength=self.model.experts).tolist()}

    def _on_device(self, task: Record, _: Interrupt) -> None:
        """The experts in the slots that the task reads."""
        r = self._routed[task.microbatch]
        wanted = self._named(task, self.pool.device, _slots(task.reads, "expert"), r)
        space = decoder.Scratch(self._space(task, self._buffers.read(buffers.routed(task.microbatch)).batch))
        with self.pool.experts(wanted) as views:
            pieces = [(e, view) for (_, (_, e)), view in zip(wanted, views, strict=True)]
            decoder.run_pieces(self.model, pieces, r.sorted, r.routes.offsets, r.out, space)

    def _on_cpu(self, task: Record, _: Interrupt) -> Result:
        """The experts in the RAM slots that the task reads, on the rows that were copied down; [T, H], weighted and summed."""
        model, r = self.model, self._routed[task.microbatch]
        routes, held = r.routes, self._buffers.read(of_kind(task.reads, "routed_host"))
        wanted = self._named(task, self.pool.host, _slots(task.reads, "expert_host"), r)
        total = self._buffers.write(of_kind(task.writes, "moe_host"), held.array.shape, held.batch)
        count = routes.ids.size
        space = decoder.Scratch(self._scratch["cpu"].of(count * (model.hidden + 3 * model.ffn)))
        rows, origin = space.take(count, model.hidden), np.empty(count, np.int64)
        origin[routes.positions.ravel()] = np.arange(count)
        spans = [(e, slice(routes.offsets[e], routes.offsets[e + 1])) for _, (_, e) in wanted]
        for _, at in spans:
            rows[at] = held.array[origin[at] // model.top_k]
        with self.pool.host.using(wanted) as views:
            pieces = [(e, view) for (e, _), view in zip(spans, views, strict=True)]
            decoder.run_pieces(model, pieces, rows, routes.offsets, rows, space)
        total[:] = 0
        for e, at in spans:  # a token has an expert once
            total[origin[at] // model.top_k] += routes.weights.ravel()[origin[at], None] * rows[at]
            r.on_cpu.add(e)
        self._buffers.drop(of_kind(task.reads, "routed_host"))
        return Result()

    def _named(self, task: Record, tier: Tier, slots: Sequence[int], r: Routed) -> list[tuple[int, Expert]]:
        """(slot, expert) of each slot that a task computes with: experts of its layer, with as many rows as it says."""
        held = tier.held()
        wanted = [(slot, held.get(slot, (-1, -1))) for slot in slots]
        rows = np.diff(r.routes.offsets)
        found = sorted((int(rows[e]) for _, (_, e) in wanted), reverse=True)
        assert all(layer == task.layer for _, (layer, _) in wanted) and tuple(found) == tuple(task.work.expert_tokens), (
            f"task {task.number} ({task.work.op}, layer {task.layer}): {tier.name} slots hold {wanted} with rows {found}, "
            f"the task says {task.work.expert_tokens}"
        )
        return wanted

    def _offload_normed(self, task: Record, interrupt: Interrupt) -> None:
        r, held = self._routed[task.microbatch], self._buffers.read(of_kind(task.reads, "routed"))
        check_bytes(task, r.normed.nbytes)
        target = self._buffers.write(of_kind(task.writes, "routed_host"), r.normed.shape, held.batch)
        self.links[self._lane(task)].copy(target, r.normed, interrupt)

    def _load_partial(self, task: Record, interrupt: Interrupt) -> None:
        source = of_kind(task.reads, "moe_host")
        held = self._buffers.read(source)
        check_bytes(task, held.array.nbytes)
        target = self._buffers.write(of_kind(task.writes, "moe_part"), held.array.shape, held.batch)
        self.links[self._lane(task)].copy(target, held.array, interrupt)
        self._buffers.drop(source)

    def _combine(self, task: Record, _: Interrupt) -> None:
        """The weighted sum in the order of the routes, then the CPU's share, to the residual."""
        r = self._routed.pop(task.microbatch)
        hidden = self._buffers.read(of_kind(task.reads, "hidden")).array
        for e in r.on_cpu:
            r.out[r.routes.offsets[e] : r.routes.offsets[e + 1]] = 0
        combine.forward(r.out, r.routes.positions, r.routes.weights, hidden, thread_count())
        if r.on_cpu:
            part = of_kind(task.reads, "moe_part")
            np.add(hidden, self._buffers.read(part).array, out=hidden)
            self._buffers.drop(part)
        self._buffers.drop(of_kind(task.reads, "moe"))
        self._buffers.drop(buffers.routed(task.microbatch))


def _slots(names: Sequence[str], kind: str) -> list[int]:
    return [_slot(name) for name in names if name.startswith(kind + ".")]


def _slot(name: str) -> int:
    return buffers.parse(name)[1][0]
