"""CpuBackend: every op of the schedules as real work on this computer's cores and memory.

The "GPU" is a lane thread with an arena of its own under a byte budget; links are copies between
arenas. An op finds its inputs in the buffers that its task names, and rows of a micro-batch carry
their sequences and positions with them, so that a copy that comes late writes where it should.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from exec import decoder
from exec.arena import Arena
from exec.backends.buffers import Buffers, Held, of_kind, one
from exec.backends.caches import KVCache, by_entry
from exec.backends.copies import KV_USES, Copies, append_rows, staged_entries
from exec.backends.experts import Experts, dense_on
from exec.backends.routing import RoutingRecorder, forced
from exec.backends.warmup import warm_up
from exec.fused import FusedLayers, stamps_of
from exec.links import Link, sharpen_sleep
from exec.products import set_threads
from exec.runtime import Interrupt, Record
from exec.state import MicroBatch, Sequences
from exec.weights import LayerWeights, Weights
from kernels import attention_decode
from kernels.fused_moe.tiles import Shape
from sim.errors import UserError
from sim.events import Request, Result
from sim.machines.schema import Lane, Machine
from sim.models.spec import ModelSpec
from traces.routing import RoutingIndex

Floats = NDArray[np.float32]
Needed = Mapping[str, Mapping[str, int]]
"""Bytes by memory and consumer: what the scheduler's `memory` says."""


