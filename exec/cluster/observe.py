"""Whole layers run several times: what each task took, and which runs others disturbed."""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from exec.cluster.controller import Cluster
from exec.cluster.execute import Executed, execute
from exec.cluster.job import Order
from exec.cluster.outputs import Outputs
from exec.cluster.profile import Unknown
from exec.cluster.reference import SLOWED, Reference
from exec.cluster.runs import Setup
from sim.engines.run import Run
from sim.plan import Plan

RUNS = 3
"""Runs of a setup each time that it is its turn."""

TAKEN = 0.3
"""A run is disturbed where its ranks computed `SLOWED` times longer than in the quickest run of the same setup, or the reference
around it took so many times longer than at the computer's best, or others took this share of a core's time; clock ticks of 10 ms
leave a quiet computer well below."""


class Sample(NamedTuple):
    """One run. durations_s [tasks] in order of task numbers, see `elapsed_s`; cpu_s: of all ranks; others_s: CPU seconds that
    the rest of the computer took meanwhile, as far as the system tells; reference_s: of `Reference`, just before or after,
    whichever was longer; computed_s: of cpu_s, in ops that compute."""

    makespan_s: float
    durations_s: NDArray[np.float64]
    cpu_s: float
    others_s: float
    reference_s: float
    computed_s: float = 0.0


def calmest(samples: Sequence[Sample], at_best_s: float = 0.0) -> list[int]:
    """Of runs of one setup those that nothing disturbed, see `SLOWED`. At least the calmest third. at_best_s: see `Observed`."""
    least, best = min(s.cpu_s for s in samples), at_best_s or min(s.reference_s for s in samples)
    unrest = [max(s.cpu_s / least / SLOWED, s.reference_s / best / SLOWED, s.others_s / s.makespan_s / TAKEN) for s in samples]
    calm = sorted(range(len(samples)), key=unrest.__getitem__)
    return max([i for i in calm if unrest[i] <= 1.0], calm[: -(-len(calm) // 3)], key=len)


class Watch:
    """How calm the computer is around a run: `calm`, and then `begin` when it starts, `end` when it is over."""

    def __init__(self, reference: Reference) -> None:
        self.reference = reference
        self._before_s = self._busy_s = self._own_s = 0.0

    def calm(self) -> None:
        """Wait until the computer is about as quick as at its best, or for a while."""
        self._before_s = self.reference.calm_s()

    def begin(self) -> None:
        self._busy_s, self._own_s = _busy_s(), time.process_time()

    def end(self, outputs: Mapping[int, Outputs]) -> tuple[float, float, float]:
        """cpu_s, others_s and reference_s of the run that is over. What neither its ranks nor this process took of the cores,
        others did."""
        cpu_s = sum(o.cpu_s for o in outputs.values())
        others_s = max(0.0, _busy_s() - self._busy_s - cpu_s - (time.process_time() - self._own_s))
        return cpu_s, others_s, max(self._before_s, self.reference.seconds())


@dataclass(frozen=True, slots=True)
class Observed:
    """A setup that was run several times. at_best_s: `Reference` when the computer was quick; 0: in the quickest of these runs."""

    order: Order
    plan: Plan
    outputs: Mapping[int, Outputs]
    samples: tuple[Sample, ...]
    at_best_s: float = 0.0

    @property
    def settled(self) -> tuple[Sample, ...]:
        """Runs that nothing disturbed."""
        return tuple(self.samples[i] for i in calmest(self.samples, self.at_best_s))

    @property
    def disturbed(self) -> int:
        """Runs that do not count."""
        return len(self.samples) - len(self.settled)

    @property
    def durations_s(self) -> NDArray[np.float64]:
        """Medians of each task, [tasks]."""
        found: NDArray[np.float64] = np.median([s.durations_s for s in self.settled], axis=0)
        return found


def observe(cluster: Cluster, setup: Setup, reference: Reference, runs: int = RUNS) -> Observed:
    """Prepare a setup and run it; a first run, which finds caches and connections cold, does not count."""
    cluster.prepare(setup.order)
    done, watch = once(cluster, setup), Watch(reference)
    return Observed(setup.order, plan_of(done.run), done.outputs, tuple(_sample(cluster, setup, watch) for _ in range(runs)))


def _sample(cluster: Cluster, setup: Setup, watch: Watch) -> Sample:
    watch.calm()
    watch.begin()
    done = once(cluster, setup)
    pace = watch.end(done.outputs)
    computed_s = sum(o.computed_s for o in done.outputs.values())
    return Sample(done.run.makespan_ps / 1e12, elapsed_s(done.run), *pace, computed_s)


def against_the_best(observed: Sequence[Observed], best_s: float) -> list[Observed]:
    """All setups of one session, judged by the best that `Reference` saw of the computer in it."""
    return [replace(seen, at_best_s=best_s) for seen in observed]


def merged(seen: Sequence[Observed]) -> Observed:
    """The same setup, run in several rounds."""
    return replace(seen[0], samples=tuple(sample for s in seen for sample in s.samples))


def elapsed_s(run: Run) -> NDArray[np.float64]:
    """What each task took [tasks]. A put counts from when it could have started: word that the other side is ready has to
    reach the sender. A barrier takes as long as what waits for it, and for nothing else any more, starts after it."""
    plan = plan_of(run)
    late = _late_s(plan, run)
    found = (run.end_ps - run.start_ps) / 1e12
    ops = np.array([work.op for work in plan.works])[plan.work]
    found[ops == "put"] += late[ops == "put"]
    waiters: dict[int, list[float]] = defaultdict(list)
    for i in range(len(plan)):
        for dep in plan.dep[plan.dep_ptr[i] : plan.dep_ptr[i + 1]] - plan.first:
            if plan.lane[dep] < 0:
                waiters[int(dep)].append(late[i])
    for i, starts in waiters.items():
        found[i] = np.mean(starts)
    return found


def _late_s(plan: Plan, run: Run) -> NDArray[np.float64]:
    """Time from when what each task waited for had ended, and its lane was free, to its start [tasks]."""
    ready = np.zeros(len(plan), np.int64)
    for i in range(len(plan)):
        deps = plan.dep[plan.dep_ptr[i] : plan.dep_ptr[i + 1]] - plan.first
        ready[i] = run.end_ps[deps].max(initial=0)
    for lane in range(len(plan.lanes)):
        mine = np.flatnonzero(plan.lane == lane)
        mine = mine[np.argsort(run.start_ps[mine], kind="stable")]
        ready[mine[1:]] = np.maximum(ready[mine[1:]], run.end_ps[mine[:-1]])
    return np.maximum(0, run.start_ps - ready) / 1e12


def _busy_s() -> float:
    """CPU seconds that everything on this computer has taken; 0 where the system does not tell."""
    if not os.path.exists("/proc/stat"):
        return 0.0
    with open("/proc/stat") as f:
        user, nice, system, _, _, interrupts, soft, stolen, *_ = map(int, f.readline().split()[1:])
    return (user + nice + system + interrupts + soft + stolen) / os.sysconf("SC_CLK_TCK")


def once(cluster: Cluster, setup: Setup) -> Executed:
    """One run of a prepared setup."""
    scheduler = setup.fresh()
    return execute(cluster, scheduler, setup.requests, Unknown(), scheduler.lanes)


def plan_of(run: Run) -> Plan:
    """The one Plan that a run came of."""
    (source,) = run.sources
    assert isinstance(source, Plan), source
    return source
