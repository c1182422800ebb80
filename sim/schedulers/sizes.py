"""Bytes that one schedule moves and keeps: rows of activations, cache entries, pages of weights."""

from __future__ import annotations

from dataclasses import dataclass

from sim.models.spec import ModelSpec
from sim.schedulers.policy import Policy


@dataclass(frozen=True, slots=True)
class Sizes:
    """Attributes
    ----------
    layers, dense_layers, experts: of the model; a dense layer (at the front) has no experts.
    hidden_bytes: one row [hidden]. qkv_bytes: one row of Q, K and V together; D1 of MoE-Lightning
        4.1, 12,288 B for Mixtral 8x7B. attn_bytes: one row of attention output; D2, 8,192 B.
    kv_bytes: one cache entry of one layer, K and V.
    page_bytes: each page of one layer's streamed experts; empty where nothing is streamed.
    window: entries that a layer of `sliding` keeps and reads of each sequence.
    """

    layers: int
    dense_layers: int
    experts: int
    hidden_bytes: int
    qkv_bytes: int
    attn_bytes: int
    kv_bytes: int
    page_bytes: tuple[int, ...]
    window: int
    sliding: frozenset[int]

    @property
    def pages(self) -> int:
        return len(self.page_bytes)

    @property
    def layer_bytes(self) -> int:
        """All that is streamed of one layer."""
        return sum(self.page_bytes)

    def routed(self, layer: int) -> bool:
        """Whether `layer` has experts."""
        return layer >= self.dense_layers

    def seen(self, layer: int) -> int | None:
        """Entries of a sequence that `layer` sees at most; None: all."""
        return self.window if layer in self.sliding else None


def sizes(model: ModelSpec, policy: Policy) -> Sizes:
    b = model.dtype_bytes
    return Sizes(
        layers=model.layers,
        dense_layers=model.dense_layers,
        experts=model.experts,
        hidden_bytes=model.hidden * b,
        qkv_bytes=model.qkv_dim * b,
        attn_bytes=model.attention_out_dim * b,
        kv_bytes=model.kv_bytes_per_token_layer,
        page_bytes=page_bytes(model, policy),
        window=model.sliding_window,
        sliding=frozenset(model.sliding_layers),
    )


def page_bytes(model: ModelSpec, policy: Policy) -> tuple[int, ...]:
    """Bytes of each page of one layer: floor(rows / pages) rows [hidden], the last takes the
    remainder (MoE-Lightning's execution_engine.init_weights_prefetch_meta)."""
    total = policy.streamed_experts(model) * model.expert_bytes
    pages = policy.pages or policy.microbatches
    if total == 0:
        return ()
    row = model.hidden * model.dtype_bytes
    page = total // row // pages * row
    return (page,) * (pages - 1) + (total - page * (pages - 1),)
