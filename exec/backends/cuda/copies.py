"""The copy ops on streams: activations and cache rows between the device, page-locked and pageable memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from exec.backends.buffers import one
from exec.backends.caches import KVCache
from exec.backends.copies import append_rows, check_bytes, parts, staged_entries
from exec.backends.cuda.call import Call, Work
from exec.backends.cuda.experts import DeviceExperts
from exec.backends.cuda.memory import StreamBuffers
from exec.backends.cuda.staging import Staging
from exec.state import Sequences
from sim.models.spec import ModelSpec


class StreamCopies:
    """staging: by lane. cache: where it lives on the host, else None."""

    def __init__(
        self, model: ModelSpec, staging: Mapping[str, Staging], buffers: StreamBuffers, experts: DeviceExperts, cache: KVCache | None,
        sequences: Sequences,
    ) -> None:  # fmt: skip
        self._model = model
        self._staging = staging
        self._buffers = buffers
        self._experts = experts
        self._cache = cache
        self._sequences = sequences

    def ops(self) -> dict[str, Callable[[Call], Work]]:
        experts = self._experts
        return {
            "offload_qkv": self._move,
            "load_hidden": self._move,
            "hidden_to_cpu": self._to_pageable,
            "hidden_to_gpu": self._from_pageable,
            "kv_to_cpu": self._kv_to_cpu,
            "kv_to_gpu": self._kv_to_gpu,
            "page_to_pin": lambda call: lambda stream: experts.page_to_pin(call.task, call.interrupt),
            "page_to_gpu": lambda call: experts.page_to_gpu(call.task),
            "layer_to_gpu": lambda call: experts.layer_to_gpu(call.task, self._stage(call), call.interrupt),
        }

    def _stage(self, call: Call) -> Staging:
        lane = call.task.lane
        assert lane in self._staging, f"task {call.task.number} ({call.task.work.op}): lane {lane} is no copy lane of {list(self._staging)}"
        return self._staging[lane]

    def _ends(self, call: Call) -> tuple[torch.Tensor, torch.Tensor]:
        """Target and source of a copy of one whole buffer, which uses up the source."""
        source = one(call.task.reads)
        held = self._buffers.read(source)
        target = self._buffers.write(one(call.task.writes), tuple(held.array.shape), held.batch, call.tokens)
        check_bytes(call.task, target.nbytes)
        call.dropped.append(source)
        return target, held.array

    def _move(self, call: Call) -> Work:
        """Between the device and page-locked memory."""
        target, source = self._ends(call)

        def copy() -> None:
            target.copy_(source, non_blocking=True)

        return lambda stream: stream.run(copy)

    def _to_pageable(self, call: Call) -> Work:
        target, source = self._ends(call)
        staging = self._stage(call)
        rows = max(1, staging.chunk_bytes // source[:1].nbytes)
        ranges = [(a, min(a + rows, len(source))) for a in range(0, len(source), rows)]
        call.done_on_host = True

        def land(i: int, part: torch.Tensor) -> None:
            target[slice(*ranges[i])].copy_(part)

        return lambda stream: staging.down(stream, source, ranges, land)

    def _from_pageable(self, call: Call) -> Work:
        target, source = self._ends(call)
        staging = self._stage(call)
        return lambda stream: staging.up(stream, [(target.flatten(), source.flatten())], call.interrupt)

    def _kv_to_cpu(self, call: Call) -> Work:
        """K and V of the rows to their sequences' places in the cache; it is there when the task ends."""
        task, name = call.task, one(call.task.reads)
        held = self._buffers.read(name)
        batch, staging, cache = held.batch, self._stage(call), self._host_cache()
        width = self._model.kv_dim
        check_bytes(task, batch.rows * self._model.kv_bytes_per_token_layer)
        pieces = parts(batch, max(1, staging.chunk_bytes // (width * 4) // 2))
        ranges = [(int(p.offsets[0]), int(p.offsets[-1])) for p in pieces]
        call.done_on_host = True
        call.uses.append((name, "stored"))

        def land(i: int, rows: torch.Tensor) -> None:
            append_rows(cache, self._sequences, rows.numpy(), pieces[i].from_row_zero(), task.layer)

        return lambda stream: staging.down(stream, held.array[:, -width:], ranges, land)

    def _kv_to_gpu(self, call: Call) -> Work:
        """The cached entries of each sequence, each followed by room for the one to come, to a staging slot."""
        task, cache = call.task, self._host_cache()
        batch = self._sequences.cached(task.requests, cache.lengths(task.requests, task.layer), task.work.context)
        ends = staged_entries(batch)
        check_bytes(task, int(batch.before.sum()) * self._model.kv_bytes_per_token_layer)
        shape = (2, int(ends[-1]), self._model.kv_dim // 2)
        k, v = self._buffers.write(one(task.writes), shape, batch, call.tokens)
        staging = self._stage(call)

        def work(stream: Any) -> None:
            with cache.using():
                pieces = []
                for start, to, count in zip(cache.starts(batch.requests, task.layer), ends, batch.before, strict=False):
                    for there, here in ((k, cache.k), (v, cache.v)):
                        pieces.append((there[to : to + count].flatten(), torch.from_numpy(here[start : start + count]).flatten()))
                staging.up(stream, pieces, call.interrupt)

        return work

    def _host_cache(self) -> KVCache:
        assert self._cache is not None, "the schedule copies KV to the host, but its memory() keeps the cache on the device"
        return self._cache
