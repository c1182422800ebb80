"""How a swarm is run, and what is counted while it runs."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Settings:
    """How a swarm is run.

    design: "spread": one group, experts over the whole cluster; "replicas": a full copy in each region that holds one; "edge": the
    same, requests go to the nearest and on to a better one if that is worth the way. spares: copies a layer beyond one of each
    expert (spread; replicas use the memory that they have). routing: among copies of an expert, and among
    groups. report_s: period of the nodes' reports; report_age_s: added to how old they are; suspect_s: silence after
    which a node is given up. rebalance_s: period in which the placement is looked at again, 0: never; hysteresis: balance that a new
    one must gain. duration_s: end of the study, else when all is answered.
    """

    design: str = "spread"
    routing: str = "nearest"
    spares: int = 0
    report_s: float = 2.0
    report_age_s: float = 0.0
    suspect_s: float = 10.0
    rebalance_s: float = 600.0
    hysteresis: float = 0.05
    duration_s: float | None = None
    patience_s: float = 3600.0
    seed: int = 0


@dataclass(eq=False, slots=True)
class Outcome:
    """Counts of a study. times of moves in s: (when, group, copies)."""

    suspected: int = 0
    rejoined: int = 0
    rebalances: int = 0
    duplicates: int = 0
    handed_over: int = 0
    moves: list[tuple[float, str, int]] = field(default_factory=list)
    peak_share: float = 0.0
    """Of the fullest GPU's usable memory."""
