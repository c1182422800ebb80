"""So many nodes all the time: what an operator rents who does not scale."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sim.swarm.fleet.policy import Limits, Seen


@dataclass(frozen=True)
class Fixed(Limits):
    """`min` nodes, whatever comes; one that is lost is replaced."""

    def desired(self, past: Sequence[Seen]) -> float:
        return 0.0
