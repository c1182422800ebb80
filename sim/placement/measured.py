"""Layer rates of a cluster's nodes from measured timing tables: the nodes of Helix's placement problem.

A node with k layers keeps their weights, and KV entries in what its memory leaves; its decode batch is what those
hold, or the largest that was measured. A request's time on a layer is its prompt's and its output's share of such batches.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from sim.clusters.importers.helix import Curve, node_kind
from sim.clusters.network import Network
from sim.demands import curve_at
from sim.placement.spans import SpanNode, SpanProblem


@dataclass(frozen=True, slots=True)
class Sizes:
    """Of a dense decoder in 16-bit: layer_bytes, kv_bytes of a token in one layer, row_bytes of a token between layers."""

    layers: int
    layer_bytes: float
    kv_bytes: float
    row_bytes: float


MODELS: Mapping[str, Sizes] = {
    "llama1_30b": Sizes(60, 2 * (4 * 6656**2 + 3 * 6656 * 17920), 2 * 2 * 6656, 2 * 6656),
    "llama2_70b": Sizes(80, 2 * (2 * 8192**2 + 2 * 8192 * 1024 + 3 * 8192 * 28672), 2 * 2 * 1024, 2 * 8192),
}
"""From the models' published sizes: LLaMA 33B (arXiv 2302.13971, table 2), LLaMA-2 70B with 8 KV heads (arXiv 2307.09288)."""

WEIGHT_SHARE = 0.5
"""Of a node's memory; the rest is for the KV cache and activations. Helix's artifact sets a number a machine: guessed."""

USABLE = 0.9


@dataclass(frozen=True, slots=True)
class Lengths:
    """Mean tokens of a request. Source: Azure conversation trace as Helix serves it (arXiv 2406.01566, section 6.1)."""

    prompt: float = 763.0
    output: float = 232.0


def node_rates(memory_bytes: float, prompt: Curve, decode: Curve, model: Sizes, lengths: Lengths) -> tuple[float, ...]:
    """Output tokens a second through k layers held, for k = 1 to what `WEIGHT_SHARE` of the memory holds."""
    most = min(model.layers, int(memory_bytes * WEIGHT_SHARE / model.layer_bytes))
    return tuple(_rate(memory_bytes, k, prompt, decode, model, lengths) for k in range(1, most + 1))


def _rate(memory_bytes: float, k: int, prompt: Curve, decode: Curve, model: Sizes, lengths: Lengths) -> float:
    room = memory_bytes * USABLE - k * model.layer_bytes
    context = lengths.prompt + lengths.output / 2
    batch = min(decode[-1][0], max(1.0, np.floor(room / (k * model.kv_bytes * context))))
    best = min(seconds / tokens for tokens, seconds in prompt if tokens)
    seconds = k * (lengths.prompt * best + lengths.output * curve_at(decode, batch) / batch)
    return float(lengths.output / seconds)


def problem(
    network: Network, model: Sizes, profiles: Mapping[str, tuple[Curve, Curve]], lengths: Lengths | None = None, seed: int = 0
) -> SpanProblem:
    """The placement problem of a cluster, in output tokens a second: the coordinator's links carry token numbers, those
    between nodes the rows of prompt and output tokens."""
    asked = lengths or Lengths()
    cluster = network.cluster
    names = [n for n, node in cluster.node.items() if node.group.gpu is not None]
    nodes = []
    for n in names:
        group = cluster.node[n].group
        assert group.gpu is not None
        memory = group.gpus * cluster.gpus[group.gpu].memory_bytes
        nodes.append(SpanNode(n, node_rates(memory, *profiles[node_kind(cluster, n)], model, asked)))
    ends = [*names, cluster.coordinator]
    rows = 1 + asked.prompt / asked.output
    link, latency = np.zeros((len(ends), len(ends))), np.zeros((len(ends), len(ends)))
    for i, a in enumerate(ends):
        for j, b in enumerate(ends):
            if i != j:
                path = network.path(a, b)
                bytes_per_s = min(network.capacities[r] / f for r, f in path.resources)
                each = TOKEN_BYTES * rows if cluster.coordinator in (a, b) else model.row_bytes * rows
                link[i, j], latency[i, j] = bytes_per_s / each, path.latency_s
    return SpanProblem(model.layers, tuple(nodes), link, latency, seed)


TOKEN_BYTES = 4
"""A token's number on the way from and to the coordinator."""
