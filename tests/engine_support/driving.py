"""Small engines and scripted schedulers for unit tests."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sim.drive import drive
from sim.engines.run import STATUSES, Run
from sim.engines.simpy_engine import SimPyEngine
from sim.events import Event
from sim.tasks import Command, Task, Time, Work
from tests.engine_support.fakes import Demand, FakeCosts, Lane

COSTS = FakeCosts({"link": 1e12, "cores": 2e12}, {
    **{f"copy{n}": (0, [Demand(0, float(n))]) for n in (0, 1, 2, 5, 10, 100)},
    **{f"core{n}": (0, [Demand(1, float(n), cap=1e12)]) for n in (1, 5, 10)},
    "late10": (5, [Demand(0, 10.0)]),
})  # fmt: skip
"""copyN: N ps alone on a link. coreN: N ps on one of two cores. late10: 5 ps of latency before copy10."""

LANES = (Lane("a"), Lane("b"), Lane("pool", "ready", 2), Lane("urgent", "priority"))


def task(number: int, op: str, lane: str | None = "a", deps: Sequence[int] = (), **more: Any) -> Task:
    return Task(number, Work(op), lane, tuple(deps), **more)


def timer(number: int, latency_ps: int, deps: Sequence[int] = (), **more: Any) -> Task:
    return Task(number, Work("timer", latency_ps=latency_ps), None, tuple(deps), **more)


def join(number: int, deps: Sequence[int] = (), **more: Any) -> Task:
    return Task(number, Work("join"), None, tuple(deps), **more)


class Script:
    """A scheduler that records what happens and answers as it is told."""

    def __init__(self, answer: Callable[[Time, Event], Sequence[Command]] = lambda now, event: ()) -> None:
        self.seen: list[tuple[Time, Event]] = []
        self._answer = answer

    def on(self, now: Time, event: Event) -> Sequence[Command]:
        self.seen.append((now, event))
        return self._answer(now, event)


def on(event: Event, *commands: Command) -> Callable[[Time, Event], Sequence[Command]]:
    """Give these commands when that event comes."""
    return lambda now, happened: commands if happened == event else ()


def play(commands: Sequence[Command], answer: Callable[[Time, Event], Sequence[Command]] = lambda now, event: (), *,
         pools: Mapping[str, int] | None = None, **more: Any) -> tuple[list[tuple[Time, Event]], Run]:  # fmt: skip
    """Submit commands at 0 and drive; returns the events seen and the run."""
    script = Script(answer)
    engine = SimPyEngine(LANES, pools or {}, COSTS, **more)
    engine.submit(commands)
    drive(script, engine)
    return script.seen, engine.run


def spans(run: Run) -> dict[int, tuple[int, int]]:
    return {int(n): (int(s), int(e)) for n, s, e in zip(run.number, run.start_ps, run.end_ps, strict=True)}


def statuses(run: Run) -> dict[int, str]:
    return {int(n): STATUSES[s] for n, s in zip(run.number, run.status, strict=True)}
