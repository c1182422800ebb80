"""Topology: the GPUs of a machine one by one, and the links, switches and NICs between them.

GPUs are ranks 0 to W - 1, counted node by node. In a link's ends a name with "*" stands for one device
a GPU of the node (`gpu*` - `nic*` joins each GPU with its own NIC). A device named in `links` belongs
to each node; the other ends of `network` are switches that all nodes share.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from pydantic import Field, model_validator

from sim.machines.parts import OpRate, Source, Strict

if TYPE_CHECKING:
    import networkx as nx

KINDS = ("nvlink", "pcie", "rdma", "ethernet")
"""Kinds of links; a route is of the last one of these that it crosses."""


class Gpu(Strict):
    """One GPU."""

    peaks: dict[str, float] = Field(description="dense FLOP/s by element type; bf16 is what other types are counted in")
    hbm_bytes_per_s: float = Field(gt=1e9, lt=1e14)
    memory_bytes: int = Field(gt=0)
    usable: float = Field(0.9, gt=0, le=1, description="share that a plan may fill")
    sms: int = Field(ge=1, le=4096)
    source: Source

    @model_validator(mode="after")
    def _counted_in_bf16(self) -> Gpu:
        if "bf16" not in self.peaks:
            raise ValueError(f"peaks.bf16: missing; have {', '.join(self.peaks) or 'none'}")
        return self

    def bf16_per_flop(self, dtype: str) -> float:
        """Seconds of the bf16 peak that one FLOP of `dtype` costs at its own peak. Raises KeyError for a type without a peak."""
        return self.peaks["bf16"] / self.peaks[dtype]


class Link(Strict):
    """A cable, or a switch port: equal in both directions."""

    ends: tuple[str, str]
    kind: Literal["nvlink", "pcie", "rdma", "ethernet"]
    bytes_per_s: float = Field(ge=1e5, le=1e13, description="of one direction")
    latency_s: float = Field(ge=0, lt=1)
    messages_per_s: float | None = Field(None, gt=0, description="messages that one direction carries; none: no limit")
    source: Source


def _base(device: str) -> str:
    """The devices that a name is one of: nic of nic3 and nic*."""
    return device.rstrip("*0123456789")


class Route(NamedTuple):
    """Way of a put: the resources it demands (bytes of each link direction, messages of limited ones, in the order
    crossed), the sum of the links' latencies, the lowest message rate, the slowest kind of link."""

    resources: tuple[str, ...]
    latency_s: float
    messages_per_s: float | None
    kind: str


class Topology(Strict):
    """See the module. `ops`: rows of the op table of the lanes that `sim.fabric.expand` makes: gpu, comm, host,
    put, put.nvlink, put.rdma, ..."""

    nodes: int = Field(1, ge=1, le=1024)
    gpus: int = Field(ge=1, le=64, description="GPUs of one node")
    gpu: Gpu
    links: tuple[Link, ...] = ()
    network: tuple[Link, ...] = ()
    ops: tuple[OpRate, ...] = ()

    @model_validator(mode="after")
    def _connected(self) -> Topology:
        import networkx as nx

        graph = self.graph()
        missing = [f"gpu.{r}" for r in range(self.ranks) if f"gpu.{r}" not in graph]
        if missing and self.ranks > 1:
            raise ValueError(f"links: none ends at {missing[0]}; every GPU needs one (ends: [gpu*, ...])")
        if self.ranks > 1 and not nx.is_strongly_connected(graph):
            raise ValueError("links, network: some GPUs cannot reach each other")
        return self

    @property
    def ranks(self) -> int:
        return self.nodes * self.gpus

    def node_of(self, rank: int) -> int:
        return rank // self.gpus

    def wires(self) -> Iterator[tuple[str, str, Link]]:
        """Every link of every node and of the network, with its devices' names in the graph."""
        own = {"gpu", *(_base(end) for link in self.links for end in link.ends)}
        for node in range(self.nodes):
            for link in self.links:
                yield from self._spread(link, node, own)
            for link in self.network:
                if any(_base(end) in own for end in link.ends):
                    yield from self._spread(link, node, own)
        for link in self.network:
            if not any(_base(end) in own for end in link.ends):
                yield from self._spread(link, 0, own)

    def _spread(self, link: Link, node: int, own: set[str]) -> Iterator[tuple[str, str, Link]]:
        for i in range(self.gpus if any("*" in end for end in link.ends) else 1):
            a, b = (self._device(end.replace("*", str(i)), node, _base(end) in own) for end in link.ends)
            yield a, b, link

    def _device(self, name: str, node: int, own: bool) -> str:
        if not own:
            return name
        if name.startswith("gpu") and name[3:].isdigit():
            return f"gpu.{node * self.gpus + int(name[3:])}"
        return f"{name}.{node}"

    def graph(self) -> nx.DiGraph[str]:
        """Devices and link directions; each edge has `resource`, `bytes_per_s`, `latency_s`, `messages_per_s`, `kind`, `source`."""
        import networkx as nx

        graph: nx.DiGraph[str] = nx.DiGraph()
        for a, b, link in self.wires():
            for x, y in ((a, b), (b, a)):
                if not graph.has_edge(x, y):
                    graph.add_edge(x, y, resource=f"{x}>{y}", **link.model_dump(exclude={"ends"}))
        return graph

    @cached_property
    def _paths(self) -> dict[int, dict[str, list[str]]]:
        return {}

    @cached_property
    def _graph(self) -> nx.DiGraph[str]:
        return self.graph()

    def route(self, a: int, b: int) -> Route:
        """The way with the least latency from rank `a` to rank `b`; no GPU forwards for others. Raises ValueError for
        a rank that does not exist, or where a == b."""
        if a == b or not (0 <= a < self.ranks and 0 <= b < self.ranks):
            raise ValueError(f"route from rank {a} to rank {b}: two different ones of 0 to {self.ranks - 1} are needed")
        path = self._from(a)[f"gpu.{b}"]
        edges = [self._graph.edges[x, y] for x, y in zip(path, path[1:], strict=False)]
        resources: list[str] = []
        for edge in edges:
            resources.append(edge["resource"])
            if edge["messages_per_s"] is not None:
                resources.append(edge["resource"] + ".messages")
        limits = [edge["messages_per_s"] for edge in edges if edge["messages_per_s"] is not None]
        kind = max((edge["kind"] for edge in edges), key=KINDS.index)
        return Route(tuple(resources), sum(edge["latency_s"] for edge in edges), min(limits, default=None), kind)

    def _from(self, rank: int) -> dict[str, list[str]]:
        if rank not in self._paths:
            import networkx as nx

            source = f"gpu.{rank}"

            def latency(x: str, y: str, edge: dict[str, Any]) -> float | None:
                return None if x != source and x.startswith("gpu.") else edge["latency_s"]

            self._paths[rank] = nx.single_source_dijkstra_path(self._graph, source, weight=latency)
        return self._paths[rank]
