"""Machine: resources, memories, lanes, pools, topology and the op table, read from YAML.

Every capacity names its source and must lie in a plausible range: a resource faster than physics
makes results free of charge.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from functools import cached_property
from typing import Annotated, Literal

from pydantic import Field, model_validator

from sim.machines.parts import Lane, Memory, OpRate, Resource, Source, Strict
from sim.machines.topology import Topology

__all__ = ["Lane", "Machine", "Memory", "OpRate", "Price", "Resource", "Rig", "RigLink", "Source", "Strict", "Topology"]


class Price(Strict):
    """What an hour of the machine costs."""

    usd_per_hour: float = Field(gt=0, lt=1e5)
    source: Source


class Machine(Strict):
    name: str
    description: str = ""
    clock: Literal["simulated", "emulated", "measured"] = "simulated"
    rig: str | None = Field(None, description="the rig that this profile was calibrated for")
    resources: dict[str, Resource] = {}
    memories: dict[str, Memory] = {}
    lanes: tuple[Lane, ...] = ()
    pools: dict[str, Annotated[int, Field(gt=0)]] = {}
    price: Price | None = None
    topology: Topology | None = Field(None, description="GPUs one by one, links between them; `sim.fabric.expand` makes lanes of it")
    ops: tuple[OpRate, ...] = ()

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
        names = Counter(lane.name for lane in self.lanes)
        for name, times in names.items():
            if times > 1:
                raise ValueError(f"lanes.{name}: declared {times} times")
        known = names.keys() | {family for lane in self.lanes for family in lane.families}
        for i, op in enumerate(self.ops):
            if op.lane not in known:
                raise ValueError(f"ops[{i}].lane: no lane {op.lane!r}; have {', '.join(names)}")
        if not self.lanes and self.topology is None:
            raise ValueError("lanes: missing; a machine has lanes, or a topology to make them from")
        if self.lanes and "ops" not in self.model_fields_set:
            raise ValueError("ops: missing; each lane needs a row")
        return self

    @cached_property
    def lane(self) -> dict[str, Lane]:
        return {lane.name: lane for lane in self.lanes}

    @cached_property
    def digest(self) -> str:
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()


class RigLink(Strict):
    """Rate of one direction of the host link, or of reads from disk."""

    bytes_per_s: float | None = Field(None, ge=1e5, le=1e13, description="the executor paces copies to this rate; none: native")
    source: Source


class Rig(Strict):
    """Links and budgets that a run on this computer keeps to. It has no op times: calibration measures
    those, and makes it a Machine."""

    kind: Literal["rig"]
    name: str
    description: str = ""
    links: dict[Literal["h2d", "d2h", "nvme"], RigLink]
    memories: dict[Literal["gpu", "cpu", "pinned"], Memory]

    @model_validator(mode="after")
    def _whole(self) -> Rig:
        for field, have, need in (("links", set(self.links), ("h2d", "d2h")), ("memories", set(self.memories), ("gpu", "cpu", "pinned"))):
            for name in need:
                if name not in have:
                    raise ValueError(f"{field}.{name}: missing")
        return self
