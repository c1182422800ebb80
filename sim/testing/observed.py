"""One run of a scheduler, with everything that was handed out and when it really ran."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, Protocol

from sim.costs import CostModel
from sim.drive import Log, drive
from sim.events import Event, Failed, Request
from sim.machines.schema import Machine
from sim.tasks import Command, Task, Time
from sim.testing.cases import Case, machine
from sim.testing.dice import Dice
from sim.workloads.outcomes import Outcomes

MOST_EVENTS = 5_000
"""More than any battery case can need: beyond it a scheduler is taken to run for ever."""


class SchedulerLike(Protocol):
    lanes: tuple[str, ...]
    pools: Mapping[str, int]

    def on(self, now: Time, event: Event) -> Sequence[Command]: ...
    def memory(self, requests: Sequence[Request]) -> dict[str, dict[str, int]]: ...


SchedulerClass = Callable[..., Any]
"""Called as S(model, policy, seed=...), gives a SchedulerLike."""


class Endless(AssertionError):
    """The scheduler goes on and on."""


@dataclass(frozen=True, slots=True)
class Ran:
    """A task and when it ran; status as in `sim.engines.run.STATUSES`."""

    task: Task
    start: Time
    end: Time
    status: str


@dataclass(frozen=True, slots=True)
class Observed:
    """ran: tasks in order of submission. clock: "dice" or "simpy". failures: events of that kind."""

    case: Case
    clock: str
    scheduler: SchedulerLike
    ran: tuple[Ran, ...]
    log: Log
    failures: int

    @property
    def done(self) -> tuple[Ran, ...]:
        return tuple(r for r in self.ran if r.status == "done")


class _Bounded:
    """Passes events on; raises Endless when there are too many."""

    def __init__(self, inner: SchedulerLike) -> None:
        self._inner = inner
        self._left = MOST_EVENTS
        self.failures = 0

    def on(self, now: Time, event: Event) -> Sequence[Command]:
        self._left -= 1
        self.failures += isinstance(event, Failed)
        if self._left < 0:
            raise Endless(f"{MOST_EVENTS:,} events and still going")
        return self._inner.on(now, event)


def fresh(make: SchedulerClass, case: Case) -> SchedulerLike:
    made: SchedulerLike = make(case.model, case.policy, seed=case.seed)
    return made


def on_dice(make: SchedulerClass, case: Case, seed: int = 0, doomed: Callable[[Task], bool] = lambda task: False) -> Observed:
    """Run with durations that are drawn. Raises what the run raises."""
    scheduler = fresh(make, case)
    profile = CostModel(machine(Random(case.seed)), case.model)
    engine = Dice(scheduler.pools, profile, case.requests, Outcomes(case.lengths), seed, doomed)
    log, bounded = Log(), _Bounded(scheduler)
    drive(bounded, engine, log)
    ran = (Ran(t, *engine.times[n]) for n, t in sorted(engine.tasks.items()))
    return Observed(case, "dice", scheduler, tuple(ran), log, bounded.failures)


def on_simpy(
    make: SchedulerClass, case: Case, seed: int = 0, failures: Sequence[tuple[int, float]] = (), rig: Machine | None = None
) -> Observed:
    """Run on the reference engine, on `rig` or a machine that is drawn. `failures`: (task, at which part of it).
    Raises what the run raises."""
    from sim.engines.run import STATUSES
    from sim.engines.simpy_engine import SimPyEngine

    scheduler = fresh(make, case)
    costs = CostModel(rig or machine(Random(seed)), case.model)
    engine = SimPyEngine(
        costs.machine.lanes, {**costs.machine.pools, **scheduler.pools}, costs, profile=costs, arrivals=case.requests,
        outcomes=Outcomes(case.lengths), failures=failures,
    )  # fmt: skip
    log, bounded = Log(), _Bounded(scheduler)
    drive(bounded, engine, log)
    run = engine.run
    tasks = {t.number: t for source in run.sources for t in ((source,) if isinstance(source, Task) else source.tasks())}
    times = zip(run.number.tolist(), run.start_ps.tolist(), run.end_ps.tolist(), run.status.tolist(), strict=True)
    ran = (Ran(tasks[n], start, end, STATUSES[status]) for n, start, end, status in times)
    return Observed(case, "simpy", scheduler, tuple(ran), log, bounded.failures)
