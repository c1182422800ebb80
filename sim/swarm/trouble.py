"""What goes wrong during a study, read from YAML: crashes, partitions, slow nodes, pre-emption, prices."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from sim import configuration
from sim.engines.intake import Change
from sim.errors import UserError
from sim.machines.schema import Strict
from sim.swarm.plant import Plant
from sim.tasks import PS_PER_S

MOST_S = 9e6
"""The last moment at which anything may happen: engines count picoseconds in 64 bits."""


ENDS = {"rejoin": "a crash or preempt of it", "heal": "a partition of it"}


class Trouble(Strict):
    """One thing that happens to a node or region, see `docs/swarm.md`."""

    at_s: float = Field(ge=0, le=MOST_S)
    what: Literal["crash", "preempt", "rejoin", "slow", "partition", "heal", "price"]
    node: str | None = None
    region: str | None = None
    factor: float = Field(1.0, gt=0, le=1, description="slow: share of its speed; 1: as before")
    disk: float = Field(0.0, ge=0, le=1, description="rejoin: share of the checkpoint on its disk; 0: another machine")
    notice_s: float = Field(120.0, ge=0, le=3600, description="preempt: how long before the node is told")
    usd_per_hour: float | None = Field(None, ge=0, le=1e5)

    @model_validator(mode="after")
    def _whole(self) -> Trouble:
        wants = "region" if self.what in ("partition", "heal") else "node"
        if getattr(self, wants) is None:
            raise ValueError(f"{wants}: missing; {self.what} happens to a {wants}")
        if self.what == "price" and self.usd_per_hour is None:
            raise ValueError("usd_per_hour: missing; a price is needed")
        return self


class Troubles(Strict):
    events: tuple[Trouble, ...] = ()


def load(path: Path, plant: Plant) -> tuple[Trouble, ...]:
    """Events in order of time. Raises UserError with the field for a node or region that the cluster lacks."""
    return checked(configuration.load(path, Troubles).events, plant, str(path))


def checked(events: tuple[Trouble, ...], plant: Plant, where: str) -> tuple[Trouble, ...]:
    for i, event in enumerate(events):
        if event.node is not None and event.node not in plant.nodes:
            raise UserError(f"{where}: events[{i}].node: no GPU node {event.node!r}; have {', '.join(plant.nodes)}")
        if event.region is not None and event.region not in plant.cluster.regions:
            raise UserError(f"{where}: events[{i}].region: no region {event.region!r}; have {', '.join(plant.cluster.regions)}")
    order = sorted(range(len(events)), key=lambda i: events[i].at_s)
    away = set[str | None]()
    for i in order:
        event = events[i]
        if event.what in ENDS:
            if (place := event.region or event.node) not in away:
                raise UserError(f"{where}: events[{i}]: {event.what} of {place} at {event.at_s:g} s; {ENDS[event.what]} must come before")
            away.discard(place)
        elif event.what in ("crash", "preempt", "partition"):
            away.add(event.node or event.region)
    return tuple(events[i] for i in order)


def changes(events: tuple[Trouble, ...], plant: Plant) -> list[Change]:
    """What the engine does to capacities. A node that is down has neither GPUs nor NIC; one inside a partition has its NIC."""
    down: set[str] = set()
    cut: set[str] = set()
    slow: dict[str, float] = {}
    out: list[Change] = []

    def set_node(at: int, node: str) -> None:
        speed = 0.0 if node in down else slow.get(node, 1.0)
        out.append((at, f"node.{node}", plant.resources[f"node.{node}"] * speed))
        for name in (f"nic.{node}.out", f"nic.{node}.in"):
            out.append((at, name, 0.0 if node in down else plant.resources[name]))

    for event in events:
        at = round(event.at_s * PS_PER_S)
        if event.what in ("crash", "preempt", "rejoin", "slow"):
            assert event.node is not None
            if event.what == "slow":
                slow[event.node] = event.factor
            elif event.what == "rejoin":
                down.discard(event.node)
            else:
                down.add(event.node)
            set_node(at, event.node)
        elif event.what in ("partition", "heal"):
            assert event.region is not None
            (cut.add if event.what == "partition" else cut.discard)(event.region)
            for name, capacity in plant.resources.items():
                ends = name.split(".")[1:] if name.startswith("wan.") else ()
                if event.region in ends:
                    out.append((at, name, 0.0 if cut & set(ends) else capacity))
    return out


def market(events: tuple[Trouble, ...], plant: Plant, now_s: float) -> dict[str, Any]:
    """What anybody can ask of the provider: of each node what an hour costs, and whether it is to be had: neither gone nor about to
    be taken away."""
    groups = [plant.cluster.node[n].group for n in plant.nodes]
    usd = {n: g.price.usd_per_hour if g.price else 0.0 for n, g in zip(plant.nodes, groups, strict=True)}
    down: set[str] = set()
    for event in events:
        told_s = event.at_s - (event.notice_s if event.what == "preempt" else 0.0)
        if told_s > now_s or event.node is None:
            continue
        if event.what == "price":
            assert event.usd_per_hour is not None
            usd[event.node] = event.usd_per_hour
        elif event.what == "rejoin":
            down.discard(event.node)
        elif event.what in ("crash", "preempt"):
            down.add(event.node)
    return {"usd": list(usd.values()), "up": [n not in down for n in plant.nodes]}


def told(events: tuple[Trouble, ...], node: str, now_s: float) -> dict[str, Any]:
    """What a node can read of its own machine: boot: how often it has come up again (its memory is void each time), disk: the share
    of the checkpoint that was on its disk then, leaving: it was told that it will be taken away."""
    mine = [e for e in events if e.node == node]
    back = [e for e in mine if e.what == "rejoin" and e.at_s <= now_s]
    leaving = any(e.what == "preempt" and e.at_s - e.notice_s <= now_s < e.at_s for e in mine)
    return {"boot": len(back), "disk": back[-1].disk if back else 0.0, "leaving": leaving}
