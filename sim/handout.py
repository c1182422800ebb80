"""Whole: an engine for schedulers that hand everything out before anything ends, timed by the compiled loop."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence

from sim.costs import CostModel
from sim.engines.run import Run
from sim.errors import UserError
from sim.events import Arrived, Event, Request, Started
from sim.plan import Plan
from sim.tasks import Command, Time


class Reacts(UserError):
    """The scheduler waits for events of the run: the compiled engine cannot give it any."""


class WholeEngine:
    """Delivers Started and the arrivals of time 0, takes in one Plan, and runs it when all are delivered.

    Raises `Reacts` where the scheduler hands out more than one Plan, something else than a Plan, or a
    Plan that asks to be told about ends.
    """

    def __init__(self, costs: CostModel, requests: Sequence[Request], pools: Mapping[str, int]) -> None:
        self._costs = costs
        self._pools = pools
        self._events: deque[Event] = deque([Started(costs)])
        for i, request in enumerate(requests):
            if request.arrival_ps:
                raise Reacts("the compiled engine needs every request to arrive at 0; --engine simpy runs it")
            self._events.append(Arrived(request, last=i == len(requests) - 1))
        self._plan: Plan | None = None
        self._run: Run | None = None

    def submit(self, commands: Sequence[Command]) -> None:
        for command in commands:
            if self._plan is not None or not isinstance(command, Plan) or bool(command.notify.any()):
                raise Reacts("the scheduler reacts to what happens in the run; --engine simpy runs it")
            self._plan = command

    def wait(self) -> tuple[Time, Event] | None:
        if self._events:
            return 0, self._events.popleft()
        if self._plan is None:
            raise Reacts("the scheduler handed out nothing on the arrivals; --engine simpy runs it")
        from sim.engines.compiled import run_compiled  # numba

        self._run = run_compiled(self._costs.bind(self._plan), self._costs.lanes, self._pools)
        return None

    @property
    def run(self) -> Run:
        """The times of all tasks, once `wait` has returned None."""
        assert self._run is not None, "drive() has not ended"
        return self._run
