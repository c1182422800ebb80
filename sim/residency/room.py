"""How many experts fit: what a machine's memories hold beside the weights that every token needs, and the KV cache."""

from __future__ import annotations

from dataclasses import dataclass

from sim.errors import UserError
from sim.machines.schema import Machine
from sim.models.spec import ModelSpec
from sim.residency.feed import Feed
from sim.schedulers.caching import Caching


@dataclass(frozen=True, slots=True)
class Room:
    """Bytes on the GPU. usable: of its memory. dense: weights that are no routed experts. kv: of the longest sequences of a batch.
    staging: slots for experts on a visit. expert: one of them. layers: routed ones; experts: of each. host: experts that the host's
    memory holds.
    """

    usable: int
    dense: int
    kv: int
    staging: int
    expert: int
    layers: int
    experts: int
    host: int

    @property
    def fits(self) -> int:
        """Experts of each layer that may stay; 0 or less: not one."""
        left = self.usable - self.dense - self.kv - self.staging
        return min(self.experts, left // (self.expert * self.layers))

    def needed(self, capacity: int) -> int:
        """Bytes with so many experts of each layer."""
        return self.dense + self.kv + self.staging + capacity * self.layers * self.expert

    @property
    def all_in_host(self) -> bool:
        return self.host >= self.layers * self.experts


def room(model: ModelSpec, machine: Machine, feed: Feed, batch: int, slots_beyond: int) -> Room:
    longest = sorted((s.prompt + len(s) for s in feed.sequences), reverse=True)[:batch]
    return Room(
        machine.memories["gpu"].budget_bytes, model.dense_bytes, sum(map(model.kv_bytes, longest)), slots_beyond * model.expert_bytes,
        model.expert_bytes, model.moe_layers, model.experts, machine.memories["cpu"].budget_bytes // model.expert_bytes,
    )  # fmt: skip


def check(model: ModelSpec, machine: Machine, feed: Feed, caching: Caching, batch: int) -> None:
    """Raises `UserError` where the experts that are to stay do not fit beside everything else."""
    r = room(model, machine, feed, batch, caching.slots_beyond(model))
    needed = r.needed(caching.capacity)
    if needed > r.usable:
        fits = f"at most {r.fits} would fit" if r.fits >= 1 else "not one would fit"
        raise UserError(
            f"--capacity {caching.capacity}: {needed - r.usable:,} bytes are missing on {machine.name}: {r.dense:,} of weights, "
            f"{needed - r.dense - r.kv:,} of experts and {r.kv:,} of KV cache, usable {r.usable:,}; {fits}"
        )
    host = r.layers * r.experts if caching.host is None else caching.host
    if host > r.host:
        raise UserError(
            f"--machine {machine.name}: its experts take {host * r.expert:,} bytes of host memory, usable "
            f"{machine.memories['cpu'].budget_bytes:,}; give --host EXPERTS on a machine with an nvme lane"
        )
