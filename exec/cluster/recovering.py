"""RecoveringEngine: a cluster's clock for a scheduler that hears of ranks that are lost and that come.

A Plan counts as a whole or not at all: its events are told when all ranks have handed in what came of it. When a rank is lost, what
runs is given up everywhere, the others form a group of their own, a replacement is started, and the scheduler hears
`Changed(alive.R, 0)`. Its Cancels take back a Plan that waits; of one that ran there is nothing left to cancel. A replacement that is
ready is taken in between two Plans.
"""

from __future__ import annotations

import os
import signal
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from exec.cluster import wire
from exec.cluster.clocks import Offset
from exec.cluster.conductor import ClusterEngine
from exec.cluster.placed import PlacedOutputs, States
from exec.cluster.standing import RankGone, StandingCluster
from exec.cluster.watch import Sample, Watch
from exec.cluster.wire import HEARTBEAT_S
from sim.engines.run import Run
from sim.ep import names
from sim.errors import UserError
from sim.events import Changed, Event, Finished, Profile, Request
from sim.plan import Plan
from sim.tasks import PS_PER_S, Cancel, Command, Time

Say = Callable[[str], None]

NO_TASKS = np.empty(0)
"""Samples of Plans are for comparing whole ones."""


@dataclass(frozen=True, slots=True)
class Kill:
    """A drill: `rank` is killed in the middle of the step of that number, counted over all Plans."""

    rank: int
    step: int

    @staticmethod
    def of(text: str, ranks: int, steps: int) -> Kill:
        """From RANK@STEP, for a run of so many ranks and steps. Raises UserError."""
        rank, _, step = text.partition("@")
        if not (rank.isdecimal() and step.isdecimal() and int(rank) < ranks):
            raise UserError(f"--kill: is {text!r}; RANK@STEP is needed, as in 1@20, with a rank of 0 to {ranks - 1}")
        if int(step) >= steps:
            raise UserError(f"--kill: is {text!r}, and the run has {steps} steps; a step of 0 to {steps - 1} is needed")
        return Kill(int(rank), int(step))


