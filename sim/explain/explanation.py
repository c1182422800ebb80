"""explain: why a run takes as long as it does, and what would make it faster."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from sim.bounds import Bounds, bounds
from sim.columns import Columns, columns_of
from sim.costs import Routing
from sim.engines.run import DONE, Run
from sim.explain.elasticity import Elasticity, elasticities
from sim.explain.lanes import LaneTime, lane_times
from sim.explain.limits import Limit, limits, spans
from sim.explain.retime import Timed, Twin
from sim.explain.roofline import Decoded, Roofline, roofline
from sim.job import Job
from sim.plan import PHASES
from sim.report.critical import CriticalPath, Share, critical_path, shares
from sim.simulate import EngineName, Outcome
from sim.timeline import dependencies_of, timeline_of
from traces.files import Provenance
from traces.timeline import Timeline

FACTOR = 1.1


@dataclass(frozen=True, slots=True)
class Explanation:
    """Everything about one simulated run.

    by_op: the critical path by op and lane; by_limit: the same time by lane and the resource that binds it.
    lanes: where each lane's time goes. roofline: None where the machine has no host level. schedule_reused:
    whether upgrades could be timed on the schedule as it was. wall_s: time that all of it took.
    """

    outcome: Outcome
    roofline: Roofline | None
    by_op: list[Share]
    by_limit: list[Limit]
    lanes: dict[str, LaneTime]
    bounds: Bounds
    elasticities: list[Elasticity]
    schedule_reused: bool
    wall_s: float

    @property
    def makespan_s(self) -> float:
        return float(self.outcome.summary["makespan_s"])


def explain(
    job: Job, *, engine: EngineName = "auto", routing: Routing | None = None, factor: float = FACTOR,
    tell: Callable[[str], None] = lambda text: None,
) -> Explanation:  # fmt: skip
    """Simulate a job and explain it. factor: of each upgrade; tell: is told what is being done.

    Raises what `simulate_job` raises.
    """
    began = time.perf_counter()
    tell(f"simulating {job.scheduler}")
    twin = Twin(job, engine=engine, routing=routing)
    run, costs = twin.outcome.run, twin.outcome.costs
    tell("the critical path, the lanes and the bound")
    columns = columns_of(run.sources)
    priced = spans(run, costs)
    timeline, path = _path(run)
    found = bounds(run.sources, costs, {lane.name: lane.servers for lane in job.machine.lanes}, run.status == DONE)
    used = [name for name, lane_s in found.lanes_s.items() if lane_s > 0]
    tell("machines that are better in one respect")
    return Explanation(
        outcome=twin.outcome,
        roofline=roofline(job.machine, job.model, job.policy, _decoded(columns, twin.outcome.summary["decode_s"])),
        by_op=shares(timeline, path),
        by_limit=limits(run, costs, path, priced),
        lanes=lane_times(run, columns, priced.solo_ps, twin.handed_out_ps(), job.machine.lanes),
        bounds=found,
        elasticities=elasticities(twin, job.machine, list(found.resources_s), used, factor, _bottleneck),
        schedule_reused=twin.fixed,
        wall_s=time.perf_counter() - began,
    )


def _path(run: Run) -> tuple[Timeline, CriticalPath]:
    timeline = timeline_of(run, Provenance("synthetic", "explained", "simulated"))
    return timeline, critical_path(timeline, dependencies_of(run))


def _bottleneck(timed: Timed) -> Limit:
    """What most of the critical path of a run is spent on."""
    return limits(timed.run, timed.costs, _path(timed.run)[1], spans(timed.run, timed.costs))[0]


def _decoded(columns: Columns, seconds: float) -> Decoded:
    """The decode phase in numbers; no rows where nothing is decoded."""
    decode = columns.phase == PHASES.index("decode")

    def total(op: str, field: str) -> int:
        times = np.bincount(columns.work[decode & columns.where_op(op)], minlength=len(columns.works))
        return sum(n * int(getattr(w, field)) for n, w in zip(times.tolist(), columns.works, strict=True))

    entries, sequences = total("attn_decode", "context"), total("attn_decode", "sequences")
    return Decoded(seconds, total("post_attn", "tokens") if sequences else 0, entries, entries / max(1, sequences))
