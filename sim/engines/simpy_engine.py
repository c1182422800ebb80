"""The reference engine: SimPy's environment is the clock, and everything that can happen happens here.

An instant is all that is due in one tick, in rounds: end tasks, release holds, close joins, deliver
events and take in what they submit; when a round brings nothing new, start tasks, lanes in declared
order, then settle the rates. A task of no duration ends in the next round of the same instant.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from math import inf
from typing import TYPE_CHECKING, Any

import simpy

from sim.engines.intake import Change, change_columns, check_failures, check_lanes
from sim.engines.lives import Lives
from sim.engines.run import LaneLike, Run
from sim.events import Arrived, Changed, Event, Profile, Request, Result, Started
from sim.plan import Plan, plan_of
from sim.tasks import Command, Task, Time

if TYPE_CHECKING:
    from sim.costs import Costs


class SimPyEngine:
    """An Engine on simulated time that runs Tasks, Plans and Cancels, and reacts.

    Parameters
    ----------
    lanes, pools: the machine's lanes in declared order; capacity of every pool.
    costs: prices tasks.
    profile: handed out in `Started` at time 0; None: no such event.
    arrivals: requests, each delivered at its `arrival_ps`.
    changes: (time in ps, resource, capacity from then on).
    failures: (task number, fraction): the task fails when that part of it is done.
    outcomes: gives the result of a task that ends with notify set.

    Among events of one round those scheduled here come first (changes, then arrivals, as given),
    then those of tasks, by number.
    """

    def __init__(
        self,
        lanes: Sequence[LaneLike],
        pools: Mapping[str, int],
        costs: Costs,
        *,
        profile: Profile | None = None,
        arrivals: Sequence[Request] = (),
        changes: Sequence[Change] = (),
        failures: Sequence[tuple[int, float]] = (),
        outcomes: Callable[[Task], Result] | None = None,
    ) -> None:
        self.lanes = tuple(lane.name for lane in lanes)
        check_lanes(self.lanes, pools)
        self._env = simpy.Environment(initial_time=0)
        self._lives = Lives(self._env, lanes, pools, costs, check_failures(failures), outcomes)
        self._resources = tuple(costs.resources)
        self._external: list[Event] = [] if profile is None else [Started(profile)]
        self._schedule_external(changes, arrivals)
        self._happenings = self._run()

    @property
    def now(self) -> Time:
        return int(self._env.now)

    def submit(self, commands: Sequence[Command]) -> None:
        """Take in commands at the present instant. Raises UserError where one is not possible."""
        lives = self._lives
        for command in commands:
            if isinstance(command, Plan):
                lives.queue(lives.book.add_plan(command))
            elif isinstance(command, Task) and command.body is not None:
                lives.queue(lives.book.add_plan(plan_of([command])))
            elif isinstance(command, Task):
                i = lives.book.add_task(command)
                lives.queue(range(i, i + 1))
            else:
                lives.cancel(command)

    def wait(self) -> tuple[Time, Event] | None:
        return next(self._happenings, None)

    @property
    def run(self) -> Run:
        """Times of all tasks so far."""
        return Run(sources=tuple(self._lives.book.sources), lanes=self.lanes, **self._lives.book.columns())

    def _schedule_external(self, changes: Sequence[Change], arrivals: Sequence[Request]) -> None:
        for time_ps, k, capacity in zip(*change_columns(changes, self._resources), strict=True):
            self._at(int(time_ps), self._external.append, Changed(self._resources[k], float(capacity)))
        last = max(range(len(arrivals)), key=lambda j: (arrivals[j].arrival_ps, j), default=-1)
        for j, request in enumerate(arrivals):
            self._at(request.arrival_ps, self._external.append, Arrived(request, last=j == last))

    def _at(self, delay: int, act: Callable[[Any], None], value: Any) -> None:
        self._env.timeout(delay, value).callbacks.append(lambda event: act(event.value))

    def _collect(self) -> None:
        """Let SimPy process all that is due in this tick."""
        env = self._env
        now = env.now
        while env.peek() == now:
            env.step()

    def _run(self) -> Iterator[tuple[Time, Event]]:
        lives, env = self._lives, self._env
        while True:
            self._collect()
            now = self.now
            while lives.due or lives.joins or lives.events or self._external:
                lives.end_due(now)
                for event in self._round():
                    yield now, event
            lives.start(now)
            lives.settle()
            if not lives.due:
                if env.peek() == inf:
                    break
                env.step()
        if lives.open:
            raise lives.stuck()

    def _round(self) -> list[Event]:
        """Events of this round in order; changes of capacity take effect as they are noted."""
        external = list(self._external)
        self._external.clear()  # the same list: scheduled callbacks append to it
        for event in external:
            if isinstance(event, Changed):
                self._lives.fluid.set_capacity(self._resources.index(event.resource), event.capacity)
        events = sorted(self._lives.events, key=lambda pair: pair[0])
        self._lives.events.clear()
        return external + [event for _, event in events]
