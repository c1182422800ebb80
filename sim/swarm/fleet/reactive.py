"""Scaling by what is measured now: the algorithm of Kubernetes' HorizontalPodAutoscaler (autoscaling/v2).

Each metric asks for `serving * metric / target`; one within the tolerance asks for no change; the largest wins; one look adds at
most as much as serves, or four nodes. Up: the least that was asked for within `up_s`. Down: the most within `down_s`.
Defaults are that autoscaler's: tolerance 10 %, no wait before growth, 300 s before shrinking.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sim.errors import UserError
from sim.swarm.fleet.policy import Limits, Seen

GROWTH = 4.0
"""Nodes that one look may add even where fewer serve (the autoscaler's default policy)."""
RECENT_S = 60.0
"""TTFT is the mean of the first tokens of the last so many seconds."""


@dataclass(frozen=True)
class Reactive(Limits):
    """target: share of time that nodes work; queue: requests that wait, for each serving node; ttft_s: mean time to first token. 0:
    the metric is not looked at."""

    target: float = 0.7
    queue: float = 4.0
    ttft_s: float = 0.0
    tolerance: float = 0.1
    up_s: float = 0.0
    down_s: float = 300.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.target <= 1:
            raise UserError(f"target: is {self.target:g}; a share of time from 0 to 1 is needed")
        if min(self.queue, self.ttft_s, self.tolerance, self.up_s, self.down_s) < 0:
            raise UserError("queue, ttft-s, tolerance, up-s and down-s must be 0 or more")
        if not (self.target or self.queue or self.ttft_s):
            raise UserError("target, queue and ttft-s: all are 0; one metric is needed")

    def desired(self, past: Sequence[Seen]) -> float:
        asked = [(s.at_s, self._asked(past[: i + 1])) for i, s in enumerate(past) if s.at_s >= past[-1].at_s - max(self.up_s, self.down_s)]
        return settled(asked, past, self.up_s, self.down_s)

    def _asked(self, past: Sequence[Seen]) -> float:
        now = past[-1]
        ratios = [now.busy / self.target] if self.target else []
        if self.queue:
            ratios.append(now.waiting / (self.queue * max(now.nodes, 1)))
        if self.ttft_s:
            ratios.append(recent_ttft_s(past) / self.ttft_s)
        return scaled(now, max(ratios), self.tolerance)


def scaled(now: Seen, ratio: float, tolerance: float) -> float:
    """Capacity by one metric, which is at `ratio` times its target."""
    if abs(ratio - 1.0) <= tolerance:
        return now.serving
    return min(now.serving * ratio, max(2.0 * now.serving, now.serving + GROWTH))


def settled(asked: Sequence[tuple[float, float]], past: Sequence[Seen], up_s: float, down_s: float) -> float:
    """What of (time, capacity asked for) becomes of what is rented: more only if all of the last `up_s` want more, and less only if
    all of the last `down_s` want less; what was rented at the first look counts as asked for then."""
    now, first = past[-1].at_s, past[0]
    least = min(c for at, c in asked if at >= now - up_s)
    most = max([c for at, c in asked if at >= now - down_s] + [first.rented] * (first.at_s > now - down_s))
    return min(max(past[-1].rented, least), most) if least <= most else least


def recent_ttft_s(past: Sequence[Seen]) -> float:
    """Mean time to first token of those of the last minute; 0 where there were none."""
    now = past[-1]
    before = next((s for s in reversed(past) if s.at_s <= now.at_s - RECENT_S), None)
    count = now.firsts - (before.firsts if before else 0)
    total_s = now.ttft_s - (before.ttft_s if before else 0.0)
    return total_s / count if count > 0 else 0.0
