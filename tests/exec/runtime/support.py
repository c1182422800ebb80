"""A machine without op times, a backend of plain functions, and a scheduler of ready-made commands."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from exec.runtime import Interrupt, Interrupted, Record, ThreadEngine
from sim.drive import Log, drive
from sim.engines.run import Run
from sim.events import Event, Request, Result, Started
from sim.machines.schema import Lane, Machine, Resource
from sim.tasks import Command, Task, Time, Work


def machine(*lanes: Lane | str, pools: Mapping[str, int] | None = None) -> Machine:
    made = tuple(lane if isinstance(lane, Lane) else Lane(name=lane, kind="compute") for lane in lanes)
    resource = Resource(kind="cores", capacity=2, source="a test")
    return Machine(name="test", resources={"cores": resource}, memories={}, lanes=made, pools=dict(pools or {}), ops=())


def task(number: int, lane: str | None = "a", op: str = "op", **fields: object) -> Task:
    return Task(number, Work(op, latency_ps=fields.pop("latency_ps", 0)), lane, **fields)  # type: ignore[arg-type]


@dataclass
class Functions:
    """Backend that runs a function a task number; the others do nothing. It notes the order of starts and ends."""

    functions: dict[int, Callable[[Record, Interrupt], Result | None]] = field(default_factory=dict)
    notes: list[tuple[str, int]] = field(default_factory=list)
    entered: list[str] = field(default_factory=list)

    def enter_lane(self, lane: Lane) -> None:
        self.entered.append(lane.name)

    def run(self, task: Record, interrupt: Interrupt) -> Result | None:
        self.notes.append(("start", task.number))
        try:
            function = self.functions.get(task.number)
            return function(task, interrupt) if function is not None else None
        finally:
            self.notes.append(("end", task.number))

    @property
    def starts(self) -> list[int]:
        return [number for what, number in self.notes if what == "start"]


class Profile:
    digest = "test"

    def estimate(self, task: Task) -> Time:
        return 0


class Commands:
    """Scheduler that submits `first` at the start and answers events with what `react` returns."""

    def __init__(self, first: Sequence[Command], react: Callable[[Time, Event], Sequence[Command]] | None = None) -> None:
        self.first = first
        self.react = react
        self.seen: list[tuple[Time, Event]] = []

    def on(self, now: Time, event: Event) -> Sequence[Command]:
        if isinstance(event, Started):
            return self.first
        self.seen.append((now, event))
        return self.react(now, event) if self.react is not None else ()

    @property
    def events(self) -> list[Event]:
        return [event for _, event in self.seen]


def run(
    scheduler: Commands, backend: Functions, on: Machine, *, requests: Sequence[Request] = (), pools: Mapping[str, int] | None = None,
    log: Log | None = None,
) -> Run:  # fmt: skip
    with ThreadEngine(on, backend, Profile(), requests, pools) as engine:
        drive(scheduler, engine, log)
    return engine.run()


def lane_threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("lane-")]


def until(condition: Callable[[], bool]) -> None:
    """Wait for another thread; fails the test after 10 s."""
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "what the test waits for did not happen"
        time.sleep(0.001)


def until_interrupted(_: Record, interrupt: Interrupt) -> None:
    """An op that would never end by itself."""
    until(lambda: bool(interrupt))
    raise Interrupted(0.25)
