"""ClusterEngine: the wall clock of a cluster, for `sim.drive`."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence

import numpy as np

from exec.cluster import wire
from exec.cluster.clocks import Offset
from exec.cluster.controller import Cluster
from exec.cluster.merge import Stamps
from exec.cluster.outputs import Outputs
from exec.cluster.watch import Pace, Watch
from exec.cluster.wire import HEARTBEAT_S
from exec.runtime.delivery import Delivery
from sim.engines.run import Run
from sim.errors import UserError
from sim.events import Event, Finished, Profile, Request
from sim.plan import Plan, plan_of
from sim.tasks import Cancel, Command, Time


class ClusterEngine:
    """Runs the Plans of one scheduler on a prepared cluster, one after another.

    watch: looks at the computer around each Plan; paces: what it saw, by the Plan's first number.
    outputs: by rank, of the Plan that ended last. before, after: offsets of the ranks' clocks around it.
    Times are picoseconds of this process's clock since the first Plan began.
    """

    def __init__(
        self, cluster: Cluster, profile: Profile, requests: Sequence[Request], lanes: Sequence[str], watch: Watch | None = None
    ) -> None:
        self._cluster, self._lanes = cluster, lanes
        self._watch = self._watching = watch
        self.paces: dict[int, Pace] = {}
        self._delivery = Delivery(profile, requests)
        self._waiting: deque[Plan] = deque()
        self._stamps: list[Stamps] = []
        self._runs: list[Run] = []
        self._open: set[int] = set()
        """Ranks that have not finished their share of the Plan that runs."""
        self._origin_ns: int | None = None
        self._moved = time.monotonic()
        self._ended = 0
        self.outputs: dict[int, Outputs] = {}
        self.before: dict[int, Offset] = {}
        self.after: dict[int, Offset] = {}

    def submit(self, commands: Sequence[Command]) -> None:
        """Take Plans and Tasks. Raises UserError for a Cancel: what another rank runs cannot be taken back yet."""
        for command in commands:
            if isinstance(command, Cancel):
                raise UserError("scheduler: it cancels tasks; a cluster runs schedules that do not")
            self._waiting.append(command if isinstance(command, Plan) else plan_of([command]))

    def wait(self) -> tuple[Time, Event] | None:
        """The next event; None when all Plans are done. Raises what `Cluster` raises, and Deadlock."""
        while True:
            self._delivery.answered()
            self._delivery.arrive(self._now())
            if (happened := self._delivery.pop()) is not None:
                return happened
            if not self._open and self._waiting:
                self._start(self._waiting.popleft())
            if not self._open and self._delivery.next_arrival_ps is None:
                return None
            self._listen()

    def _start(self, plan: Plan) -> None:
        if self._watching is not None:
            self._watching.calm()
        self._stamps.append(Stamps(plan, self._lanes))
        self._open = set(self._cluster.members)
        self._origin_ns, self.before = self._hand_out(plan)
        self._moved = time.monotonic()
        if self._watching is not None:
            self._watching.begin()  # what getting ready took is the ranks' own, and no part of the run

    def _hand_out(self, plan: Plan) -> tuple[int, dict[int, Offset]]:
        return self._cluster.start(plan, self._stamps[-1], self._origin_ns)

    def _listen(self) -> None:
        for rank, message in self._cluster.hear(HEARTBEAT_S):
            self._heard(rank, message)
        if self._cluster.ended != self._ended:
            self._moved, self._ended = time.monotonic(), self._cluster.ended
        if self._open:
            self._cluster.look_for_deadlock(self._moved)

    def _heard(self, rank: int, message: object) -> None:
        if isinstance(message, wire.Event):
            self._delivery.add([(message.now, message.number, Finished(message.number, message.result))])
            return
        assert isinstance(message, wire.Finished), f"rank {rank} said {message}, while it ran"
        self._stamps[-1].add(rank, message.stamps)
        self.outputs[rank] = message.outputs
        self._open.discard(rank)
        if not self._open:
            self._close()

    def _close(self) -> None:
        if self._watching is not None:
            self.paces[self._stamps[-1].plan.first] = self._watching.end(self.outputs)
        self.after = self._cluster.offsets()
        assert self._origin_ns is not None
        self._runs.append(self._stamps[-1].run(self._origin_ns, self.before, self.after))

    def _now(self) -> Time:
        return max(0, time.perf_counter_ns() - self._origin_ns) * 1000 if self._origin_ns is not None else 0

    def run(self) -> Run:
        """What ran from when to when, on all ranks."""
        runs = self._runs
        joined = {c: np.concatenate([getattr(r, c) for r in runs]) for c in ("number", "lane", "start_ps", "end_ps", "status")}
        return Run(sources=tuple(s for r in runs for s in r.sources), lanes=tuple(self._lanes), **joined)
