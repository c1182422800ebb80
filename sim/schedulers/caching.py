"""What an expert cache is run with, and what it counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from sim.models.spec import ModelSpec
from sim.residency import policies
from sim.residency.table import Residency


@dataclass(frozen=True, slots=True)
class Caching:
    """Attributes
    ----------
    capacity: experts of each layer that stay on the GPU; with `whole` the layers share layers x capacity.
    evict, admit, prefetch, work: names, see `sim.residency`. staging: slots beyond the capacity; None: two tokens' experts.
    host: experts that the host's memory holds, of all layers; None: all, and nothing is read from a disk.
    governed: whether prefetch is turned off where it does not pay.
    popularity: uses by key, for evict "static". asked: events to come, for evict "belady".
    """

    capacity: int
    evict: str = "lfru"
    admit: str = "always"
    prefetch: str = "none"
    work: Literal["gpu", "cpu-expert", "hybrid"] = "gpu"
    whole: bool = False
    staging: int | None = None
    host: int | None = None
    governed: bool = True
    popularity: Mapping[int, float] | None = field(default=None, repr=False)
    asked: Sequence[tuple[int, Sequence[int]]] = field(default=(), repr=False)

    def slots_beyond(self, model: ModelSpec) -> int:
        return 2 * model.top_k if self.staging is None else self.staging

    def table(self, model: ModelSpec) -> Residency:
        """The slots on the GPU."""
        evictor = policies.evictor(self.evict, model.experts, self.whole, self.popularity, self.asked)
        capacity = self.capacity * model.moe_layers if self.whole else self.capacity
        return Residency(model.layers, model.experts, capacity, self.slots_beyond(model), evictor, self.admit)

    def host_table(self, model: ModelSpec) -> Residency | None:
        """The slots in the host's memory, least recently used first out; None where it holds all experts."""
        if self.host is None or self.host >= model.moe_layers * model.experts:
            return None
        assert self.host > model.experts, f"host: is {self.host}; more than one layer's {model.experts} experts are needed"
        lru = policies.evictor("lru", model.experts, whole=True)
        return Residency(model.layers, model.experts, self.host - model.experts, model.experts, lru)


@dataclass(slots=True)
class Served:
    """What happened. asked: experts asked for, each once an event; of these hits were on the GPU, late on their way there, and
    on_cpu computed on the CPU. moved: experts copied to the GPU (shares of experts where a copy was stopped), ahead: of these,
    what was fetched before anybody asked. read: experts read from the disk. guesses: fetched ahead; right: of these, asked for.
    tokens, steps: of the decode. events: router calls.
    """

    asked: int = 0
    hits: int = 0
    late: int = 0
    on_cpu: int = 0
    moved: float = 0.0
    ahead: float = 0.0
    read: float = 0.0
    guesses: int = 0
    right: int = 0
    tokens: int = 0
    steps: int = 0
    events: int = 0
