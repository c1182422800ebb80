"""Decode attention on host threads, over the cache in host memory, from and to page-locked rows."""

from __future__ import annotations

import numpy as np

from exec import decoder
from exec.backends.buffers import of_kind
from exec.backends.caches import KVCache, by_entry
from exec.backends.cuda.call import Call, Work
from exec.backends.cuda.memory import StreamBuffers
from kernels import attention_decode
from sim.models.spec import ModelSpec


class HostAttention:
    """The op of lane `cpu`. cache: None where the schedule keeps it on the device."""

    def __init__(self, model: ModelSpec, buffers: StreamBuffers, cache: KVCache | None, threads: int) -> None:
        self._model, self._buffers, self._cache = model, buffers, cache
        self._scratch = np.zeros(attention_decode.scratch_shape(model.heads, threads), np.float32).ravel()

    def attend(self, call: Call) -> Work:
        """Append each sequence's new K and V to the host's cache, attend; attn_host.j from qkv_host.j."""
        task, cache = call.task, self._cache
        assert cache is not None, f"task {task.number}: attends on the host, but the schedule's memory() keeps the cache on the device"
        name = of_kind(task.reads, "qkv_host")
        held = self._buffers.read(name)
        batch = held.batch
        out = self._buffers.write(of_kind(task.writes, "attn_host"), (batch.rows, self._model.attention_out_dim), batch, call.tokens)
        call.dropped.append(name)

        def work(_: object) -> None:
            with cache.using():
                decoder.attn_decode(
                    self._model, held.array.numpy(), by_entry(cache.k), by_entry(cache.v), cache.starts(batch.requests, task.layer),
                    batch.before, out.numpy(), self._scratch,
                )  # fmt: skip

        return work

    def warm_up(self) -> None:
        """Compile and load the kernel in the calling thread."""
        model, rows = self._model, 2
        qkv = np.zeros((rows, model.qkv_dim), np.float32)
        cache = np.zeros((2, rows, 1, model.kv_dim // 2), np.float32)
        zeros, out = np.zeros(rows, np.int64), np.zeros((rows, model.attention_out_dim), np.float32)
        decoder.attn_decode(model, qkv, cache[0], cache[1], np.arange(rows), zeros, out, self._scratch)