class RecoveringEngine(ClusterEngine):
    """states: row of each request after the last Plan that counts; of those that never ran, what they begin with. replaced_s: from a loss
    to when its replacement was ready. watch: as in `ClusterEngine`, but while a replacement starts, for which it would wait; samples:
    what it saw, by the Plan's first number."""

    _cluster: StandingCluster

    def __init__(
        self, cluster: StandingCluster, profile: Profile, requests: Sequence[Request], lanes: Sequence[str], states: States,
        kill: Kill | None = None, say: Say = lambda text: None, watch: Watch | None = None,
    ) -> None:  # fmt: skip
        super().__init__(cluster, profile, requests, lanes, watch)
        self.states = states
        self.replaced_s: list[float] = []
        self.samples: dict[int, Sample] = {}
        self._kill, self._say = kill, say
        self._events: list[tuple[Time, int, Event]] = []
        """Of the Plan that runs, to be told when it counts."""
        self._steps = 0
        self._lost_at: dict[int, float] = {}
        """When ranks were lost that have not been replaced yet."""
        self._told = set(cluster.members)
        """Ranks that the scheduler takes to be there."""

    def submit(self, commands: Sequence[Command]) -> None:
        """As `ClusterEngine.submit`, and Cancels. Of several ranks lost at once the scheduler hears one after another: what it plans
        after the first it takes back after the next, before it has begun."""
        gone = {c.task for c in commands if isinstance(c, Cancel)}
        self._waiting = deque(plan for plan in self._waiting if plan.first not in gone)
        super().submit([c for c in commands if not isinstance(c, Cancel)])

    def wait(self) -> tuple[Time, Event] | None:
        """As `ClusterEngine.wait`; nothing is over while a replacement is on its way."""
        while True:
            try:
                self._take_in()
                happened = super().wait()
                if happened is not None or not self._lost_at:
                    return happened
                self._cluster.hear(HEARTBEAT_S)
            except RankGone as gone:
                self._recover(gone)

    # One Plan -----------------------------------------------------------------------------------

    def _start(self, plan: Plan) -> None:
        self._watching = self._watch if not self._lost_at else None
        self.outputs = {}
        super()._start(plan)

    def _hand_out(self, plan: Plan) -> tuple[int, dict[int, Offset]]:
        states = {q: self.states[q] for group in plan.groups for q in group}
        return self._cluster.start(plan, self._stamps[-1], self._origin_ns, states, self.after)

    def _listen(self) -> None:
        super()._listen()
        self._take_in()

    def _heard(self, rank: int, message: object) -> None:
        if isinstance(message, wire.Event):
            self._events.append((message.now, message.number, Finished(message.number, message.result)))
            self._drill(message.number)
        elif not isinstance(message, wire.Broken):  # a stream to a rank that is known as lost
            super()._heard(rank, message)

    def _close(self) -> None:
        super()._close()
        run, first = self._runs[-1], self._stamps[-1].plan.first
        if first in self.paces:
            self.samples[first] = Sample(float(run.end_ps.max() - run.start_ps.min()) / PS_PER_S, NO_TASKS, *self.paces[first])
        for outputs in self.outputs.values():
            assert isinstance(outputs, PlacedOutputs)
            self.states.update(outputs.states)
        self._delivery.add(self._events)
        self._events = []
        self._steps += int(self._stamps[-1].plan.step.max(initial=-1)) + 1

    def _drill(self, number: int) -> None:
        plan, kill = self._stamps[-1].plan, self._kill
        if kill is None or self._steps + int(plan.step[number - plan.first]) < kill.step:
            return
        self._kill = None
        self._say(f"killing rank {kill.rank}")
        os.kill(self._cluster.pids[kill.rank], signal.SIGKILL)

    # Losses -------------------------------------------------------------------------------------

    def _recover(self, gone: RankGone) -> None:
        lost = [gone]
        while True:
            try:
                self._cluster.halt()
                self._cluster.regroup()
                break
            except RankGone as another:
                lost.append(another)
        self._void()
        for one in lost:
            self._say(f"{one}; going on with ranks {', '.join(map(str, self._cluster.members))}")
            self._lost_at.setdefault(one.rank, one.at_s)
            self._cluster.replace(one.rank)
        self._tell()

    def _void(self) -> None:
        """The Plan that ran does not count; one that was to run is for ranks that are no more, unless those that were lost are
        replacements that the scheduler has not heard of: then it is the only one there will be."""
        self._end_run()
        self._open = set()
        self._events = []
        self.after = {}
        if self._told - set(self._cluster.members):
            self._waiting.clear()

    def _end_run(self) -> None:
        """What is known of a Plan that was given up."""
        if len(self._runs) < len(self._stamps):
            self._runs.append(self._stamps[-1].run())

    def story(self) -> Run | None:
        """What ran until the run was stopped; None: nothing had begun."""
        self._end_run()
        return self.run() if self._runs else None

    def _take_in(self) -> None:
        """Replacements that are ready, where no Plan runs."""
        ready = self._cluster.come() if self._lost_at else []
        if self._open or not ready:
            return
        for rank in ready:
            self._cluster.admit(rank)
        self._cluster.regroup()
        self._tell()

    def _tell(self) -> None:
        """The scheduler hears which ranks have gone and come since it heard last. Clocks of those that come are not known."""
        self.after = {}
        members = set(self._cluster.members)
        for rank in sorted(members - self._told):
            self.replaced_s.append(time.monotonic() - self._lost_at.pop(rank))
            self._say(f"rank {rank} was replaced within {self.replaced_s[-1]:.1f} s")
        for rank in sorted(self._told ^ members):
            self._delivery.add([(self._now(), -2 - rank, Changed(names.alive(rank), 1.0 if rank in members else names.GONE))])
        self._told = members