class CpuBackend:
    """Ops of one run of `model` on `machine`. Implements `exec.runtime.Backend`.

    needed: the schedule's own account of its memory; it fixes the sizes of the weight buffers and
    caches. prompts, lengths, eos: see `exec.state.Sequences`. record_routing keeps what the routers
    chose, replay_routing forces it. keep_logits keeps the logits of every sampling, by request.
    poison fills memory with NaN before it is written and after it was given back.

    Raises UserError where a budget is too small or the model is none that the executor runs.
    """

    def __init__(
        self, model: ModelSpec, weights: Weights, machine: Machine, needed: Needed, requests: Sequence[Request],
        prompts: Sequence[Sequence[int]], *, lengths: Sequence[int] | None = None, eos: Collection[int] = (),
        record_routing: bool = False, replay_routing: RoutingIndex | None = None, keep_logits: bool = False, poison: bool = False,
    ) -> None:  # fmt: skip
        _check_executable(model)
        self.model = model
        self.arenas = _arenas(machine, poison)
        self.sequences = Sequences(requests, prompts, model.vocab, lengths=lengths, eos=eos)
        self.links = {lane.name: Link(lane.name, lane.paced_bytes_per_s) for lane in machine.lanes if lane.kind == "copy"}
        self.recorder = RoutingRecorder() if record_routing else None
        self.logits: dict[int, list[Floats]] | None = {r.request_id: [] for r in requests} if keep_logits else None
        self._replay = replay_routing
        self._buffers = Buffers(self.arenas)
        self._place_weights(weights, needed)
        self._place_caches(needed)
        self._threads = {lane.name: max(1, lane.threads) for lane in machine.lanes}
        self._fused = {name: FusedLayers(count) for name, count in self._threads.items()}
        self._scratch = {
            "gpu": _Scratch(self.arenas["gpu"], "workspace.gpu", needed["gpu"].get("workspace", 0) // 4),
            "cpu": _Scratch(self.arenas["cpu"], "workspace.cpu", 0),
        }
        copies = Copies(model, self.links, self._buffers, self._experts, self._cache, self.sequences)
        self._ops: dict[str, Callable[[Record, Interrupt], Result | None]] = {
            "embed": self._embed_tokens,
            "pre_attn": self._pre_attn,
            "attn_prefill": self._attn_prefill,
            "attn_decode": self._attn_decode,
            "post_attn": self._post_attn,
            "sample": self._sample,
            **copies.ops(),
        }
        for memory in ("gpu", "pinned"):
            self.arenas[memory].prefault(needed.get(memory, {}).get("activations", 0))

    def _place_weights(self, weights: Weights, needed: Needed) -> None:
        gpu = self.arenas["gpu"]
        self._embed = dense_on(gpu, "embed", weights.embed)
        self._lm_head = self._embed if weights.lm_head is weights.embed else dense_on(gpu, "lm_head", weights.lm_head)
        self._final_norm = dense_on(gpu, "final_norm", weights.final_norm)
        self._layers = []
        for i, layer in enumerate(weights.layers):
            self._layers.append(LayerWeights(*(dense_on(gpu, f"layer.{i}.{k}", a) for k, a in enumerate(layer.arrays()))))
        self._experts = self._place_experts(weights, needed)

    def _place_experts(self, weights: Weights, needed: Needed) -> Experts:
        staged = needed.get("pinned", {}).get("pages", 0) > 0
        return Experts(weights.experts, self.arenas, needed["gpu"].get("weight_buffer", 0) // 2, staged)

    def _place_caches(self, needed: Needed) -> None:
        """Caches as large as the schedule says. On a GPU whose schedule keeps the cache on the host, "kv" are staging slots."""
        model = self.model
        entry = model.kv_bytes_per_token_layer
        memory = "cpu" if needed["cpu"].get("kv", 0) else "gpu"
        self._cache = KVCache(self.arenas[memory], model.layers, model.kv_dim // 2, needed[memory].get("kv", 0) // entry)

    # Backend ------------------------------------------------------------------------------------

    def enter_lane(self, lane: Lane) -> None:
        """Give the lane's thread its share of the cores; compile and load what it will run."""
        sharpen_sleep()
        threads = self._threads[lane.name]
        set_threads(threads)
        if lane.kind == "copy":
            spare = np.zeros(2, np.float32)
            Link(lane.name, 1e9).copy(spare[:1], spare[1:], Interrupt())
        else:
            warm_up(self.model, threads)

    def run(self, task: Record, interrupt: Interrupt) -> Result | None:
        return self._ops[task.work.op](task, interrupt)

    def peak_bytes(self) -> dict[str, int]:
        """Most bytes that were taken of each memory at a time."""
        return {name: arena.peak_bytes for name, arena in self.arenas.items()}

    def clock_offsets(self) -> dict[str, dict[str, float]]:
        """Clocks of lanes that are not the host's, against it: none."""
        return {}

    # Compute ------------------------------------------------------------------------------------

    def _embed_tokens(self, task: Record, _: Interrupt) -> None:
        if task.phase == "prefill":
            ids, batch = self.sequences.prompts(task.requests, task.work.tokens)
        else:
            ids, batch = self.sequences.next_tokens(task.requests)
        hidden = self._buffers.write(one(task.writes), (batch.rows, self.model.hidden), batch)
        decoder.embed_tokens(self._embed, ids, hidden)

    def _pre_attn(self, task: Record, _: Interrupt) -> None:
        held = self._buffers.read(one(task.reads))
        batch = held.batch
        qkv = self._buffers.write(one(task.writes), (batch.rows, self.model.qkv_dim), batch)
        decoder.pre_attn(self.model, self._layers[task.layer], held.array, batch.positions, qkv, self._space(task, batch))

    def _attn_prefill(self, task: Record, _: Interrupt) -> None:
        name = one(task.reads)
        held = self._buffers.read(name)
        batch = held.batch
        attn = self._buffers.write(of_kind(task.writes, "attn"), (batch.rows, self.model.attention_out_dim), batch)
        decoder.attn_prefill(self.model, held.array, batch.offsets, attn, self._space(task, batch))
        if any(b.startswith("kv_gpu.") for b in task.writes):
            append_rows(self._cache, self.sequences, held.array, batch, task.layer)
            self._buffers.drop(name)
        else:
            self._buffers.used(name, "attended", KV_USES)

    def _attn_decode(self, task: Record, _: Interrupt) -> None:
        """On the CPU lane from qkv_host to attn_host; on the GPU lane over its own cache or a staged one."""
        name = next(b for b in task.reads if b.startswith("qkv"))
        stage = next((b for b in task.reads if b.startswith("kv_stage.")), None)
        held = self._buffers.read(name)
        batch = held.batch
        out = next(b for b in task.writes if b.startswith("attn"))
        attn = self._buffers.write(out, (batch.rows, self.model.attention_out_dim), batch)
        space = self._space(task, batch)

        def attend(k: Floats, v: Floats, starts: NDArray[np.int64]) -> None:
            decoder.attn_decode(self.model, held.array, by_entry(k), by_entry(v), starts, batch.before, attn, space)

        if stage is None:
            with self._cache.using():
                attend(self._cache.k, self._cache.v, self._cache.starts(batch.requests, task.layer))
            self._buffers.drop(name)
        else:
            staged = self._buffers.read(stage)
            attend(*staged.array, staged_entries(staged.batch)[:-1])
            self._buffers.drop(stage)
            self._buffers.used(name, "attended", KV_USES)

    def _post_attn(self, task: Record, _: Interrupt) -> Result | None:
        attn, hidden = (self._buffers.read(of_kind(task.reads, kind)) for kind in ("attn", "hidden"))
        batch = hidden.batch
        pieces, routing = self._experts.pieces(task), forced(self._replay, task, batch)
        if task.body is not None and len(pieces) == 1 and routing is None:
            ids, weights = self._fused_post_attn(task, pieces[0], attn.array, hidden)
        else:
            ids, weights = decoder.post_attn(
                self.model, self._layers[task.layer], pieces, attn.array, hidden.array, self._space(task, batch), routing
            )
        self._buffers.drop(of_kind(task.reads, "attn"))
        if self.recorder is not None:
            self.recorder.record(task, batch, ids, weights)
        if not task.notify:
            return None
        return Result(experts=tuple(np.bincount(ids.ravel(), minlength=self.model.experts).tolist()))

    def _fused_post_attn(self, task: Record, experts: Floats, attn: Floats, hidden: Held) -> tuple[NDArray[np.int16], Floats]:
        """The body of the task as one launch, whose stamps stay with it. A routing that is forced, or experts in
        several pieces, the kernel does not know: those run op by op."""
        assert task.body is not None and task.lane is not None, task.number
        model, rows = self.model, hidden.batch.rows
        shape = Shape(rows, model.hidden, model.ffn, model.experts, model.top_k)
        launch = self._fused[task.lane].launch(task.body, shape)
        space = self._space(task, hidden.batch, rows * model.hidden + launch.floats)
        chosen = decoder.fused_post_attn(model, self._layers[task.layer], experts, attn, hidden.array, space, launch)
        task.inside = stamps_of(launch)
        return chosen

    def _sample(self, task: Record, _: Interrupt) -> Result:
        """Greedy; the temporaries (last rows, logits) are cut off the front of the workspace."""
        name = one(task.reads)
        held = self._buffers.read(name)
        count = len(held.batch.requests)
        space = decoder.Scratch(self._space(task, held.batch, count * (2 * self.model.hidden + self.model.vocab)))
        last, logits = space.take(count, self.model.hidden), space.take(count, self.model.vocab)
        np.take(held.array, held.batch.offsets[1:] - 1, axis=0, out=last, mode="clip")
        normed = space.take(count * self.model.hidden)
        tokens = decoder.sample_tokens(self.model, self._final_norm, self._lm_head, last, logits, normed).tolist()
        self.keep(held.batch, logits)
        self._buffers.drop(name)
        ended = self.sequences.sampled(held.batch.requests, tokens)
        self._cache.ended(ended)
        return Result(ended=ended)

    def keep(self, batch: MicroBatch, logits: Floats) -> None:
        """Note the logits of a sampling, where they are asked for."""
        if self.logits is not None:
            for request, row in zip(batch.requests, logits, strict=True):
                self.logits[request].append(row.copy())

    def _space(self, task: Record, batch: MicroBatch, least: int = 0) -> Floats:
        """Temporaries of an op, at least `least` floats: the workspace of its lane, as large as the schedule plans it."""
        assert task.lane in self._scratch, f"task {task.number} ({task.work.op}) runs on lane gpu or cpu, not {task.lane}"
        return self._workspace(task.lane, task.work.op, batch, least)

    def _workspace(self, lane: str, op: str, batch: MicroBatch, least: int = 0) -> Floats:
        threads = self._threads[lane]
        if op == "attn_decode":
            floats = int(np.prod(attention_decode.scratch_shape(self.model.heads, threads)))
        else:
            longest = int(np.diff(batch.offsets).max()) if op == "attn_prefill" else 0
            floats = least or decoder.scratch_floats(self.model, batch.rows, longest=longest, threads=threads, in_turn=True)
        return self._scratch[lane].of(floats)


class _Scratch:
    """Workspace of one lane: a piece of its arena, replaced by a larger one where an op needs more."""

    def __init__(self, arena: Arena, name: str, floats: int) -> None:
        self._arena, self._name = arena, name
        self._piece = arena.take(name, floats, touch=True)

    def of(self, floats: int) -> Floats:
        if self._piece.size < floats:
            self._arena.give(self._name)
            self._piece = self._arena.take(self._name, floats)
        return self._piece


def _check_executable(model: ModelSpec) -> None:
    if not model.executable:
        raise UserError(f"--model {model.name}: {model.not_executable_because}; it can be simulated")
    if model.dtype != "fp32":
        raise UserError(f"--model {model.name}: sizes are for {model.dtype}; the executor computes in fp32 (replace dtype)")


def _arenas(machine: Machine, poison: bool) -> dict[str, Arena]:
    """One arena a memory; pinned memory is the CPU's where the machine states none."""
    for name in ("gpu", "cpu"):
        if name not in machine.memories:
            raise UserError(f"machine {machine.name}: memories has no {name!r}; the executor needs gpu and cpu")
    arenas = {name: Arena(name, memory.budget_bytes, poison=poison) for name, memory in machine.memories.items()}
    arenas.setdefault("pinned", arenas["cpu"])
    return arenas
