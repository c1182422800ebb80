"""What an autoscaling policy is, and the policies by name.

A policy is a frozen dataclass whose fields are its options. `desired` is a pure function of what was seen so far: it knows no
clock, keeps nothing, and cannot see what comes later.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from sim import named
from sim.errors import UserError

NAMES: dict[str, tuple[str, str]] = {
    "fixed": ("fixed", "Fixed"), "reactive": ("reactive", "Reactive"), "predictive": ("predictive", "Predictive"),
}  # fmt: skip
"""Module in this package and class of each, imported when asked for. `none`: all nodes are rented all the time."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What the coordinator knows at one look, as old as gossip makes it.

    Capacity is counted in the pool's fastest node. serving: of nodes whose group is up; rented: with those that start or load;
    nodes: how many serve. rate: requests a second that a unit of capacity bears. busy: share of their time that serving nodes worked,
    by capacity. waiting: requests in groups that have had no step. arrived: requests so far; firsts: first tokens so far, and
    ttft_s the sum of their times. lead_s: from an order until a node serves, as far as was seen.
    """

    at_s: float
    serving: float
    rented: float
    nodes: int
    rate: float
    busy: float
    waiting: int
    arrived: int
    firsts: int
    ttft_s: float
    lead_s: float


class Autoscaler(Protocol):
    """Its limits, and the capacity that it wants."""

    @property
    def limits(self) -> Limits: ...
    def desired(self, past: Sequence[Seen]) -> float:
        """Capacity wanted now, in fastest nodes; past: all looks so far, the last one is now's."""
        ...


@dataclass(frozen=True)
class Limits:
    """Options that all policies have.

    min: nodes that are rented at any time, and of which the control plane's seats are; max: nodes that may be rented at once, 0: all.
    start: nodes that are rented and loaded when the study begins, 0: min. startup_s: from an order until the node runs, its weights
    come after that (guessed: an instance from an image that holds the software). look_s: between two looks (the Kubernetes
    autoscaler's period).
    """

    min: int = 1
    max: int = 0
    start: int = 0
    startup_s: float = 60.0
    look_s: float = 15.0

    def __post_init__(self) -> None:
        if self.min < 1 or self.max < 0 or self.start < 0:
            raise UserError("min must be 1 or more, max and start 0 or more")
        if self.max and self.max < max(self.min, self.start):
            raise UserError(f"max: is {self.max}; must be {max(self.min, self.start)} or more, or 0 for all nodes")
        if self.startup_s < 0 or self.look_s <= 0:
            raise UserError("startup-s must be 0 or more, look-s more than 0")

    @property
    def limits(self) -> Limits:
        return self

    @property
    def at_start(self) -> int:
        return max(self.start, self.min)


def name_of(policy: Autoscaler | None) -> str:
    return "none" if policy is None else next(n for n, (_, attribute) in NAMES.items() if attribute == type(policy).__name__)


def load(text: str, flag: str = "--autoscale") -> Autoscaler | None:
    """A policy from `NAME` or `NAME:OPTION=VALUE:...`; None for `none`. Raises `UserError` as `sim.named.build` does."""
    if text == "none":
        return None
    policy: Autoscaler = named.build(flag, text, NAMES, "sim.swarm.fleet")
    return policy
