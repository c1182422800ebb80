"""Cluster: regions, nodes with GPUs behind NICs, links between regions, and prices, read from YAML.

A machine (`sim.machines`) is what is inside one node; a cluster is what is between nodes. Nodes of
one region reach each other over their NICs; nodes of two regions over the regions' link as well,
and inside an encrypted tunnel where the cluster has one.
"""

from __future__ import annotations

import hashlib
from functools import cached_property
from typing import Annotated, Literal

from pydantic import Field, model_validator

from sim.machines.schema import Price, Source, Strict

BytesPerS = Annotated[float, Field(ge=1e3, le=1e13)]


class GPUKind(Strict):
    """What one GPU of a kind can do."""

    flops: float = Field(ge=1e9, le=1e17, description="dense FLOP/s in 16-bit")
    bytes_per_s: float = Field(ge=1e9, le=1e14, description="memory bandwidth")
    memory_bytes: int = Field(ge=10**8, le=10**13)
    watts: float | None = Field(None, gt=0, le=5000, description="board power")
    idle_watts: float | None = Field(None, gt=0, le=5000, description="board power with weights loaded and nothing to do")
    idle_source: Source | None = None
    source: Source

    @model_validator(mode="after")
    def _sourced(self) -> GPUKind:
        if self.idle_watts is not None and self.idle_source is None:
            raise ValueError("idle_source: missing; say where idle_watts is from")
        if self.idle_watts is not None and self.watts is not None and self.idle_watts > self.watts:
            raise ValueError(f"idle_watts: is {self.idle_watts:g}; must be at most watts ({self.watts:g})")
        return self


class NodeGroup(Strict):
    """Equal nodes of one region and zone; node i of group g is named g-i, or g where the group has one."""

    region: str
    zone: str = ""
    count: int = Field(1, ge=1, le=4096)
    gpu: str | None = Field(None, description="kind of its GPUs; none: a node without")
    gpus: int = Field(1, ge=0, le=64)
    instance: str | None = Field(None, description="what its provider calls such a node, as price traces have it")
    nic_out_bytes_per_s: BytesPerS
    nic_in_bytes_per_s: BytesPerS
    nic_latency_s: float = Field(ge=0, lt=1, description="one way, from the node to its region's exchange")
    tunnel_cores: float = Field(1.0, gt=0, le=256, description="cores that encrypt and decrypt")
    price: Price | None = None
    spot: Price | None = Field(None, description="where the node can be had as spot capacity")
    source: Source


class Link(Strict):
    """A link between two regions, the same both ways unless `back_bytes_per_s` says otherwise."""

    a: str
    b: str
    rtt_s: float = Field(ge=0, lt=10)
    bytes_per_s: BytesPerS
    back_bytes_per_s: BytesPerS | None = None
    loss: float = Field(0.0, ge=0, lt=1, description="share of messages without retransmission that are lost")
    usd_per_gb: float = Field(0.0, ge=0, le=10, description="egress price in both directions")
    source: Source


class Tunnel(Strict):
    """What encryption adds to traffic between regions: bytes on the wire and seconds of a core."""

    overhead_bytes: int = Field(ge=0, le=1000, description="of each packet")
    payload_bytes: int = Field(gt=0, le=65535, description="of each packet")
    core_s_per_byte: float = Field(ge=0, lt=1e-3, description="at each end")
    source: Source

    @property
    def inflation(self) -> float:
        """Bytes on the wire for a byte of payload."""
        return 1.0 + self.overhead_bytes / self.payload_bytes


class Region(Strict):
    """A place. latency_s: one way between two nodes' NICs inside it, on top of the NICs' own."""

    description: str = ""
    latency_s: float = Field(0.0, ge=0, lt=1)
    north_deg: float | None = Field(None, ge=-90, le=90, description="latitude, for maps")
    east_deg: float | None = Field(None, ge=-180, le=180, description="longitude, for maps")
    carbon_g_per_kwh: float | None = Field(None, ge=0, le=2000, description="of CO2 equivalent, of the grid there")
    carbon_source: Source | None = None

    @model_validator(mode="after")
    def _sourced(self) -> Region:
        if (self.north_deg is None) != (self.east_deg is None):
            raise ValueError("north_deg and east_deg: one without the other; give both or none")
        if self.carbon_g_per_kwh is not None and self.carbon_source is None:
            raise ValueError("carbon_source: missing; say where carbon_g_per_kwh is from")
        return self


class Node(Strict):
    """One node of a cluster, see `NodeGroup`."""

    name: str
    group: NodeGroup

    @property
    def region(self) -> str:
        return self.group.region


class GPU(Strict):
    """One GPU of a cluster: `name` is NODE/i."""

    name: str
    node: str
    region: str
    zone: str
    kind: str
    spec: GPUKind


class Cluster(Strict):
    kind: Literal["cluster"]
    name: str
    description: str = ""
    coordinator: str = Field(description="node where requests arrive and the control plane's leader starts")
    gpus: dict[str, GPUKind]
    regions: dict[str, Region]
    nodes: dict[str, NodeGroup]
    links: tuple[Link, ...] = ()
    tunnel: Tunnel | None = None

    @model_validator(mode="after")
    def _refers(self) -> Cluster:
        for name, group in self.nodes.items():
            if group.region not in self.regions:
                raise ValueError(f"nodes.{name}.region: no region {group.region!r}; have {', '.join(self.regions)}")
            if group.gpu is not None and group.gpu not in self.gpus:
                raise ValueError(f"nodes.{name}.gpu: no kind {group.gpu!r}; have {', '.join(self.gpus)}")
        seen: set[frozenset[str]] = set()
        for i, link in enumerate(self.links):
            for end in (link.a, link.b):
                if end not in self.regions:
                    raise ValueError(f"links[{i}]: no region {end!r}; have {', '.join(self.regions)}")
            pair = frozenset((link.a, link.b))
            if len(pair) == 1 or pair in seen:
                raise ValueError(f"links[{i}]: {link.a} to {link.b} is {'a loop' if len(pair) == 1 else 'declared twice'}")
            seen.add(pair)
        if self.coordinator not in self.node:
            raise ValueError(f"coordinator: no node {self.coordinator!r}; have {', '.join(self.node)}")
        return self

    @cached_property
    def node(self) -> dict[str, Node]:
        """Nodes by name, in declared order."""
        out: dict[str, Node] = {}
        for g, group in self.nodes.items():
            for i in range(group.count):
                name = g if group.count == 1 else f"{g}-{i}"
                out[name] = Node(name=name, group=group)
        return out

    @cached_property
    def gpu(self) -> tuple[GPU, ...]:
        """All GPUs, node by node."""
        return tuple(
            GPU(name=f"{n.name}/{i}", node=n.name, region=n.region, zone=n.group.zone, kind=n.group.gpu, spec=self.gpus[n.group.gpu])
            for n in self.node.values() if n.group.gpu is not None for i in range(n.group.gpus)
        )  # fmt: skip

    def nodes_of(self, region: str) -> tuple[str, ...]:
        return tuple(n.name for n in self.node.values() if n.region == region)

    @cached_property
    def digest(self) -> str:
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()
