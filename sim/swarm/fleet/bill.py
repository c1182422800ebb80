"""What was paid for: the times for which each node was rented and up, and what the hours of those times cost."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import inf

from sim.swarm.fleet.pool import Pool
from sim.swarm.plant import Plant
from sim.swarm.trouble import Trouble
from sim.tasks import PS_PER_S

Span = tuple[float, float]
"""From, to, in s."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A time in which a node was up and its price was one."""

    span: Span
    usd_per_hour: float


def pieces(events: Iterable[Trouble], node: str, usd_per_hour: float) -> list[Piece]:
    """Of one node from the start for ever: its price changes with `price` events, nothing is paid from a crash or pre-emption to the
    rejoin."""
    out: list[Piece] = []
    at, up = 0.0, True
    for event in sorted((e for e in events if e.node == node), key=lambda e: e.at_s):
        if up and event.at_s > at:
            out.append(Piece((at, event.at_s), usd_per_hour))
        at = event.at_s
        if event.what in ("crash", "preempt", "rejoin"):
            up = event.what == "rejoin"
        elif event.what == "price":
            assert event.usd_per_hour is not None
            usd_per_hour = event.usd_per_hour
    return [*out, Piece((at, inf), usd_per_hour)] if up else out


def overlap_s(a: Span, b: Span) -> float:
    return max(0.0, min(a[1], b[1]) - max(a[0], b[0]))


@dataclass(frozen=True, eq=False)
class Bill:
    """rented: of each node of the cluster the times for which it was rented."""

    plant: Plant
    events: Sequence[Trouble]
    rented: Mapping[str, Sequence[Span]]

    @classmethod
    def of(cls, plant: Plant, events: Sequence[Trouble], seconds: float, pool: Pool | None = None) -> Bill:
        """For a study of so many seconds. Without a pool all nodes are rented all the time; nodes without GPUs always are."""
        rented: dict[str, list[Span]] = {name: [(0.0, seconds)] for name in plant.cluster.node}
        if pool is not None:
            rented |= {name: [] for name in plant.nodes}
            for rent in pool.rents:
                until = seconds if rent.until is None else min(seconds, rent.until / PS_PER_S)
                rented[plant.nodes[rent.node]].append((rent.since / PS_PER_S, until))
        return cls(plant, events, rented)

    def _pieces(self, node: str) -> list[Piece]:
        price = self.plant.cluster.node[node].group.price
        return pieces(self.events, node, price.usd_per_hour if price else 0.0)

    def up_s(self, node: str) -> float:
        """For how long it was rented and up."""
        return sum(overlap_s(p.span, r) for p in self._pieces(node) for r in self.rented[node])

    def usd_of(self, node: str, spans: Iterable[Span]) -> float:
        """What these times of a node cost."""
        found = self._pieces(node)
        return sum(overlap_s(p.span, s) * p.usd_per_hour for s in spans for p in found) / 3600

    @property
    def usd(self) -> float:
        return sum(self.usd_of(node, spans) for node, spans in self.rented.items())

    @property
    def node_hours(self) -> float:
        """Of nodes with GPUs."""
        return sum(self.up_s(n) for n in self.plant.nodes) / 3600
