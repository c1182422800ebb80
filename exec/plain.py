"""The plain loop: prefill, then one decode step after another, all layers in order, nothing overlapped.

The oracle for every schedule (it computes what they must compute), and the baseline of `benchmarks/`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from exec import decoder
from exec.weights import Weights


class PlainDecoder:
    """One batch of sequences, one slot of the KV cache each.

    After `prefill` and after each `step`: `logits` [S, V] of the newest position, `tokens` [S] the
    greedy choice, `lengths` [S] the entries in the cache, `routing` the (ids, weights) of each layer.
    """

    def __init__(self, spec: Any, weights: Weights, prompts: Sequence[np.ndarray], max_new_tokens: int) -> None:
        self.spec, self.weights = spec, weights
        self.offsets = np.cumsum([0, *(len(p) for p in prompts)], dtype=np.int64)
        self._prompt_ids = np.concatenate(prompts).astype(np.int64)
        rows, count = int(self.offsets[-1]), len(prompts)
        longest = int(np.diff(self.offsets).max())
        self._hidden = np.empty((rows, spec.hidden), np.float32)
        self._qkv = np.empty((rows, decoder.qkv_width(spec)), np.float32)
        self._attn = np.empty((rows, spec.heads * spec.head_dim), np.float32)
        floats = decoder.scratch_floats(spec, rows, sequences=count, longest=longest, threads=torch.get_num_threads())
        self._scratch = np.empty(floats, np.float32)
        cache = (spec.layers, count, longest + max_new_tokens, spec.kv_heads * spec.head_dim)
        self._k, self._v = np.empty(cache, np.float32), np.empty(cache, np.float32)
        self._slots = np.arange(count)
        self.logits = np.empty((count, spec.vocab), np.float32)
        self.lengths = np.zeros(count, np.int64)
        self.tokens = np.zeros(count, np.int64)
        self.routing: list[tuple[np.ndarray, np.ndarray]] = []

    def prefill(self, forced_routing: Sequence[np.ndarray] | None = None) -> np.ndarray:
        """Run the prompts and sample the first tokens [S]; `forced_routing`: ids [T, k] of each layer."""
        positions = np.arange(self.offsets[-1]) - np.repeat(self.offsets[:-1], np.diff(self.offsets))
        decoder.embed_tokens(self.weights.embed, self._prompt_ids, self._hidden)
        self.routing = []
        for i, layer in enumerate(self.weights.layers):
            decoder.pre_attn(self.spec, layer, self._hidden, positions, self._qkv, self._scratch)
            decoder.attn_prefill(self.spec, self._qkv, self.offsets, self._attn, self._scratch)
            decoder.append_kv(self._qkv, self._k[i], self._v[i], self._slots, self.offsets, self.lengths)
            self._post_attn(i, self._attn, self._hidden, forced_routing)
        self.lengths += np.diff(self.offsets)
        return self._sample(self._hidden[self.offsets[1:] - 1])

    def step(self, forced_routing: Sequence[np.ndarray] | None = None) -> np.ndarray:
        """Run the newest tokens and sample the next ones [S]."""
        count = len(self.tokens)
        hidden, qkv, attn = self._hidden[:count], self._qkv[:count], self._attn[:count]
        decoder.embed_tokens(self.weights.embed, self.tokens, hidden)
        self.routing = []
        for i, layer in enumerate(self.weights.layers):
            decoder.pre_attn(self.spec, layer, hidden, self.lengths, qkv, self._scratch)
            decoder.attn_decode(self.spec, qkv, self._k[i], self._v[i], self._slots, self.lengths, attn, self._scratch)
            self._post_attn(i, attn, hidden, forced_routing)
        self.lengths += 1
        return self._sample(hidden)

    def _post_attn(self, i: int, attn: np.ndarray, hidden: np.ndarray, forced: Sequence[np.ndarray] | None) -> None:
        layer, experts = self.weights.layers[i], self.weights.experts[i]
        chosen = None if forced is None else forced[i]
        self.routing.append(decoder.post_attn(self.spec, layer, [experts], attn, hidden, self._scratch, chosen))

    def _sample(self, last: np.ndarray) -> np.ndarray:
        w = self.weights
        self.tokens = decoder.sample_tokens(self.spec, w.final_norm, w.lm_head, last, self.logits, self._scratch)
        return self.tokens
