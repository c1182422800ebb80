"""The ops of the compute stream: what each reads and writes, and the numbers that it needs there."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from exec.backends.buffers import of_kind, one
from exec.backends.copies import staged_entries
from exec.backends.cuda import decoder, fused, grouped
from exec.backends.cuda.caches import DeviceKVCache, EnqueuedSequences
from exec.backends.cuda.call import Call
from exec.backends.cuda.decoder import DeviceLayer
from exec.backends.cuda.device import Device
from exec.backends.cuda.experts import DeviceExperts
from exec.backends.cuda.fused import StreamLayers, stamps_in
from exec.backends.cuda.graphs import Step
from exec.backends.cuda.memory import StreamBuffers
from exec.backends.routing import RoutingRecorder, forced
from exec.runtime import Record
from exec.state import MicroBatch
from kernels.fused_moe.tiles import Shape
from sim.events import Result
from sim.models.spec import ModelSpec
from traces.routing import RoutingIndex

REACH = 128
"""Contexts are rounded up to it for decode attention, so that a graph serves as many steps."""


@dataclass(frozen=True, slots=True)
class Placed:
    """Weights on the device; rope: table of `decoder.rope_table`; tokens [requests] int64: the last of each."""

    embed: torch.Tensor
    lm_head: torch.Tensor
    final_norm: torch.Tensor
    layers: Sequence[DeviceLayer]
    experts: DeviceExperts
    rope: torch.Tensor
    tokens: torch.Tensor


class Compute:
    """cache: where it lives on the device, else None. ended: told of sequences that have ended."""

    def __init__(
        self, model: ModelSpec, device: Device, placed: Placed, buffers: StreamBuffers, cache: Any, sequences: EnqueuedSequences,
        recorder: RoutingRecorder | None, replay: RoutingIndex | None, logits: dict[int, list[Any]] | None,
        ended: Callable[[Sequence[int]], None], layers: StreamLayers,
    ) -> None:  # fmt: skip
        self._fused = layers
        self._model, self._device, self._placed, self._buffers = model, device, placed, buffers
        self._cache: DeviceKVCache | None = cache
        self._sequences, self._recorder, self._replay, self._logits, self._ended = sequences, recorder, replay, logits, ended

    def ops(self) -> dict[str, Callable[[Call], Step]]:
        return {
            "embed": self._embed, "pre_attn": self._pre_attn, "attn_prefill": self._attn_prefill, "attn_decode": self._attn_decode,
            "post_attn": self._post_attn, "sample": self._sample,
        }  # fmt: skip

    def _key(self, task: Record, *arrays: torch.Tensor) -> Hashable:
        """Of decode tasks only: what a prefill does, it does once."""
        if task.phase != "decode":
            return None
        return (task.work.op, task.layer, *((a.data_ptr(), *a.shape) for a in arrays))

    def _embed(self, call: Call) -> Step:
        task, table, tokens = call.task, self._placed.embed, self._placed.tokens
        if task.phase == "prefill":
            ids, batch = self._sequences.prompts(task.requests, task.work.tokens)
        else:
            ids, batch = self._sequences.slots(task.requests), self._sequences.decode_batch(task.requests)
        hidden = self._buffers.write(one(task.writes), (batch.rows, self._model.hidden), batch, call.tokens)

        def run(numbers: list[torch.Tensor]) -> None:
            chosen = numbers[0] if task.phase == "prefill" else tokens[numbers[0]]
            decoder.embed_tokens(table, chosen, hidden)

        return Step(run, (ids,), self._key(task, hidden))

    def _pre_attn(self, call: Call) -> Step:
        task, layer, rope = call.task, self._placed.layers[call.task.layer], self._placed.rope
        held = self._buffers.read(one(task.reads))
        qkv = self._buffers.write(one(task.writes), (held.batch.rows, self._model.qkv_dim), held.batch, call.tokens)
        hidden = held.array

        def run(numbers: list[torch.Tensor]) -> None:
            decoder.pre_attn(self._model, layer, hidden, numbers[0], rope, qkv)

        return Step(run, (held.batch.positions,), self._key(task, hidden, qkv))

    def _attn_prefill(self, call: Call) -> Step:
        task, name = call.task, one(call.task.reads)
        held = self._buffers.read(name)
        batch, qkv = held.batch, held.array
        attn = self._buffers.write(of_kind(task.writes, "attn"), (batch.rows, self._model.attention_out_dim), batch, call.tokens)
        offsets = batch.offsets.tolist()
        cache = self._cache if any(b.startswith("kv_gpu.") for b in task.writes) else None
        rows = self._cache_rows(task, batch) if cache is not None else np.zeros(0, np.int64)
        if cache is None:
            call.uses.append((name, "attended"))
        else:
            call.dropped.append(name)

        def run(numbers: list[torch.Tensor]) -> None:
            decoder.attn_prefill(self._model, qkv, offsets, attn)
            if cache is not None:
                decoder.append_kv(self._model, qkv, cache.k, cache.v, numbers[0])

        return Step(run, (rows,))

    def _cache_rows(self, task: Record, batch: MicroBatch) -> np.ndarray:
        """Cache rows [T] of a batch's new K and V, opened and noted as written."""
        cache = self._cache
        assert cache is not None, f"task {task.number}: keeps KV on the device, but the schedule's memory() has no cache there"
        for request in batch.requests:
            cache.open(request, self._sequences.entries(request))
        lengths = np.diff(batch.offsets)
        cache.wrote(batch.requests, task.layer, batch.before + lengths)
        return np.repeat(cache.starts(batch.requests, task.layer), lengths) + batch.positions

    def _attn_decode(self, call: Call) -> Step:
        """Over the cache on the device, or over one that is there on a visit."""
        task, name = call.task, of_kind(call.task.reads, "qkv")
        held = self._buffers.read(name)
        batch, qkv = held.batch, held.array
        attn = self._buffers.write(of_kind(task.writes, "attn"), (batch.rows, self._model.attention_out_dim), batch, call.tokens)
        stage = next((b for b in task.reads if b.startswith("kv_stage.")), None)
        if stage is None:
            self._cache_rows(task, batch)
            assert self._cache is not None
            k, v, starts = self._cache.k, self._cache.v, self._cache.starts(batch.requests, task.layer)
            call.dropped.append(name)
        else:
            staged = self._buffers.read(stage)
            (k, v), starts = staged.array, staged_entries(staged.batch)[:-1]
            call.dropped.append(stage)
            call.uses.append((name, "attended"))
        longest = -(-int(batch.before.max() + 1) // REACH) * REACH

        def run(numbers: list[torch.Tensor]) -> None:
            decoder.attn_decode(self._model, qkv, k, v, numbers[0], numbers[1], longest, attn)

        return Step(run, (starts, batch.before), (self._key(task, qkv, attn, k), longest) if task.phase == "decode" else None)

    def _post_attn(self, call: Call) -> Step:
        task, model = call.task, self._model
        attn, hidden = (self._buffers.read(of_kind(task.reads, kind)) for kind in ("attn", "hidden"))
        batch, layer, pieces = hidden.batch, self._placed.layers[task.layer], self._placed.experts.pieces(task)
        replayed = forced(self._replay, task, batch)
        wanted = self._recorder is not None or task.notify
        shape, dtypes = (batch.rows, model.top_k), (torch.int64, torch.float32)
        here = [self._device.pinned(d.itemsize * batch.rows * model.top_k).view(d).view(shape) for d in dtypes] if wanted else []
        call.dropped.append(of_kind(task.reads, "attn"))
        if wanted:
            call.later = lambda: self._routed(task, batch, *(t.numpy() for t in here))

        by_launch = self._launched(task, batch.rows, pieces) if replayed is None else None

        def run(numbers: list[torch.Tensor]) -> None:
            if by_launch is not None:
                found = fused.post_attn(model, layer, pieces[0], attn.array, hidden.array, *by_launch)
            else:
                chosen = numbers[0].view(batch.rows, -1) if numbers else None
                found = decoder.post_attn(model, layer, pieces, attn.array, hidden.array, chosen)
            for target, source in zip(here, found, strict=False):
                target.copy_(source, non_blocking=True)

        # A graph would write the stamps of all its replays to one place.
        captured = not wanted and by_launch is None and grouped.how(hidden.array.device, pieces[0].dtype, len(pieces)) != grouped.ONE_BY_ONE
        key = self._key(task, attn.array, hidden.array, *pieces) if captured else None
        return Step(run, (replayed,) if replayed is not None else (), key)

    def _launched(self, task: Record, rows: int, pieces: Sequence[torch.Tensor]) -> tuple[fused.Launch, fused.Kept] | None:
        """The body of the task as one launch, and where its stamps go; None: op by op, as where the experts are in
        several pieces."""
        if task.body is None or len(pieces) != 1:
            return None
        model = self._model
        launch = self._fused.launch(task.body, Shape(rows, model.hidden, model.ffn, model.experts, model.top_k))
        if launch is None:
            return None
        kept = self._fused.keep(task.body)
        task.inside = stamps_in(kept)
        return launch, kept

    def _routed(self, task: Record, batch: MicroBatch, ids: np.ndarray, weights: np.ndarray) -> Result:
        if self._recorder is not None:
            self._recorder.record(task, batch, ids.astype(np.int16), weights)
        return Result(experts=tuple(np.bincount(ids.ravel(), minlength=self._model.experts).tolist()))

    def _sample(self, call: Call) -> Step:
        """Greedy; the tokens stay on the device for the next step, the host hears of them later."""
        placed, name = self._placed, one(call.task.reads)
        held = self._buffers.read(name)
        batch, hidden, kept = held.batch, held.array, self._logits is not None
        count = len(batch.requests)
        tokens = self._device.pinned(8 * count).view(torch.int64)
        logits = self._device.pinned(4 * count * self._model.vocab).view(torch.float32).view(count, -1) if kept else None
        self._sequences.enqueued(batch.requests)
        call.dropped.append(name)
        call.later = lambda: self._sampled(batch, tokens, logits)

        def run(numbers: list[torch.Tensor]) -> None:
            last, slots = numbers
            new = torch.empty(count, dtype=torch.int64, device=hidden.device)
            found = decoder.sample(self._model, placed.final_norm, placed.lm_head, hidden, last, new)
            placed.tokens.index_copy_(0, slots, new)
            tokens.copy_(new, non_blocking=True)
            if logits is not None:
                logits.copy_(found, non_blocking=True)

        return Step(run, (batch.offsets[1:] - 1, self._sequences.slots(batch.requests)))

    def _sampled(self, batch: MicroBatch, tokens: torch.Tensor, logits: torch.Tensor | None) -> Result:
        if self._logits is not None and logits is not None:
            for request, row in zip(batch.requests, logits.numpy(), strict=True):
                self._logits[request].append(row.copy())
        ended = self._sequences.sampled(batch.requests, tokens.tolist())
        self._ended(ended)
        return Result(ended=ended)

    def warm_up(self) -> None:
        """Load kernels and the BLAS: every step once, on this model's own sizes."""
        model, placed, device = self._model, self._placed, self._placed.embed.device
        rows = 2
        hidden, qkv, attn = (torch.zeros((rows, n), device=device) for n in (model.hidden, model.qkv_dim, model.attention_out_dim))
        numbers, new = torch.arange(rows, device=device), torch.zeros(rows, dtype=torch.int64, device=device)
        k, v = (torch.zeros((2 * REACH, model.kv_dim // 2), device=device) for _ in range(2))
        layer = placed.layers[0]
        decoder.embed_tokens(placed.embed, numbers, hidden)
        decoder.pre_attn(model, layer, hidden, numbers % len(placed.rope[0]), placed.rope, qkv)
        decoder.attn_prefill(model, qkv, [0, rows], attn)
        decoder.attn_decode(model, qkv, k, v, numbers * REACH, new, REACH, attn)
        # Any sizes load the products' kernels; whole experts of a large model would not fit beside it.
        small = replace(model, hidden=256, ffn=256, experts=4)
        flat = torch.zeros(small.experts * 3 * small.hidden * small.ffn, dtype=placed.experts.dtype, device=device)
        offsets = torch.arange(small.experts + 1, device=device).int()
        grouped.expert_ffn(small, [flat], torch.zeros((small.experts, small.hidden), device=device), offsets)
        decoder.sample(model, placed.final_norm, placed.lm_head, hidden, numbers, new)
