"""Machine: resources, memories, lanes, pools and the op table, read from YAML.

Every capacity names its source and must lie in a plausible range: a resource faster than physics
makes results free of charge.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import cached_property
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Source = Annotated[str, Field(min_length=3, description="datasheet, paper, calibrated, guessed: ...")]


class Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """As pydantic's, but what was derived from the old fields is not taken over."""
        copy = super().model_copy(update=update, deep=deep)
        for name in [name for name in copy.__dict__ if isinstance(getattr(type(copy), name, None), cached_property)]:
            del copy.__dict__[name]
        return copy


class Resource(Strict):
    """Something shared while tasks run: FLOP/s of a unit, bytes/s of a memory or link, cores."""

    kind: Literal["flops", "memory", "link", "cores"]
    capacity: float = Field(gt=0, description="FLOP/s, bytes/s or cores")
    source: Source

    @model_validator(mode="after")
    def _plausible(self) -> Resource:
        low, high, unit = {
            "flops": (1e8, 1e18, "FLOP/s"), "memory": (1e8, 1e15, "bytes/s"), "link": (1e5, 1e13, "bytes/s"), "cores": (0.1, 4096, "cores"),
        }[self.kind]  # fmt: skip
        if not low <= self.capacity <= high:
            raise ValueError(f"{self.capacity:g} {unit} is outside the plausible range {low:g} to {high:g} of a {self.kind} resource")
        return self


class Memory(Strict):
    """Bytes that a run may hold at once: a hard limit."""

    bytes: int = Field(gt=0)
    usable: float = Field(1.0, gt=0, le=1, description="share that a plan may fill")
    source: Source

    @property
    def budget_bytes(self) -> int:
        return int(self.bytes * self.usable)


class Lane(Strict):
    """A queue in front of hardware."""

    name: str
    order: Literal["submitted", "ready", "priority"] = "submitted"
    servers: int = Field(1, ge=1, le=65536)
    kind: Literal["compute", "copy"]
    compute: str | None = Field(None, description="flops resource of a compute lane")
    memory: str | None = Field(None, description="memory resource that a compute lane streams from")
    path: tuple[str, ...] = Field((), description="resources that each copied byte crosses")
    cores: str | None = Field(None, description="cores resource whose threads do the work")
    threads: int = Field(0, ge=0, description="threads that a task keeps busy while it runs")
    home: str | None = Field(None, description="memory that the lane's buffers live in")
    ranks: int = Field(1, ge=1, le=64, description="equal devices that do each task together; capacities are those of all of them")
    peers: str | None = Field(None, description="link of one rank, over which the ranks sum what each has computed")
    paced_bytes_per_s: float | None = Field(None, gt=0, description="the executor paces copies to this rate; none: native")


class OpRate(Strict):
    """One row of the op table: how well an op runs on a lane.

    `curve` rows are (rows, seconds per unit), see `sim.costs`: a measured solo time. Without a
    curve the op is a roofline with the given efficiencies.
    """

    op: str = Field(description='component or copy, "*" for every other one, or task.OP: a whole task of OP beside its components')
    lane: str
    dtype: str = "*"
    latency_s: float = Field(0.0, ge=0, lt=10)
    flops_efficiency: float = Field(1.0, gt=0, le=1)
    bytes_efficiency: float = Field(1.0, gt=0, le=1)
    curve: tuple[tuple[float, float], ...] = ()
    ratio: tuple[tuple[float, float], ...] = Field(
        (), description="(size, measured over predicted seconds in whole runs): on a row task.OP of all components, on a copy of its curve"
    )
    bytes_scale: float = Field(1.0, ge=0, description="bytes on the memory resource per byte of the work formula (fitted)")
    source: Source


