"""Network: a cluster's links as a `networkx` graph, and the route of a message from node to node."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

from sim.clusters.schema import Cluster
from sim.errors import UserError

if TYPE_CHECKING:
    import networkx as nx


class Path(NamedTuple):
    """What a message crosses.

    resources: links in order, each with its bytes on the wire for a byte of payload, and the tunnel's cores
        with their core-seconds a byte. latency_s: one way. link_class: "node" (stays), "region" or "wan".
    loss: share of messages without retransmission that are lost. usd_per_byte: egress price.
    """

    resources: tuple[tuple[str, float], ...]
    latency_s: float
    link_class: str
    loss: float = 0.0
    usd_per_byte: float = 0.0


@dataclass(frozen=True, eq=False)
class Network:
    """Routes over a cluster's graph. Resource names: `nic.NODE.out`, `nic.NODE.in`, `wan.A.B`, `tunnel.NODE`."""

    cluster: Cluster

    @cached_property
    def graph(self) -> nx.DiGraph:
        """Nodes and regions; every edge has resource (None inside a region's exchange), bytes_per_s, latency_s, loss, usd_per_gb."""
        import networkx as nx

        graph = nx.DiGraph(name=self.cluster.name)
        for name, region in self.cluster.regions.items():
            graph.add_node(name, kind="region", latency_s=region.latency_s)
        for node in self.cluster.node.values():
            g = node.group
            graph.add_node(node.name, kind="node", region=g.region, zone=g.zone, gpu=g.gpu, gpus=g.gpus if g.gpu else 0)
            plain = {"latency_s": g.nic_latency_s, "loss": 0.0, "usd_per_gb": 0.0}
            graph.add_edge(node.name, g.region, resource=f"nic.{node.name}.out", bytes_per_s=g.nic_out_bytes_per_s, **plain)
            graph.add_edge(g.region, node.name, resource=f"nic.{node.name}.in", bytes_per_s=g.nic_in_bytes_per_s, **plain)
        for link in self.cluster.links:
            for a, b, rate in ((link.a, link.b, link.bytes_per_s), (link.b, link.a, link.back_bytes_per_s or link.bytes_per_s)):
                graph.add_edge(
                    a, b, resource=f"wan.{a}.{b}", bytes_per_s=rate, latency_s=link.rtt_s / 2, loss=link.loss, usd_per_gb=link.usd_per_gb
                )
        return graph

    @cached_property
    def capacities(self) -> dict[str, float]:
        """Bytes/s of every link, and cores of every node's tunnel."""
        out = {data["resource"]: float(data["bytes_per_s"]) for _, _, data in self.graph.edges(data=True)}
        if self.cluster.tunnel is not None and self.cluster.tunnel.core_s_per_byte:
            out |= {f"tunnel.{n.name}": n.group.tunnel_cores for n in self.cluster.node.values()}
        return out

    @cached_property
    def _paths(self) -> dict[tuple[str, str], Path]:
        return {}

    def path(self, a: str, b: str) -> Path:
        """Route from node a to node b: the direct link of their regions where there is one, else the chain of links with the
        least latency. Raises UserError where no chain of links joins them."""
        if (a, b) not in self._paths:
            self._paths[a, b] = self._find(a, b)
        return self._paths[a, b]

    def rtt_s(self, a: str, b: str) -> float:
        return self.path(a, b).latency_s + self.path(b, a).latency_s

    def _hops(self, a: str, b: str) -> list[tuple[str, str]]:
        """Edges between two regions."""
        import networkx as nx

        if a == b:
            return []
        if self.graph.has_edge(a, b):
            return [(a, b)]
        regions = self.graph.subgraph(self.cluster.regions)
        try:
            chain = nx.shortest_path(regions, a, b, weight="latency_s")
        except nx.NetworkXNoPath:
            raise UserError(f"cluster {self.cluster.name}: links: no chain of links joins {a} and {b}; add one") from None
        return list(zip(chain, chain[1:], strict=False))

    def _find(self, a: str, b: str) -> Path:
        if a == b:
            return Path((), 0.0, "node")
        ra, rb = self.cluster.node[a].region, self.cluster.node[b].region
        wan = self._hops(ra, rb)
        edges = [self.graph.edges[x, y] for x, y in [(a, ra), *wan, (rb, b)]]
        latency = sum(e["latency_s"] for e in edges)
        tunnel = self.cluster.tunnel
        if not wan:
            return Path(tuple((e["resource"], 1.0) for e in edges), latency + self.cluster.regions[ra].latency_s, "region")
        inflation = tunnel.inflation if tunnel else 1.0
        resources = [(str(e["resource"]), inflation) for e in edges]
        if tunnel is not None and tunnel.core_s_per_byte:
            resources += [(f"tunnel.{n}", tunnel.core_s_per_byte) for n in (a, b)]
        kept = math.prod(1.0 - e["loss"] for e in edges)
        price = sum(e["usd_per_gb"] for e in edges) * inflation / 1e9
        return Path(tuple(resources), latency, "wan", 1.0 - kept, price)
