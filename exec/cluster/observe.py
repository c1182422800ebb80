"""Whole layers run several times: what each task took, and which runs others disturbed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from exec.calibration.reference import Reference
from exec.cluster.controller import Cluster
from exec.cluster.execute import Executed, execute
from exec.cluster.job import Order
from exec.cluster.outputs import Outputs
from exec.cluster.profile import Unknown
from exec.cluster.runs import Setup
from exec.cluster.watch import Sample, Watch, calmest
from sim.engines.run import Run
from sim.plan import Plan

RUNS = 3
"""Runs of a setup each time that it is its turn."""


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
    done = once(cluster, setup, watch)
    (pace,) = done.paces
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


def once(cluster: Cluster, setup: Setup, watch: Watch | None = None) -> Executed:
    """One run of a prepared setup."""
    scheduler = setup.fresh()
    return execute(cluster, scheduler, setup.requests, Unknown(), scheduler.lanes, watch)


def plan_of(run: Run) -> Plan:
    """The one Plan that a run came of."""
    (source,) = run.sources
    assert isinstance(source, Plan), source
    return source
