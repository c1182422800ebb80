"""The rest of the model on one rank, whose sequences are its own: embedding, attention, sampling."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from exec import decoder
from exec.arena import Arena
from exec.backends.caches import KVCache, by_entry
from exec.backends.copies import append_rows
from exec.cluster.experts import Op
from exec.cluster.job import Order
from exec.cluster.store import Floats, Store
from exec.products import product
from exec.runtime import Interrupt, Record
from exec.state import MicroBatch, Sequences
from exec.weights import Weights
from kernels import attention_decode
from sim.events import Result


class DenseLayers:
    """Ops embed, pre_attn, attn_prefill, attn_decode, o_proj, sample over the requests of `rank`.

    logits: of every sampling, by request, where the order says to keep them.
    """

    def __init__(self, order: Order, rank: int, weights: Weights, store: Store) -> None:
        self.model, self._weights, self._store = order.model, weights, store
        mine = order.requests_of(rank)
        requests = [order.requests[k] for k in mine]
        lengths = [order.lengths[k] for k in mine]
        self.sequences = Sequences(requests, [order.prompts[k] for k in mine], self.model.vocab, lengths=lengths)
        self.logits: dict[int, list[Floats]] | None = {r.request_id: [] for r in requests} if order.keep else None
        self._none = not mine
        entries = sum(self.sequences.entries(r.request_id) for r in requests) * self.model.layers
        most = max([order.rows_of(rank), len(requests)])
        longest = max((r.prompt_tokens for r in requests), default=0)
        self._make_room(entries, most, len(requests), longest, order.threads)
        self._batch = MicroBatch((), np.zeros(1, np.int64), np.zeros(0, np.int64))

    def _make_room(self, entries: int, most: int, sequences: int, longest: int, threads: int) -> None:
        """A cache of so many entries, and intermediates of up to `most` rows."""
        width = self.model.kv_dim // 2
        self._cache = KVCache(Arena("cache", max(1, 2 * entries * width) * 4 + 4096), self.model.layers, width, entries)
        floats = decoder.scratch_floats(self.model, most, sequences=sequences, longest=longest, threads=threads)
        self._space = np.zeros(max(1, floats), np.float32)
        self._qkv = np.zeros((most, self.model.qkv_dim), np.float32)
        self._attn = np.zeros((most, self.model.attention_out_dim), np.float32)
        self._hidden = np.zeros((most, self.model.hidden), np.float32)

    def ops(self) -> dict[str, Op]:
        ops = {
            "embed": self._embed, "pre_attn": self._pre_attn, "attn_prefill": self._attn_prefill, "attn_decode": self._attn_decode,
            "o_proj": self._o_proj, "sample": self._sample,
        }  # fmt: skip
        return dict.fromkeys(ops, self._idle) if self._none else ops

    def _idle(self, task: Record, _: Interrupt) -> None:
        """A rank without requests computes the others' experts only."""
        self._store.hidden = self._hidden[:0]

    def _embed(self, task: Record, _: Interrupt) -> None:
        ids = self._next_ids(task)
        self._store.hidden = self._hidden[: len(ids)]
        decoder.embed_tokens(self._weights.embed, ids, self._store.hidden)

    def _next_ids(self, task: Record) -> NDArray[np.int64]:
        if task.phase == "prefill":
            ids, self._batch = self.sequences.prompts(task.requests, task.work.tokens)
        else:
            ids, self._batch = self.sequences.next_tokens(task.requests)
        return ids

    def _pre_attn(self, task: Record, _: Interrupt) -> None:
        layer = self._weights.layers[task.layer]
        decoder.pre_attn(self.model, layer, self._store.hidden, self._batch.positions, self._rows(self._qkv), self._space)

    def _attn_prefill(self, task: Record, _: Interrupt) -> None:
        qkv, attn = self._rows(self._qkv), self._rows(self._attn)
        decoder.attn_prefill(self.model, qkv, self._batch.offsets, attn, self._space)
        append_rows(self._cache, self.sequences, qkv, self._batch, task.layer)

    def _attn_decode(self, task: Record, _: Interrupt) -> None:
        cache, batch = self._cache, self._batch
        space = self._space[: int(np.prod(attention_decode.scratch_shape(self.model.heads, 1)))]
        with cache.using():
            starts = cache.starts(batch.requests, task.layer)
            decoder.attn_decode(
                self.model, self._rows(self._qkv), by_entry(cache.k), by_entry(cache.v), starts, batch.before, self._rows(self._attn), space
            )

    def _o_proj(self, task: Record, _: Interrupt) -> None:
        hidden = self._store.hidden
        projected = decoder.Scratch(self._space).take(*hidden.shape)
        product(self._rows(self._attn), self._weights.layers[task.layer].wo, projected)
        np.add(hidden, projected, out=hidden)

    def _sample(self, task: Record, _: Interrupt) -> Result:
        last = np.take(self._store.hidden, self._batch.offsets[1:] - 1, axis=0)
        logits = np.empty((len(last), self.model.vocab), np.float32)
        weights = self._weights
        tokens = decoder.sample_tokens(self.model, weights.final_norm, weights.lm_head, last, logits, self._space).tolist()
        return self._sampled(tokens, logits)

    def _sampled(self, tokens: list[int], logits: Floats | None) -> Result:
        """logits [S, V]: wanted where they are kept."""
        if self.logits is not None:
            for request, row in zip(self._batch.requests, logits, strict=True):
                self.logits[request].append(row)
        return Result(ended=self.sequences.sampled(self._batch.requests, tokens))

    def _rows(self, array: Floats) -> NDArray[np.float32]:
        return array[: self._batch.rows]
