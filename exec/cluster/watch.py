"""Watch: what the computer is like around a run, and which of several runs nothing disturbed."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Hashable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from exec.calibration.reference import SLOWED, Reference
from exec.cluster.outputs import Outputs

TAKEN = 0.3
"""A run is disturbed where its ranks computed `SLOWED` times longer than in the quickest run of the same setup, or the reference
around it took so many times longer than at the computer's best, or others took this share of a core's time; clock ticks of 10 ms
leave a quiet computer well below."""


class Pace(NamedTuple):
    """Of one run. cpu_s: of all ranks; others_s: CPU seconds that the rest of the computer took meanwhile, as far as the system
    tells; reference_s: of `Reference`, just before or after, whichever was longer."""

    cpu_s: float
    others_s: float
    reference_s: float


class Sample(NamedTuple):
    """One run. durations_s [tasks] in order of task numbers, see `exec.cluster.observe.elapsed_s`; cpu_s, others_s, reference_s: see
    `Pace`; computed_s: of cpu_s, in ops that compute."""

    makespan_s: float
    durations_s: NDArray[np.float64]
    cpu_s: float
    others_s: float
    reference_s: float
    computed_s: float = 0.0


def calmest(samples: Sequence[Sample], at_best_s: float = 0.0, work: Sequence[Hashable] | None = None) -> list[int]:
    """Of runs those that nothing disturbed, see `SLOWED`. At least the calmest third. at_best_s: see `exec.cluster.observe.Observed`.
    work [runs]: the CPU time of a run is compared with those of the same work (None: all are runs of one setup)."""
    kinds, least = work or [None] * len(samples), dict[Hashable, float]()
    for kind, s in zip(kinds, samples, strict=True):
        least[kind] = min(least.get(kind, math.inf), s.cpu_s)
    best = at_best_s or min(s.reference_s for s in samples)
    unrest = [
        max(s.cpu_s / least[kind] / SLOWED, s.reference_s / best / SLOWED, s.others_s / s.makespan_s / TAKEN)
        for kind, s in zip(kinds, samples, strict=True)
    ]  # fmt: skip
    calm = sorted(range(len(samples)), key=unrest.__getitem__)
    return max([i for i in calm if unrest[i] <= 1.0], calm[: -(-len(calm) // 3)], key=len)


class Watch:
    """`calm` before a run, `begin` when it begins, `end` when all that came of it is here."""

    def __init__(self, reference: Reference) -> None:
        self.reference = reference
        self._before_s = self._busy_s = self._own_s = 0.0

    def calm(self) -> None:
        """Wait until the computer is about as quick as at its best, or for a while."""
        self._before_s = self.reference.calm_s()

    def begin(self) -> None:
        self._busy_s, self._own_s = busy_s(), time.process_time()

    def end(self, outputs: Mapping[int, Outputs]) -> Pace:
        """What neither the ranks nor this process took of the cores, others did."""
        ours_s = sum(o.whole_s for o in outputs.values()) + time.process_time() - self._own_s
        others_s = max(0.0, busy_s() - self._busy_s - ours_s)
        return Pace(sum(o.cpu_s for o in outputs.values()), others_s, max(self._before_s, self.reference.seconds()))


def busy_s() -> float:
    """CPU seconds that processes have taken on this computer; 0 where the system does not tell. Interrupts are nobody's: packets of
    the ranks' own messages are most of them."""
    if not os.path.exists("/proc/stat"):
        return 0.0
    with open("/proc/stat") as f:
        user, nice, system, _, _, _, _, stolen, *_ = map(int, f.readline().split()[1:])
    return (user + nice + system + stolen) / os.sysconf("SC_CLK_TCK")
