"""One fused MoE layer on the wall clock: the list of the `ticket` scheduler, really run as one launch.

`LaunchEngine` is the engine that `drive` runs the scheduler on; what it hands back is a `Run` of the
very tasks that the simulator times.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from kernels.fused_moe.host import HostLaunch, Layer
from kernels.fused_moe.program import program
from kernels.fused_moe.tiles import OPS, Tiles
from sim.engines.run import DONE, SKIPPED, Run
from sim.events import Arrived, Event, Profile, Request, Started
from sim.plan import Plan
from sim.schedulers.ticket import LANE
from sim.tasks import Command, Time

PS_PER_NS = 1000


class Stamps(Protocol):
    """stamps [n, 2] ns and ran_on [n] of the tickets, as the kernel left them."""

    stamps: NDArray[np.int64]
    ran_on: NDArray[np.int32]


Launch = Callable[[Plan, NDArray[np.int32]], Stamps]
"""Runs a body and its in-kernel list, once."""


def program_of(plan: Plan) -> NDArray[np.int32]:
    """The in-kernel list of a body: its tiles in order of their numbers."""
    code = np.array([OPS.index(work.op) if work.op in OPS else -1 for work in plan.works])[plan.work]
    tile = plan.lane >= 0
    assert (code[tile] >= 0).all(), "a body's lane tasks must be tiles"
    return program(code[tile], plan.microbatch[tile], plan.page[tile])


class LaunchEngine:
    """Runs one Plan of tiles as one launch; an Engine for `sim.drive.drive`.

    Times are since the first tile's start. stamps: as the kernel left them, once it has run.
    """

    stamps: Stamps

    def __init__(self, launch: Launch, requests: Sequence[Request], profile: Profile) -> None:
        self._launch = launch
        self._events: deque[Event] = deque([Started(profile)])
        self._events.extend(Arrived(r, last=i == len(requests) - 1) for i, r in enumerate(requests))
        self._plan: Plan | None = None
        self._run: Run | None = None

    def submit(self, commands: Sequence[Command]) -> None:
        (self._plan,) = commands
        assert isinstance(self._plan, Plan), f"a launch takes one Plan, not {self._plan}"

    def wait(self) -> tuple[Time, Event] | None:
        if self._events:
            return 0, self._events.popleft()
        assert self._plan is not None, "the scheduler handed out nothing on the arrivals"
        self.stamps = self._launch(self._plan, program_of(self._plan))
        self._run = run_of(self._plan, self.stamps)
        return None

    @property
    def run(self) -> Run:
        assert self._run is not None, "drive() has not ended"
        return self._run


def run_of(plan: Plan, stamps: Stamps) -> Run:
    """Stamps of the tickets as times of the Plan's tasks; a join closes when the last that it waits for ends."""
    n, tile = len(plan), np.flatnonzero(plan.lane >= 0)
    start, end, status = np.zeros(n, np.int64), np.zeros(n, np.int64), np.full(n, DONE, np.int8)
    start[tile], end[tile] = stamps.stamps[:, 0], stamps.stamps[:, 1]
    status[tile[stamps.ran_on < 0]] = SKIPPED
    for i in np.flatnonzero(plan.lane < 0).tolist():
        start[i] = end[i] = end[plan.dep[plan.dep_ptr[i] : plan.dep_ptr[i + 1]] - plan.first].max()
    origin = int(start[tile].min())
    return Run(
        sources=(plan,), lanes=(LANE,), number=plan.first + np.arange(n), lane=np.where(plan.lane >= 0, 0, -1).astype(np.int16),
        start_ps=(start - origin) * PS_PER_NS, end_ps=(end - origin) * PS_PER_NS, status=status,
    )  # fmt: skip


def on_host(tiles: Tiles, layer: Layer, blocks: int) -> Launch:
    """Launches of the CPU form over `layer`, each after one that is not counted: it touches the memory."""

    def launch(plan: Plan, steps: NDArray[np.int32]) -> Stamps:
        kernel = HostLaunch(tiles, steps, blocks)
        kernel(layer)
        kernel(layer)
        return kernel.state

    return launch
