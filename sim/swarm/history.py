"""What a study looked like over time and on the links, for its report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from sim.swarm.group import Group
from sim.swarm.jobs import Tally
from sim.tasks import PS_PER_S, Time

Floats = NDArray[np.float64]


@dataclass(eq=False, slots=True)
class History:
    """Samples, one a gossip period: at_s; busy_s [nodes] and gpu_s [gpus] so far (of experts alone); dead: nodes given up or off;
    backlog: tokens of each group; tokens so far."""

    at_s: list[float] = field(default_factory=list)
    busy_s: list[Floats] = field(default_factory=list)
    gpu_s: list[Floats] = field(default_factory=list)
    dead: list[frozenset[int]] = field(default_factory=list)
    backlog: list[tuple[int, ...]] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)

    def sample(self, now: Time, tally: Tally, dead: frozenset[int], groups: Sequence[Group]) -> None:
        self.at_s.append(now / PS_PER_S)
        busy_s, gpu_s = tally.meter.worked(now)
        self.busy_s.append(busy_s)
        self.gpu_s.append(gpu_s)
        self.dead.append(dead)
        self.backlog.append(tuple(g.backlog_tokens for g in groups))
        self.tokens.append(tally.tokens)

    def bins(self, most: int, end_s: float) -> tuple[Floats, NDArray[np.int64]]:
        """Edges of at most so many equal bins over the study in s [bins + 1], and the last sample before each edge [bins + 1]."""
        count = max(1, min(most, len(self.at_s) // 2))
        edges = np.linspace(0.0, end_s, count + 1)
        return edges, np.searchsorted(np.array(self.at_s), edges, side="right") - 1

    def share(self, which: Sequence[Floats], last: NDArray[np.int64]) -> Floats:
        """Of each bin, the share of the time between its samples that was worked [rows, bins]. What was charged to a step on a node
        that had stopped is taken back when the node is given up; 0 where that is more than was worked."""
        zero = np.zeros_like(which[0])
        total = np.array([which[i] if i >= 0 else zero for i in last])
        span = np.diff([self.at_s[i] if i >= 0 else 0.0 for i in last])[:, None]
        worked = np.maximum(np.diff(total, axis=0), 0.0)
        return np.asarray(np.divide(worked, span, out=np.zeros_like(worked), where=span > 0).T)
