"""One job, timed again on other machines, without building its schedule anew where that cannot differ."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from sim.costs import CostModel, Routing
from sim.engines.run import Run
from sim.events import Event, Profile, Started
from sim.job import Job
from sim.machines.schema import Machine
from sim.plan import Plan
from sim.simulate import EngineName, Outcome, pools_of, simulate_job
from sim.tasks import Cancel, Command, Task, Time


@dataclass(frozen=True, slots=True)
class Timed:
    """A run on one machine. wall_s: what timing it took, with the building of its schedule where that was needed."""

    run: Run
    costs: CostModel
    tokens_per_s: float
    wall_s: float


class Twin:
    """A simulated job that can be timed again.

    A schedule depends on the machine where its scheduler looked at the machine's profile, or reacted to
    what happened in the run. Where it did neither, the Plan that it handed out is run again as it is.
    """

    def __init__(self, job: Job, *, engine: EngineName = "auto", routing: Routing | None = None) -> None:
        self._job, self._engine, self._routing = job, engine, routing
        self._recorder = _Recorder(job.scheduler_class)
        watched = replace(job, scheduler_class=cast("type[Any]", self._recorder))
        self.outcome: Outcome = simulate_job(watched, engine=engine, routing=routing)
        self.base = Timed(self.outcome.run, self.outcome.costs, self.outcome.summary["tokens_per_s"], self.outcome.wall_s)
        self._pools = pools_of(job, job.fresh())

    @property
    def fixed(self) -> bool:
        """Whether the schedule is the same on every machine."""
        sources = self.outcome.run.sources
        reacts = len(sources) != 1 or not isinstance(sources[0], Plan) or bool(sources[0].notify.any())
        late = any(now > 0 for _, now in self._recorder.handed)
        return not (reacts or late or self._recorder.looked)

    def on(self, machine: Machine) -> Timed:
        """Time the job on a machine with the same lanes, pools and resources. Raises what `simulate_job` raises."""
        if not self.fixed:
            found = simulate_job(replace(self._job, machine=machine), engine=self._engine, routing=self._routing)
            return Timed(found.run, found.costs, found.summary["tokens_per_s"], found.wall_s)
        from sim.engines.compiled import run_compiled  # numba

        began = time.perf_counter()
        costs = CostModel(machine, self._job.model, self._routing)
        run = run_compiled(costs.bind(cast(Plan, self.outcome.run.sources[0])), costs.lanes, self._pools)
        shorter = self.outcome.run.makespan_ps / run.makespan_ps
        return Timed(run, costs, self.base.tokens_per_s * shorter, time.perf_counter() - began)

    def handed_out_ps(self) -> NDArray[np.int64]:
        """When the scheduler handed each task out [n], in order of task numbers."""
        first, now = (np.array(column, np.int64) for column in zip(*self._recorder.handed, strict=True))
        return now[np.searchsorted(first, self.outcome.run.number, "right") - 1]


class _Recorder:
    """Makes schedulers that note when they hand out what, and whether they look at the machine."""

    def __init__(self, make: Callable[..., Any]) -> None:
        self._make = make
        self.looked = False
        self.handed: list[tuple[int, Time]] = []

    def __call__(self, *args: Any, **kwargs: Any) -> _Recorded:
        self.looked, self.handed = False, []
        return _Recorded(self, self._make(*args, **kwargs))


class _Recorded:
    """A scheduler, seen from outside as it is."""

    def __init__(self, recorder: _Recorder, inner: Any) -> None:
        self._recorder, self._inner = recorder, inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def on(self, now: Time, event: Event) -> Sequence[Command]:
        if isinstance(event, Started):
            event = Started(cast(Profile, _Watched(self._recorder, event.profile)))
        commands: Sequence[Command] = self._inner.on(now, event)
        for c in commands:
            if not isinstance(c, Cancel) and (isinstance(c, Task) or len(c)):
                self._recorder.handed.append((c.number if isinstance(c, Task) else c.first, now))
        return commands


class _Watched:
    """A profile that tells when anything of it is read."""

    def __init__(self, recorder: _Recorder, profile: Profile) -> None:
        self._recorder, self._profile = recorder, profile

    def __getattr__(self, name: str) -> Any:
        self._recorder.looked = True
        return getattr(self._profile, name)
