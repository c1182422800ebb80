"""Scaling by what is expected: a forecast of the arrival rate for the time when a node ordered now serves.

The forecast is a high quantile, so that capacity bears a peak, and what waits already is scaled for as it is measured: the two parts
of Urgaonkar, Shenoy, Chandra, Goyal and Wood, "Agile dynamic provisioning of multi-tier Internet applications" (TAAS 2008).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from sim.errors import UserError
from sim.swarm.fleet.forecast import Holt
from sim.swarm.fleet.policy import Limits, Seen
from sim.swarm.fleet.reactive import scaled, settled


@dataclass(frozen=True)
class Predictive(Limits):
    """window_s: of which arrivals are counted; quantile: of the forecast; alpha, beta, phi: see `Holt`. target: share of its capacity
    that a node is meant to bear; queue: as `Reactive` has it, 0: only the forecast counts; down_s: how long less must be expected
    before nodes go."""

    window_s: float = 30.0
    quantile: float = 0.9
    alpha: float = 0.4
    beta: float = 0.1
    phi: float = 0.9
    target: float = 0.8
    queue: float = 4.0
    down_s: float = 300.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.window_s < self.look_s:
            raise UserError(f"window-s: is {self.window_s:g}; must be look-s ({self.look_s:g}) or more")
        if not (0 < self.target <= 1 and 0 < self.quantile < 1):
            raise UserError("target must be above 0 and at most 1, quantile between 0 and 1")
        if not (0 <= self.alpha <= 1 and 0 <= self.beta <= 1 and 0 <= self.phi <= 1):
            raise UserError("alpha, beta and phi must be from 0 to 1")
        if min(self.queue, self.down_s) < 0:
            raise UserError("queue and down-s must be 0 or more")

    def desired(self, past: Sequence[Seen]) -> float:
        looks, expected = [s for s in past if s.at_s >= past[-1].at_s - self.down_s], self.expected(past)
        return settled([(s.at_s, self._asked(s, expected)) for s in looks], past, 0.0, self.down_s)

    def _asked(self, now: Seen, expected: Sequence[tuple[float, float]]) -> float:
        """What one look asks for: what bears the last forecast of then, or what waits, whichever is more."""
        rate = next((rate for at, rate in reversed(expected) if at <= now.at_s), None)
        wanted = now.rented if rate is None else rate / (now.rate * self.target)
        short = now.waiting / (self.queue * max(now.nodes, 1)) if self.queue else 0.0
        return max(wanted, scaled(now, short, 0.0)) if short > 1.0 else wanted

    def expected(self, past: Sequence[Seen]) -> list[tuple[float, float]]:
        """(end of a window, requests a second expected from there until an order of that moment serves), for all windows so far; those of
        earlier windows are made again with the lead that is known now."""
        edges = _edges(past, self.window_s)
        rates = [(b.arrived - a.arrived) / (b.at_s - a.at_s) for a, b in zip(edges, edges[1:], strict=False)]
        steps = 1 + math.ceil(past[-1].lead_s / self.window_s)
        found = Holt(self.alpha, self.beta, self.phi).forecasts(rates, steps, self.quantile)
        return [(b.at_s, rate) for b, rate in zip(edges[1:], found, strict=True)]


def _edges(past: Sequence[Seen], window_s: float) -> list[Seen]:
    """Looks that are at least a window apart, from the first on."""
    out = [past[0]]
    for seen in past[1:]:
        if seen.at_s >= out[-1].at_s + window_s - 1e-6:
            out.append(seen)
    return out
