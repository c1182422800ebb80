"""Copies: activations, cache rows and weights between memories, at the rate of their lane's link."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from exec import decoder
from exec.backends.buffers import Buffers, one
from exec.backends.caches import KVCache, by_entry
from exec.backends.experts import Experts
from exec.links import Link
from exec.runtime import Interrupt, Record
from exec.state import MicroBatch, Sequences
from sim.models.spec import ModelSpec

KV_USES = frozenset({"attended", "stored"})
"""What QKV rows are for where the cache lives on the host."""

TRANSFER_BYTES = 1 << 18
"""Strided rows that are moved between two looks at the clock of a paced link."""


class Copies:
    """The copy ops. links: by lane."""

    def __init__(
        self, model: ModelSpec, links: Mapping[str, Link], buffers: Buffers, experts: Experts, cache: KVCache, sequences: Sequences
    ) -> None:
        self._model = model
        self._links = links
        self._buffers = buffers
        self._experts = experts
        self._cache = cache
        self._sequences = sequences

    def ops(self) -> dict[str, Callable[[Record, Interrupt], None]]:
        experts = self._experts
        return {
            **dict.fromkeys(("offload_qkv", "load_hidden", "hidden_to_cpu", "hidden_to_gpu"), self._move),
            "kv_to_cpu": self._kv_to_cpu,
            "kv_to_gpu": self._kv_to_gpu,
            "page_to_pin": lambda task, interrupt: experts.page_to_pin(task, self._link(task), interrupt),
            "page_to_gpu": lambda task, interrupt: experts.page_to_gpu(task, self._link(task), interrupt),
            "layer_to_gpu": lambda task, interrupt: experts.layer_to_gpu(task, self._link(task), interrupt),
        }

    def _link(self, task: Record) -> Link:
        assert task.lane in self._links, f"task {task.number} ({task.work.op}): lane {task.lane} is no copy lane; have {list(self._links)}"
        return self._links[task.lane]

    def _move(self, task: Record, interrupt: Interrupt) -> None:
        """One contiguous buffer to another memory; the source is used up."""
        source = one(task.reads)
        held = self._buffers.read(source)
        target = self._buffers.write(one(task.writes), held.array.shape, held.batch)
        check_bytes(task, target.nbytes)
        self._link(task).copy(target, held.array, interrupt)
        self._buffers.drop(source)

    def _kv_to_cpu(self, task: Record, interrupt: Interrupt) -> None:
        """Scatter the rows' K and V to their sequences' places in the cache, at the link's rate."""
        name = one(task.reads)
        held = self._buffers.read(name)
        row_bytes = self._model.kv_bytes_per_token_layer
        check_bytes(task, held.batch.rows * row_bytes)
        transfer = self._link(task).begin(task.work.bytes, interrupt)
        for part in parts(held.batch, TRANSFER_BYTES // row_bytes):
            transfer.count(append_rows(self._cache, self._sequences, held.array, part, task.layer) * row_bytes)
        self._buffers.used(name, "stored", KV_USES)

    def _kv_to_gpu(self, task: Record, interrupt: Interrupt) -> None:
        """The cached entries of each sequence, each followed by room for the one to come, to a staging slot."""
        cache = self._cache
        batch = self._sequences.cached(task.requests, cache.lengths(task.requests, task.layer), task.work.context)
        ends = staged_entries(batch)
        check_bytes(task, int(batch.before.sum()) * self._model.kv_bytes_per_token_layer)
        k, v = self._buffers.write(one(task.writes), (2, int(ends[-1]), self._model.kv_dim // 2), batch)
        transfer = self._link(task).begin(task.work.bytes, interrupt)
        with cache.using():
            for start, to, count in zip(cache.starts(batch.requests, task.layer), ends, batch.before, strict=False):
                transfer.copy(k[to : to + count], cache.k[start : start + count])
                transfer.copy(v[to : to + count], cache.v[start : start + count])


def append_rows(cache: KVCache, sequences: Sequences, qkv: NDArray[np.float32], batch: MicroBatch, layer: int) -> int:
    """K and V of the batch's rows of `qkv` to the cache; returns the rows."""
    for request in batch.requests:
        cache.open(request, sequences.entries(request))
    with cache.using():
        starts = cache.starts(batch.requests, layer)
        decoder.append_kv(qkv, by_entry(cache.k), by_entry(cache.v), starts, batch.offsets, batch.before)
    cache.wrote(batch.requests, layer, batch.before + np.diff(batch.offsets))
    return int(batch.offsets[-1] - batch.offsets[0])


def staged_entries(batch: MicroBatch) -> NDArray[np.int64]:
    """First entry of each sequence in a staging slot, and the end, [S + 1]."""
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(batch.before + 1)])


def parts(batch: MicroBatch, rows: int) -> list[MicroBatch]:
    """The batch in runs of whole sequences of about `rows` rows."""
    parts, first = [], 0
    for s in range(1, len(batch.requests) + 1):
        if s == len(batch.requests) or batch.offsets[s] - batch.offsets[first] >= rows:
            parts.append(MicroBatch(batch.requests[first:s], batch.offsets[first : s + 1], batch.before[first:s]))
            first = s
    return parts


def check_bytes(task: Record, found: int) -> None:
    assert found == task.work.bytes, f"task {task.number} ({task.work.op}) states {task.work.bytes} bytes, its buffers hold {found}"
