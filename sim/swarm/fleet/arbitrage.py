"""Moving a replica to where nodes cost less, when what is saved while the difference lasts is more than the move costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sim import named
from sim.errors import UserError


@dataclass(frozen=True, slots=True)
class Offer:
    """One possible move. saving_usd: an hour; stay_s: how long the difference has lasted so far, and how often it has turned;
    egress_usd: of the weights' way; overlap_usd: paid for the new node before it serves; drained_usd: paid for the old one while it
    only ends what it has."""

    source: int
    target: int
    saving_usd: float
    watched_s: float
    turns: int
    egress_usd: float
    overlap_usd: float
    drained_usd: float

    @property
    def cost_usd(self) -> float:
        return self.egress_usd + self.overlap_usd + self.drained_usd


@dataclass(frozen=True)
class Arbitrage:
    """stay_s: for how long a difference of prices is expected to last before anything was seen (guessed); margin: hysteresis: what is
    saved must be so much more than the cost; at_once: moves under way; share: speed of the old node that the new one must have.

    The expected stay is that of an exponential time whose rate has a gamma prior of one turn in `stay_s`:
    (stay_s + time watched) / (1 + turns seen).
    """

    stay_s: float = 3600.0
    margin: float = 0.5
    at_once: int = 1
    share: float = 0.9

    def __post_init__(self) -> None:
        if self.stay_s <= 0 or self.margin < 0 or self.at_once < 1 or not 0 < self.share:
            raise UserError("stay-s and share must be above 0, margin 0 or more, at-once 1 or more")

    def stays_s(self, offer: Offer) -> float:
        return (self.stay_s + offer.watched_s) / (1 + offer.turns)

    def gain_usd(self, offer: Offer) -> float:
        """Saved over the expected stay, less the cost with its margin."""
        return offer.saving_usd * self.stays_s(offer) / 3600 - (1.0 + self.margin) * offer.cost_usd

    def choose(self, offers: Sequence[Offer], under_way: int) -> Offer | None:
        """The best offer that pays; none while enough moves are under way."""
        paying = [o for o in offers if self.gain_usd(o) > 0] if under_way < self.at_once else []
        return max(paying, key=lambda o: (self.gain_usd(o), -o.source, -o.target), default=None)


def load(text: str, flag: str = "--arbitrage") -> Arbitrage | None:
    """`none`, or `on` with options, as `on:margin=0.2`."""
    if text == "none":
        return None
    found: Arbitrage = named.build(flag, text, {"on": ("arbitrage", "Arbitrage")}, "sim.swarm.fleet")
    return found
