"""How a swarm is run, and what is counted while it runs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sim.swarm.fleet.arbitrage import Arbitrage
    from sim.swarm.fleet.policy import Autoscaler


@dataclass(frozen=True, slots=True)
class Settings:
    """How a swarm is run.

    autoscale: which nodes are rented; None: all of the cluster's, all the time. arbitrage: when they move to cheaper ones.

    design: "spread": one group, experts over the whole cluster; "replicas": a full copy in each region that holds one; "edge": the
    same, requests go to the nearest and on to a better one if that is worth the way; "nodes": a full copy on each node that holds one.
    spares: copies a layer beyond one of each
    expert (spread; replicas use the memory that they have). routing: among copies of an expert, and among groups.

    gossip_s, fan_out, adaptive: as `sim.swarm.gossip.Settings` has them; fresh_loads: loads are read as they are, by an oracle, and
    not by gossip. loss: share of messages that are lost, on top of what the links lose. suspect_s: age of a node's last news after
    which it is given up. tolerate: faulty members that the control plane of 3f + 1 bears, fewer where the cluster has fewer nodes;
    silent: members that never say a word.

    rebalance_s: period in which the placement is looked at again, 0: never; hysteresis: balance that a new one must gain.
    duration_s: end of the study, else when all is answered; patience_s: it ends too when for so long no request
    came, no step ended and nothing was answered.
    """

    design: str = "spread"
    routing: str = "nearest"
    spares: int = 0
    gossip_s: float = 2.0
    fan_out: int = 3
    adaptive: int = 0
    fresh_loads: bool = False
    loss: float = 0.0
    suspect_s: float = 15.0
    tolerate: int = 1
    silent: int = 0
    rebalance_s: float = 600.0
    hysteresis: float = 0.05
    duration_s: float | None = None
    patience_s: float = 3600.0
    seed: int = 0
    autoscale: Autoscaler | None = None
    arbitrage: Arbitrage | None = None


@dataclass(eq=False, slots=True)
class Outcome:
    """Counts of a study. times of moves in s: (when, group, copies); discarded: copies of requests and answers that came twice, after
    an acknowledgement was lost; superseded: changes that were committed when a later one was under way already."""

    suspected: int = 0
    rejoined: int = 0
    rebalances: int = 0
    discarded: int = 0
    handed_over: int = 0
    superseded: int = 0
    moves: list[tuple[float, str, int]] = field(default_factory=list)
    peak_share: float = 0.0
    """Of the fullest GPU's usable memory."""
