"""The weights that one rank holds: everything but the experts of others."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from exec.checkpoint import Checkpoint
from exec.cluster.job import Order
from exec.cluster.rows import lasting
from exec.weights import LayerWeights, Weights, expert_floats, layer_shapes, load_dense, load_experts, random_weights, split_expert

STREAM = 2
"""What the popularity of experts is scaled with along the direction that all rows share, see `layer_inputs`."""


def shard(order: Order, rank: int) -> Weights:
    """Weights with `experts[layer]` being those of the rank's own experts only."""
    if not order.serves:
        return _layers(order, rank)
    mine = order.experts_of(rank)
    if order.weights:
        with Checkpoint(Path(order.weights)) as files:
            layers = tuple(kept(load_experts(files, order.model, i, mine)) for i in range(order.model.layers))
            return load_dense(files, order.model, layers)
    whole = random_weights(order.model, order.seed)
    size = expert_floats(order.model)
    own = tuple(kept(layer[mine.start * size : mine.stop * size]) for layer in whole.experts)
    return Weights(whole.embed, whole.final_norm, whole.lm_head, whole.layers, own)


def kept(experts: np.ndarray) -> np.ndarray:
    """A copy in memory that streams well."""
    out = lasting("experts", experts.shape)
    out[:] = experts
    return out


# MoE layers without a model around them ---------------------------------------------------------


def layer_inputs(order: Order, rank: int) -> np.ndarray:
    """Rows [tokens, hidden] that the first layer reads on `rank`. Its first column is the same in all rows: the
    router's weights for it make experts popular."""
    rows = _normal([order.seed, 3, rank], (order.tokens[rank], order.model.hidden))
    rows[:, 0] = STREAM
    return rows


def _layers(order: Order, rank: int) -> Weights:
    """Weights of the layers' norms, routers and own experts; an expert's do not depend on how many ranks there are."""
    nothing = np.empty((0, order.model.hidden), np.float32)
    layers = tuple(drawn_router(order, i) for i in range(order.model.layers))
    experts = tuple(kept(np.concatenate([drawn_expert(order, i, e) for e in order.experts_of(rank)])) for i in range(order.model.layers))
    return Weights(nothing, nothing, nothing, layers, experts)


def drawn_router(order: Order, layer: int) -> LayerWeights:
    """A layer without attention: its norm and its router."""
    model, nothing = order.model, np.empty(0, np.float32)
    shape = layer_shapes(model)["router"]
    router = 2 * model.hidden**-0.5 * _normal([order.seed, 1, layer], shape)
    popularity = -order.skew * np.log1p(np.arange(model.experts))
    router[:, 0] = popularity / STREAM
    return LayerWeights(nothing, nothing, nothing, np.ones(model.hidden, np.float32), router.astype(np.float32))


def drawn_expert(order: Order, layer: int, expert: int) -> np.ndarray:
    """An expert's weights, flat; the same whoever draws them."""
    model = order.model
    flat = model.hidden**-0.5 * _normal([order.seed, 2, layer, expert], (expert_floats(model),))
    split_expert(model, flat, 0)[2][:] *= np.float32((2 * model.layers) ** -0.5 * (model.hidden / model.ffn) ** 0.5)
    return flat


def _normal(key: list[int], shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(key).standard_normal(shape, dtype=np.float32)
