"""The rest of the model on one rank with a device: embedding, attention over a cache there, sampling."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from exec.backends.cuda import decoder
from exec.backends.cuda.caches import DeviceKVCache
from exec.cluster.dense import DenseLayers
from exec.cluster.device import RankDevice
from exec.cluster.device_layers import DeviceWeights
from exec.cluster.job import Order
from exec.cluster.store import Store
from exec.runtime import Interrupt, Record
from sim.events import Result


class DeviceDense(DenseLayers):
    """Ops run on the device's compute stream, which the host waits for (`exec.cluster.device_backend`)."""

    def __init__(self, order: Order, rank: int, weights: DeviceWeights, store: Store, device: RankDevice) -> None:
        self._device = device
        self._requests = [order.requests[k] for k in order.requests_of(rank)]
        super().__init__(order, rank, weights, store)

    def _make_room(self, entries: int, most: int, sequences: int, longest: int, threads: int) -> None:
        model, take = self.model, self._device.take
        self._cache = DeviceKVCache(self._device, model.layers, model.kv_dim // 2, max(1, entries))
        self._cache.run = lambda work: work()
        self._rope = decoder.rope_table(model.rope_theta, model.head_dim, max(1, entries // model.layers), self._device.there)
        self._qkv = take("qkv", (most, model.qkv_dim))
        self._attn = take("attn", (most, model.attention_out_dim))
        self._hidden = take("hidden", (most, model.hidden))

    def warm_up(self) -> None:
        """As `DeviceMoE.warm_up`: a prefill of all prompts, and a step that decodes all sequences at their longest. What it leaves in the
        cache is written over before anything is read."""
        if self._none:
            return
        rows, sequences = sum(r.prompt_tokens for r in self._requests), len(self._requests)
        self._warm_layer(rows, self._warm_prefill)
        self._warm_layer(sequences, self._warm_decode)
        last, weights = self._zeros(sequences), self._weights
        decoder.sample(self.model, weights.final_norm, weights.lm_head, self._hidden[:rows], last, torch.empty_like(last))
        self._device.spare(4 * 4 * rows * self.model.qkv_dim)

    def _warm_layer(self, rows: int, attention: Callable[[torch.Tensor, torch.Tensor], None]) -> None:
        layer, hidden, qkv, attn = self._weights.layers[0], self._hidden[:rows], self._qkv[:rows], self._attn[:rows]
        decoder.embed_tokens(self._weights.embed, self._zeros(rows), hidden)
        decoder.pre_attn(self.model, layer, hidden, self._zeros(rows), self._rope, qkv)
        attention(qkv, attn)
        hidden.addmm_(attn, layer.wo.t())

    def _warm_prefill(self, qkv: torch.Tensor, attn: torch.Tensor) -> None:
        offsets = np.cumsum([0, *(r.prompt_tokens for r in self._requests)])
        decoder.attn_prefill(self.model, qkv, offsets.tolist(), attn)
        decoder.append_kv(self.model, qkv, self._cache.k, self._cache.v, self._zeros(len(qkv)))

    def _warm_decode(self, qkv: torch.Tensor, attn: torch.Tensor) -> None:
        longest = max(self.sequences.entries(r.request_id) for r in self._requests)
        first = self._zeros(len(qkv))
        decoder.attn_decode(self.model, qkv, self._cache.k, self._cache.v, first, first + (longest - 1), longest, attn)

    def _zeros(self, count: int) -> torch.Tensor:
        """[count] int64."""
        return torch.zeros(count, dtype=torch.int64, device=self._device.there)

    def _embed(self, task: Record, _: Interrupt) -> None:
        ids = self._device.up(self._next_ids(task))
        self._store.hidden = self._hidden[: len(ids)]
        decoder.embed_tokens(self._weights.embed, ids, self._store.hidden)

    def _pre_attn(self, task: Record, _: Interrupt) -> None:
        positions, layer = self._device.up(self._batch.positions), self._weights.layers[task.layer]
        decoder.pre_attn(self.model, layer, self._store.hidden, positions, self._rope, self._rows(self._qkv))

    def _attn_prefill(self, task: Record, _: Interrupt) -> None:
        batch, qkv = self._batch, self._rows(self._qkv)
        decoder.attn_prefill(self.model, qkv, batch.offsets.tolist(), self._rows(self._attn))
        for request in batch.requests:
            self._cache.open(request, self.sequences.entries(request))
        rows = np.repeat(self._cache.starts(batch.requests, task.layer), np.diff(batch.offsets)) + batch.positions
        decoder.append_kv(self.model, qkv, self._cache.k, self._cache.v, self._device.up(rows))

    def _attn_decode(self, task: Record, _: Interrupt) -> None:
        cache, batch = self._cache, self._batch
        starts, before = map(self._device.up, (cache.starts(batch.requests, task.layer), batch.before))
        longest = int(batch.before.max()) + 1
        decoder.attn_decode(self.model, self._rows(self._qkv), cache.k, cache.v, starts, before, longest, self._rows(self._attn))

    def _o_proj(self, task: Record, _: Interrupt) -> None:
        self._store.hidden.addmm_(self._rows(self._attn), self._weights.layers[task.layer].wo.t())

    def _sample(self, task: Record, _: Interrupt) -> Result:
        last, weights = self._device.up(self._batch.offsets[1:] - 1), self._weights
        tokens = torch.empty_like(last)
        logits = decoder.sample(self.model, weights.final_norm, weights.lm_head, self._store.hidden, last, tokens)
        return self._sampled(tokens.tolist(), logits.cpu().numpy() if self.logits is not None else None)
