"""What machines are made of: resources, memories, lanes and rows of the op table."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Source = Annotated[str, Field(min_length=3, description="datasheet, paper, calibrated, guessed: ...")]


class Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """As pydantic's, but what was derived from the old fields is not taken over."""
        copy = super().model_copy(update=update, deep=deep)
        for name in [name for name in copy.__dict__ if isinstance(getattr(type(copy), name, None), cached_property)]:
            del copy.__dict__[name]
        return copy


class Resource(Strict):
    """Something shared while tasks run: FLOP/s of a unit, bytes/s of a memory or link, cores (of a GPU: SMs), messages/s of a NIC."""

    kind: Literal["flops", "memory", "link", "cores", "messages"]
    capacity: float = Field(gt=0, description="FLOP/s, bytes/s, cores or messages/s")
    source: Source

    @model_validator(mode="after")
    def _plausible(self) -> Resource:
        low, high, unit = {
            "flops": (1e8, 1e18, "FLOP/s"), "memory": (1e8, 1e15, "bytes/s"), "link": (1e5, 1e13, "bytes/s"), "cores": (0.1, 4096, "cores"),
            "messages": (1e3, 1e11, "messages/s"),
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
    latency_s: float = Field(0.0, ge=0, lt=1, description="time that a put needs to cross the path, beside what its bytes take")
    families: tuple[str, ...] = Field((), description="names that rows of the op table may call it by, the closest first")


class OpRate(Strict):
    """One row of the op table: how well an op runs on a lane.

    `curve` rows are (rows, seconds per unit), see `sim.demands`: a measured solo time. Without a
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
    sms: float = Field(0.0, ge=0, description="SMs of the sender that a put at full rate keeps busy; 0: a DMA engine or NIC moves it")
    bytes_per_s: float | None = Field(None, gt=0, description="most that one put moves, however free its path")
    source: Source
