"""Gossip: what nodes know of each other, pushed to a few peers at a time, with version vectors.

Every node owns one entry, its state, and raises its version with each change. Each period it pushes the entries that are
news to a few peers drawn at random; a receiver keeps what is newer than its version vector says, and passes it on. Sources:
epidemic push (Demers et al., PODC 1987); fan-out, period and retransmission limit as in hashicorp/memberlist 1b4c746.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

from sim.swarm.dice import below
from sim.swarm.mail import Act, Alarm, Heard, Message, Send
from sim.tasks import PS_PER_S, Time


@dataclass(frozen=True, slots=True)
class Entry:
    """One version of one node's state. importance in 0..1: how much others should care."""

    version: int
    stamp: Time
    value: Any
    importance: float = 0.0


@dataclass(frozen=True, slots=True)
class Settings:
    """Of a gossip group.

    fan_out: peers that a node pushes to in a period; adaptive: peers more for an entry of importance 1 (in proportion
    below). distinct: peers of a round differ and are others, as in memberlist; else each is drawn from all nodes on its own,
    the textbook's push, where a node may draw itself or a peer twice. retransmit: periods in which a node passes an entry on are
    this times ceil(log10(n + 1)); None: for ever.
    """

    fan_out: int = 3
    period_s: float = 0.2
    adaptive: int = 0
    distinct: bool = True
    retransmit: int | None = 4
    header_bytes: int = 64
    entry_bytes: int = 128

    def pushes_to(self, importance: float) -> int:
        """Peers that an entry goes to in one period."""
        return self.fan_out + round(self.adaptive * min(1.0, max(0.0, importance))) if self.adaptive else self.fan_out


LAN = Settings()
"""memberlist's LAN defaults: fan-out 3 every 200 ms, retransmission multiplier 4."""
WAN = Settings(fan_out=4, period_s=0.5)
"""memberlist's WAN defaults: fan-out 4 every 500 ms."""


@dataclass(slots=True)
class Gossip:
    """A node's part: a `sim.swarm.mail.Member`.

    peers: names of all nodes, itself included; the draw of peers is keyed by (seed, own number, round).
    """

    name: str
    peers: tuple[str, ...]
    settings: Settings = LAN
    seed: int = 0
    phase: float = 0.0
    """Part of a period that the first round waits, so that not all push at once."""
    known: dict[str, Entry] = field(default_factory=dict)
    rounds: int = 0
    sense: Callable[[Time], tuple[Any, float] | None] = lambda now: None
    """Reads the node's own state and its importance as a round begins; None: nothing new."""
    away: Collection[str] = ()
    """Peers that take no part for now: nobody pushes to them (distinct ones only)."""
    _life: int = 0
    """Starts of the node: an alarm that was set before a crash does not count after it."""
    _fresh: dict[str, int] = field(default_factory=dict)
    """Entries that are passed on still: periods left."""

    def start(self, now: Time) -> Sequence[Act]:
        return [Alarm(round(self.settings.period_s * self.phase * PS_PER_S), self._life)]

    def recover(self, now: Time) -> Sequence[Act]:
        """Up again after a crash: it knows nothing but what it said itself last, and goes on from there."""
        self.known = {name: entry for name, entry in self.known.items() if name == self.name}
        self._fresh.clear()
        self._life += 1
        return self.start(now)

    @property
    def versions(self) -> dict[str, int]:
        """The version vector."""
        return {name: entry.version for name, entry in self.known.items()}

    def update(self, now: Time, value: Any, importance: float = 0.0) -> None:
        """This node's own state has changed."""
        old = self.known.get(self.name)
        self._learn(self.name, Entry(old.version + 1 if old else 1, now, value, importance))

    def on(self, now: Time, heard: Heard) -> Sequence[Act]:
        if isinstance(heard, Message):
            for name, entry in heard.payload.items():
                self.merge(name, entry)
            return []
        if heard.token != self._life:
            return []
        own = self.sense(now)
        if own is not None:
            self.update(now, *own)
        return [*self._push(), Alarm(round(self.settings.period_s * PS_PER_S), self._life)]

    def merge(self, name: str, entry: Entry) -> bool:
        """Keep an entry that is newer than what is known; whether it was."""
        if name in self.known and self.known[name].version >= entry.version:
            return False
        self._learn(name, entry)
        return True

    def _learn(self, name: str, entry: Entry) -> None:
        self.known[name] = entry
        limit = self.settings.retransmit
        self._fresh[name] = -1 if limit is None else limit * math.ceil(math.log10(len(self.peers) + 1))

    def _push(self) -> list[Act]:
        """One round: each fresh entry to as many of the drawn peers as it is worth, one message a peer."""
        self.rounds += 1
        if not self._fresh:
            return []
        s = self.settings
        worth = {name: s.pushes_to(self.known[name].importance) for name in self._fresh}
        sends: list[Act] = []
        news: dict[str, Entry] = {}
        for place, target in enumerate(self._draw(max(worth.values()))):
            if not news or place >= s.fan_out:  # up to there all is told, in one dictionary that nobody changes
                news = {name: self.known[name] for name, most in worth.items() if place < most}
            sends.append(Send(target, news, s.header_bytes + s.entry_bytes * len(news)))
        self._fresh = {name: left - (left > 0) for name, left in self._fresh.items() if left != 1}
        return sends

    def _draw(self, wanted: int) -> list[str]:
        """So many peers; distinct ones by a partial Fisher-Yates shuffle."""
        me = self.peers.index(self.name)
        if not self.settings.distinct:
            drawn = (self.peers[below(len(self.peers), self.seed, me, self.rounds, i)] for i in range(wanted))
            return [p for p in drawn if p != self.name]
        others = [p for p in self.peers if p != self.name and p not in self.away]
        for i in range(min(wanted, len(others))):
            j = i + below(len(others) - i, self.seed, me, self.rounds, i)
            others[i], others[j] = others[j], others[i]
        return others[:wanted]
