"""Replay: a trace against a table, without a clock: hits, misses, evictions.

Event-atomic: all experts that a step asks of a layer are one event. Replaying a batch access by access instead lets
an expert displace another that the same step still needs (arXiv 2608.07911).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from sim.residency.feed import Feed
from sim.residency.grant import Grant
from sim.residency.table import Residency

Event = tuple[int, Sequence[int], float]
"""(layer, distinct experts, share of the sequences that end with it)."""


@dataclass(slots=True)
class Tally:
    """Counts of a replay. event_misses: of each event, in order. compulsory: misses of what was never asked for before.

    asked: experts asked for, each once an event. inserted, evicted: into and out of the cache.
    """

    asked: int = 0
    hits: int = 0
    compulsory: int = 0
    inserted: int = 0
    evicted: int = 0
    event_misses: list[int] = field(default_factory=list)

    @property
    def misses(self) -> int:
        return self.asked - self.hits

    @property
    def hit_rate(self) -> float:
        return self.hits / self.asked if self.asked else 0.0


def events(feed: Feed, batch: int, limit: int | None = None, by_row: bool = False) -> Iterator[Event]:
    """The events of `feed.steps(batch, limit)`, layer by layer; experts ascending, or in the order of their first row."""
    last = len(feed.layers) - 1
    for step in feed.steps(batch, limit):
        for i, experts in enumerate(feed.asked(step)):
            yield feed.layers[i], experts if by_row else sorted(experts), step.ended if i == last else 0.0


def keys_of(happened: Iterable[Event], experts: int) -> list[tuple[int, list[int]]]:
    """What Belady is told: (layer, keys) of each event."""
    return [(layer, [layer * experts + e for e in asked]) for layer, asked, _ in happened]


def replay(happened: Iterable[Event], table: Residency) -> Tally:
    """Event by event; every miss is fetched before the next event."""
    tally, seen = Tally(), set[int]()
    for layer, experts, ended in happened:
        grant = table.need(layer, experts)
        assert isinstance(grant, Grant), grant
        tally.asked += len(experts)
        tally.hits += len(grant.hits)
        tally.event_misses.append(len(grant.missed))
        tally.inserted += sum(load.stays for wave in grant.waves for load in wave)
        tally.compulsory += sum(k not in seen for k in grant.missed)
        seen.update(grant.missed)
        table.release(layer)
        if ended:
            table.evictor.ended(ended)
    tally.evicted = tally.inserted - table.occupied
    return tally