class Fabric(Strict):
    """Links between devices: what travels from a to b crosses a's egress, the core and b's ingress."""

    endpoints: tuple[str, ...] = Field(min_length=2)
    egress: tuple[str, ...]
    ingress: tuple[str, ...]
    core: str | None = Field(None, description="link that all traffic crosses, where it can be the bottleneck")
    latency_s: float = Field(ge=0, lt=1)
    source: Source

    @model_validator(mode="after")
    def _one_each(self) -> Fabric:
        for field, links in (("egress", self.egress), ("ingress", self.ingress)):
            if len(links) != len(self.endpoints):
                raise ValueError(f"{field}: {len(links)} links for {len(self.endpoints)} endpoints; one each is needed")
        return self

    @property
    def resources(self) -> tuple[str, ...]:
        return (*self.egress, *self.ingress, *((self.core,) if self.core else ()))

    def path(self, source: str, target: str) -> tuple[str, ...]:
        """Resources that a byte from `source` to `target` crosses. Raises ValueError for a name that is no endpoint."""
        a, b = self.endpoints.index(source), self.endpoints.index(target)
        if a == b:
            return ()
        return (self.egress[a], *((self.core,) if self.core else ()), self.ingress[b])


class Price(Strict):
    """What an hour of the machine costs."""

    usd_per_hour: float = Field(gt=0, lt=1e5)
    source: Source


class Machine(Strict):
    name: str
    description: str = ""
    clock: Literal["simulated", "emulated", "measured"] = "simulated"
    rig: str | None = Field(None, description="the rig that this profile was calibrated for")
    resources: dict[str, Resource]
    memories: dict[str, Memory]
    lanes: tuple[Lane, ...]
    pools: dict[str, Annotated[int, Field(gt=0)]] = {}
    price: Price | None = None
    fabric: Fabric | None = None
    ops: tuple[OpRate, ...]

    @model_validator(mode="after")
    def _refers(self) -> Machine:
        for lane in self.lanes:
            named = {"compute": lane.compute, "memory": lane.memory, "cores": lane.cores, "peers": lane.peers}
            for field, resource in [*named.items(), *(("path", p) for p in lane.path)]:
                if resource is not None and resource not in self.resources:
                    raise ValueError(f"lanes.{lane.name}.{field}: no resource {resource!r}; have {', '.join(self.resources)}")
            used = [r for r in (lane.compute, lane.memory, lane.cores, *lane.path) if r is not None]
            if len(set(used)) < len(used):
                raise ValueError(f"lanes.{lane.name}: names a resource twice; a task demands each once")
            if lane.ranks > 1 and lane.peers is None:
                raise ValueError(f"lanes.{lane.name}.peers: missing; {lane.ranks} ranks need a link between them")
            if lane.home is not None and lane.home not in self.memories:
                raise ValueError(f"lanes.{lane.name}.home: no memory {lane.home!r}; have {', '.join(self.memories)}")
        for resource in self.fabric.resources if self.fabric else ():
            if resource not in self.resources:
                raise ValueError(f"fabric: no resource {resource!r}; have {', '.join(self.resources)}")
        names = [lane.name for lane in self.lanes]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"lanes.{name}: declared {names.count(name)} times")
        for i, op in enumerate(self.ops):
            if op.lane not in names:
                raise ValueError(f"ops[{i}].lane: no lane {op.lane!r}; have {', '.join(names)}")
        return self

    @cached_property
    def lane(self) -> dict[str, Lane]:
        return {lane.name: lane for lane in self.lanes}

    @cached_property
    def digest(self) -> str:
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()


class RigLink(Strict):
    """Rate of one direction of the host link."""

    bytes_per_s: float | None = Field(None, ge=1e5, le=1e13, description="the executor paces copies to this rate; none: native")
    source: Source


class Rig(Strict):
    """Links and budgets that a run on this computer keeps to. It has no op times: calibration measures
    those, and makes it a Machine."""

    kind: Literal["rig"]
    name: str
    description: str = ""
    links: dict[Literal["h2d", "d2h"], RigLink]
    memories: dict[Literal["gpu", "cpu", "pinned"], Memory]

    @model_validator(mode="after")
    def _whole(self) -> Rig:
        for field, have, need in (("links", set(self.links), ("h2d", "d2h")), ("memories", set(self.memories), ("gpu", "cpu", "pinned"))):
            for name in need:
                if name not in have:
                    raise ValueError(f"{field}.{name}: missing")
        return self
