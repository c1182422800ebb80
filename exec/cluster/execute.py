"""execute: one order on a cluster, driven by a scheduler object."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from exec.cluster.clocks import Offset
from exec.cluster.conductor import ClusterEngine
from exec.cluster.controller import Cluster
from exec.cluster.outputs import Outputs
from exec.cluster.watch import Pace, Watch
from sim.drive import Log, drive
from sim.engines.run import Run
from sim.events import Profile, Request


@dataclass(frozen=True, slots=True)
class Executed:
    """A run of several ranks. outputs, offsets: by rank; offsets are those before and after the run. paces: what the computer was like
    around each Plan, where that was watched."""

    run: Run
    log: Log
    outputs: dict[int, Outputs]
    offsets: dict[int, tuple[Offset, Offset]]
    paces: tuple[Pace, ...] = ()


def execute(
    cluster: Cluster, scheduler: Any, requests: Sequence[Request], profile: Profile, lanes: Sequence[str], watch: Watch | None = None
) -> Executed:
    """Drive a scheduler on a cluster that was prepared for what it schedules. Raises what `ClusterEngine.wait` raises."""
    engine, log = ClusterEngine(cluster, profile, requests, lanes, watch), Log()
    drive(scheduler, engine, log)
    offsets = {r: (engine.before[r], engine.after[r]) for r in engine.before}
    return Executed(engine.run(), log, engine.outputs, offsets, tuple(engine.paces.values()))
