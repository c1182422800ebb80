"""Plant: what a swarm serves with, in numbers: GPUs, their memory for a model, times of a layer's parts, and prices of tasks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import inf
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from sim.clusters import Cluster, Network
from sim.demands import Demand
from sim.errors import UserError
from sim.models import ModelSpec
from sim.placement import Gpus
from sim.placement.fleet import KV_SHARE, USABLE
from sim.swarm.costs import NamedCosts, Queue
from sim.swarm.mail import LANE, OP, wire_price
from sim.tasks import PS_PER_S, Work

FLOPS_EFFICIENCY, BYTES_EFFICIENCY, LAUNCH_S = 0.6, 0.8, 5e-6
"""As the op tables of the built-in machines: what well-tuned kernels reach of the datasheet's peaks, and a launch (guessed)."""
KERNELS = 8
"""Launches of one layer (guessed: norms, projections, attention, router, dispatch, experts, combine)."""

if TYPE_CHECKING:
    from sim.swarm.shelves import Manifest

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def serve_lane(region: str) -> str:
    return f"serve.{region}"


@dataclass(frozen=True, eq=False)
class Plant:
    """A cluster for one model. GPUs are numbered as in `cluster.gpu`, nodes and regions (those with GPUs) in order of appearance."""

    cluster: Cluster
    model: ModelSpec

    def __post_init__(self) -> None:
        if not self.cluster.gpu:
            raise UserError(f"--machine: {self.cluster.name} has no GPUs; a cluster with some is needed")

    @cached_property
    def network(self) -> Network:
        return Network(self.cluster)

    @cached_property
    def nodes(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(g.node for g in self.cluster.gpu))

    @cached_property
    def regions(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(g.region for g in self.cluster.gpu))

    @cached_property
    def node_of(self) -> Ints:
        """[gpus]"""
        return np.array([self.nodes.index(g.node) for g in self.cluster.gpu])

    @cached_property
    def region_of(self) -> Ints:
        """Of each node [nodes]."""
        return np.array([self.regions.index(self.cluster.node[n].region) for n in self.nodes])

    @cached_property
    def flops(self) -> Floats:
        return np.array([g.spec.flops for g in self.cluster.gpu]) * FLOPS_EFFICIENCY

    @cached_property
    def bytes_per_s(self) -> Floats:
        return np.array([g.spec.bytes_per_s for g in self.cluster.gpu]) * BYTES_EFFICIENCY

    @cached_property
    def usable_bytes(self) -> Floats:
        return np.array([g.spec.memory_bytes for g in self.cluster.gpu]) * USABLE

    @cached_property
    def _gpus_of(self) -> tuple[Ints, ...]:
        return tuple(np.flatnonzero(self.node_of == n) for n in range(len(self.nodes)))

    def gpus_of_node(self, node: int) -> Ints:
        return self._gpus_of[node]

    @cached_property
    def node_flops(self) -> tuple[float, ...]:
        """Of each node's GPUs together [nodes]."""
        return tuple(float(self.flops[mine].sum()) for mine in self._gpus_of)

    @cached_property
    def node_bytes_per_s(self) -> tuple[float, ...]:
        return tuple(float(self.bytes_per_s[mine].sum()) for mine in self._gpus_of)

    # Memory -------------------------------------------------------------------------------------

    def home_bytes(self, home: int) -> Floats:
        """What a node where sequences live keeps for dense weights (dealt over its GPUs) and KV cache, by GPU [gpus]."""
        out = np.zeros(len(self.cluster.gpu))
        mine = self.gpus_of_node(home)
        out[mine] = self.model.dense_bytes / len(mine) + KV_SHARE * self.usable_bytes[mine]
        return out

    def kv_tokens(self, home: int) -> int:
        """Tokens whose KV entries fit on a home."""
        return self._kv_tokens[home]

    @cached_property
    def _kv_tokens(self) -> tuple[int, ...]:
        each = self.model.layers * self.model.kv_bytes_per_token_layer
        return tuple(int(KV_SHARE * self.usable_bytes[mine].sum() / each) for mine in self._gpus_of)

    def slots(self, homes: Iterable[int], among: Ints) -> Ints:
        """Expert copies a layer that fit on each of the GPUs `among`, at most one of each expert. One layer's worth is kept free,
        into which copies are loaded before others are dropped."""
        room = self.usable_bytes - sum((self.home_bytes(h) for h in homes), np.zeros(len(self.cluster.gpu)))
        each = (self.model.moe_layers + 1) * self.model.expert_bytes
        return np.clip(room[among] // each, 0, self.model.experts).astype(np.int64)

    def fleet(self, homes: Iterable[int], among: Ints) -> Gpus:
        """Those GPUs for a placement policy. Speed is memory bandwidth: a decode step reads the experts that it uses."""
        names = tuple(self.cluster.gpu[g].name for g in among)
        node = np.unique(self.node_of[among], return_inverse=True)[1]
        region = np.unique(self.region_of[self.node_of[among]], return_inverse=True)[1]
        speed = self.bytes_per_s[among]
        return Gpus(names, node, region, speed / speed.max(), self.slots(homes, among))

    @cached_property
    def manifest(self) -> Manifest:
        """The model's checkpoint, as chunks."""
        from sim.swarm.shelves import Manifest

        return Manifest.of(self.model)

    # Times --------------------------------------------------------------------------------------

    def dense_s(self, home: int, tokens: int, entries: float, pairs: float) -> float:
        """One layer without its experts on the GPUs of a node together; entries: of the KV cache that are read, pairs: of queries
        and keys."""
        m = self.model
        weights = m.layer_dense_bytes + entries * m.kv_bytes_per_token_layer
        flops = 2.0 * tokens * (m.attention_params + m.router_params + m.shared_params) + 4.0 * pairs * m.heads * m.head_dim
        return max(weights / self.node_bytes_per_s[home], flops / self.node_flops[home]) + KERNELS * LAUNCH_S

    def head_s(self, home: int, sequences: int) -> float:
        """LM head on a node's GPUs together."""
        m = self.model
        read_s = m.vocab * m.hidden * m.dtype_bytes / self.node_bytes_per_s[home]
        return max(read_s, 2.0 * sequences * m.vocab * m.hidden / self.node_flops[home])

    def expert_s(self, rows: Floats, touched: Floats) -> Floats:
        """Seconds of each GPU on its experts [..., gpus], for token rows and distinct experts [..., gpus]."""
        compute = rows * (6.0 * self.model.hidden * self.model.ffn) / self.flops
        return np.asarray(np.maximum(compute, touched * self.model.expert_bytes / self.bytes_per_s))

    @property
    def row_bytes(self) -> int:
        """A token's activation."""
        return self.model.hidden * self.model.dtype_bytes

    # The engine's view --------------------------------------------------------------------------

    @cached_property
    def resources(self) -> Mapping[str, float]:
        """Links, tunnels, and `node.NAME`: seconds a second of a node's GPUs, in nanoseconds."""
        return {**self.network.capacities, **{f"node.{n}": 1e9 for n in self.nodes}}

    @cached_property
    def number(self) -> Mapping[str, int]:
        return {name: i for i, name in enumerate(self.resources)}

    @cached_property
    def _names(self) -> tuple[str, ...]:
        return tuple(self.resources)

    def work(
        self, op: str, latency_s: float, loads: Mapping[str, float], *, tokens: int = 0, moved: int = 0, variant: str = ""
    ) -> Work:
        """A task of the swarm: its latency and what it loads resources with: bytes, core-seconds, node-nanoseconds.

        The loads travel in `expert_tokens` as (number of the resource, thousandths of a unit) pairs, so that a command says
        all that its price depends on.
        """
        pairs = tuple(v for name, amount in loads.items() if amount > 0 for v in (self.number[name], round(amount * 1e3)))
        return Work(op, tokens=tokens, bytes=moved, latency_ps=round(latency_s * PS_PER_S), expert_tokens=pairs, variant=variant)

    def transfer(self, a: str, b: str, size: int, op: str = "move") -> Work:
        """Bytes from node to node."""
        path = self.network.path(a, b)
        return self.work(op, path.latency_s, {name: size * factor for name, factor in path.resources}, moved=size, variant=f"{a} {b}")

    def price(self, lane: str | None, work: Work) -> tuple[float, Sequence[Demand]]:
        if work.op == OP:
            return wire_price(self.network, work)
        it = iter(work.expert_tokens)
        return 0.0, [(self._names[number], amount / 1e3, inf, 1.0) for number, amount in zip(it, it, strict=True)]

    def costs(self) -> NamedCosts:
        return NamedCosts(self.resources, self.price, f"{self.cluster.digest} {self.model!r}", ("timer", OP))

    def lanes(self) -> tuple[Queue, ...]:
        """A lane for the work of each region's GPUs, and the wires. None has a limit: groups step one at a time by their own doing."""
        return (*(Queue(serve_lane(r), servers=1 << 20) for r in self.regions), LANE)

    def lane_of(self, node: int) -> str:
        return serve_lane(self.regions[self.region_of[node]])
