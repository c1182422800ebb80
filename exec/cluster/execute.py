"""execute: one order on a cluster, driven by a scheduler object."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from exec.cluster.clocks import Offset
from exec.cluster.conductor import ClusterEngine
from exec.cluster.controller import Cluster
from exec.cluster.outputs import Outputs
from sim.drive import Log, drive
from sim.engines.run import Run
from sim.events import Profile, Request


@dataclass(frozen=True, slots=True)
class Executed:
    """A run of several ranks. outputs, offsets: by rank; offsets are those before and after the run."""

    run: Run
    log: Log
    outputs: dict[int, Outputs]
    offsets: dict[int, tuple[Offset, Offset]]


def execute(cluster: Cluster, scheduler: Any, requests: Sequence[Request], profile: Profile, lanes: Sequence[str]) -> Executed:
    """Drive a scheduler on a cluster that was prepared for what it schedules. Raises what `ClusterEngine.wait` raises."""
    engine, log = ClusterEngine(cluster, profile, requests, lanes), Log()
    drive(scheduler, engine, log)
    return Executed(engine.run(), log, engine.outputs, {r: (engine.before[r], engine.after[r]) for r in engine.before})
