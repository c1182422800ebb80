"""Serving with placed experts: requests in, one Plan of a few steps after another, experts moved after the load, losses survived.

A Plan holds as a whole or not at all. When its last task has ended its steps are committed: what ended is answered, what moved is used
from the next Plan on. When a rank is lost in the middle, the Plan is cancelled, and the steps are planned again from the last
commit: requests of the lost rank go to others, with the steps that they had committed. So no answer is given twice, and none is lost.

* *Who holds what*: a `Rebalancer` looks at the load of the last Plans; what it wants is moved layer by layer, one layer in each Plan,
  beside the steps and over the same links. Copies that are replaced serve until the commit.
* *A rank is lost* (`Changed` of `sim.ep.names.alive`): the others take over what nobody holds any more, from where weights are kept, and go
  on, or wait for a replacement where they have no room.
* *A rank comes*: it has no experts yet. It gets requests in the next Plan, and experts as copies from the others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from sim.ep import names
from sim.errors import UserError
from sim.events import Arrived, Changed, Event, Finished
from sim.models.spec import ModelSpec
from sim.placement.placement import Bools
from sim.placement.problem import Floats
from sim.placement.rebalance import Rebalancer, taken_over
from sim.plan import PlanBuilder
from sim.schedulers.ep.placed import PlacedLayers
from sim.schedulers.ep.seats import Seats
from sim.tasks import Cancel, Command, Time


@dataclass(frozen=True, slots=True)
class Settings:
    """seats: requests that a rank serves at a time. steps: of a Plan. every: Plans from one look at the load to the next, 0: never.
    most_rows: of a message."""

    seats: int
    steps: int = 4
    every: int = 2
    most_rows: int = 256

    def __post_init__(self) -> None:
        for name, least in (("seats", 1), ("steps", 1), ("every", 0), ("most_rows", 1)):
            if getattr(self, name) < least:
                raise UserError(f"{name}: is {getattr(self, name)}; {least} or more is needed")


@dataclass(frozen=True, slots=True)
class Served:
    """A Plan that was committed. first, tasks: numbers of its tasks. rows: over all steps. requests: the lowest and the highest number.
    layer: whose experts moved meanwhile, -1: none; moves: so many copies; loads: copies loaded anew. version: how many new placements had
    been wanted. living: how many ranks there were."""

    first: int
    tasks: int
    rows: int
    requests: tuple[int, int]
    layer: int
    moves: int
    loads: int
    version: int
    living: int


@dataclass(slots=True)
class _Open:
    """The Plan that runs. gates: layer of each gate's number; last: tasks to end before it is committed; held: what holds then."""

    served: Served
    gates: Mapping[int, int]
    last: set[int]
    seats: Seats
    held: Bools
    counts: Floats


@dataclass(slots=True)
class Tally:
    """replayed: rows of committed requests that a loss made to be computed again. moves, loads: copies, of what was committed."""

    served: list[Served] = field(default_factory=list)
    lost_ranks: list[int] = field(default_factory=list)
    joined_ranks: list[int] = field(default_factory=list)
    replayed_rows: int = 0
    handed_over: int = 0
    moves: int = 0
    loads: int = 0
    rebalances: int = 0


class Rebalancing:
    """recorded: counts [layers, experts] that the first placement is made for. Raises UserError where experts do not fit on the ranks."""

    pools: ClassVar[Mapping[str, int]] = {}

    def __init__(self, model: ModelSpec, ranks: int, rebalancer: Rebalancer, settings: Settings, recorded: Floats) -> None:
        self.model, self.ranks, self.rebalancer, self.settings = model, ranks, rebalancer, settings
        self.living = set(range(ranks))
        self.held: Bools = rebalancer.first(recorded, ranks)
        """Copies that are there and serve [layers, experts, ranks]."""
        self.seats = Seats(ranks, settings.seats)
        self.tally = Tally()
        self._load: Floats = recorded
        self._window = np.zeros_like(recorded)
        """Counts since the last look, and the last ones that were looked at."""
        self._target: Bools | None = None
        self._todo: list[int] = []
        self._version = 0
        self._since = 0
        self._open: _Open | None = None
        self._next_number = 0
        self._arrived = False

    @property
    def lanes(self) -> tuple[str, ...]:
        ranks = range(self.ranks)
        own = (lane(r) for r in ranks for lane in (names.gpu, names.comm, names.host))
        return (*own, *(names.put(a, b) for a in ranks for b in ranks if a != b))

    @property
    def answered(self) -> Sequence[int]:
        """Requests whose last step is committed, in that order."""
        return self.seats.ended

    def on(self, now: Time, event: Event) -> Sequence[Command]:
        if isinstance(event, Arrived):
            self.seats.arrive(event.request.request_id, event.request.output_tokens or event.request.max_output_tokens)
            self._arrived = event.last
            return self._go_on() if event.last else ()
        if isinstance(event, Finished) and self._open is not None and event.task >= self._open.served.first:
            return self._finished(self._open, event)
        if isinstance(event, Changed):
            return self._changed(event)
        return ()  # a cancelled task's failure among them

    # What happens -------------------------------------------------------------------------------

    def _finished(self, plan: _Open, event: Finished) -> Sequence[Command]:
        if event.task in plan.gates:
            plan.counts[plan.gates[event.task]] += event.result.experts
        plan.last.discard(event.task)
        if plan.last:
            return ()
        self._commit(plan)
        return self._go_on()

    def _commit(self, plan: _Open) -> None:
        self._open, self.seats, self.held = None, plan.seats, plan.held
        self.tally.served.append(plan.served)
        self.tally.moves += plan.served.moves
        self.tally.loads += plan.served.loads
        self._window += plan.counts
        self._since += 1
        if self.settings.every and self._since >= self.settings.every and not self._todo:
            self._look()

    def _look(self) -> None:
        """Is another placement worth its moves?"""
        self._since, self._load = 0, self._window
        self._window = np.zeros_like(self._load)
        target = self.rebalancer.better(self._load, self.held, self._alive())
        if target is not None:
            self._target, self._version = target, self._version + 1
            self._todo = np.flatnonzero((target != self.held).any(axis=(1, 2))).tolist()
            self.tally.rebalances += 1

    def _changed(self, event: Changed) -> Sequence[Command]:
        kind, _, rank = event.resource.partition(".")
        if kind != "alive":
            return ()
        if event.capacity == names.GONE:
            return self._lost(int(rank))
        self.living.add(int(rank))
        self.tally.joined_ranks.append(int(rank))
        self._target, self._todo = None, []
        self._since = self.settings.every  # the fleet is another: look as soon as there is a load to look at
        return self._go_on()

    def _lost(self, rank: int) -> Sequence[Command]:
        """Nothing of the Plan that runs counts. What was being moved is not wanted any more: the look before knew another fleet."""
        self.living.discard(rank)
        self.held[:, :, rank] = False
        self.tally.lost_ranks.append(rank)
        self.tally.handed_over += len(self.seats.leave(rank))
        self._target, self._todo = None, []
        commands: list[Command] = []
        if self._open is not None:
            served = self._open.served
            commands = [Cancel(n, f"rank {rank} was lost") for n in range(served.first, served.first + served.tasks)]
            self.tally.replayed_rows += served.rows
            self._open = None
        return [*commands, *self._go_on()]

    # Planning -----------------------------------------------------------------------------------

    def _alive(self) -> NDArray[np.int64]:
        return np.array(sorted(self.living), np.int64)

    def _go_on(self) -> Sequence[Command]:
        """The next Plan, where none runs, somebody is to be served, and the living have room for all experts."""
        room = len(self.living) * min(self.rebalancer.slots, self.model.experts)
        if self._open is not None or not self._arrived or not self.seats.busy or room < self.model.experts:
            return ()
        serving = taken_over(self.held, self._alive(), self.rebalancer.slots, self._load)
        held = [{r: tuple(np.flatnonzero(row[:, r]).tolist()) for r in sorted(self.living)} for row in serving]
        layers = PlacedLayers(self.model, self.ranks, held, PlanBuilder(self._next_number))
        loads = np.argwhere(serving & ~self.held).tolist()
        for layer, expert, rank in loads:
            layers.load(rank, layer, expert)
        self.held &= serving  # what makes room goes at once
        after, moving = serving.copy(), self._todo.pop(0) if self._todo else -1
        moved = self._move(layers, serving, after, moving) if moving >= 0 else []
        seats = self.seats.copy()
        last, rows, requests = self._steps(layers, seats)
        first, count = self._next_number, len(layers.builder)
        self._next_number += count
        served = Served(first, count, rows, requests, moving, len(moved), len(loads), self._version, len(self.living))
        self._open = _Open(served, layers.gates, last | set(moved), seats, after, np.zeros_like(self._load))
        return [layers.builder.build()]

    def _move(self, layers: PlacedLayers, held: Bools, after: Bools, layer: int) -> list[int]:
        """Copies of one layer to where the target wants them; who has sent least sends. Returns what ends last of each."""
        assert self._target is not None
        sent = dict.fromkeys(sorted(self.living), 0)
        after[layer] = self._target[layer]
        last = []
        for expert, rank in np.argwhere(self._target[layer] & ~held[layer]).tolist():
            source = min(np.flatnonzero(held[layer, expert]).tolist(), key=lambda r: (sent[r], r))
            sent[source] += 1
            last.append(layers.move(layer, expert, source, rank, self.settings.most_rows))
        return last

    def _steps(self, layers: PlacedLayers, seats: Seats) -> tuple[set[int], int, tuple[int, int]]:
        """The Plan's steps. Returns the last tasks of all ranks, rows in all, and the lowest and highest request."""
        last: set[int] = set()
        rows, served = 0, set[int]()
        for _ in range(self.settings.steps):
            if not (step := seats.next_step(self.living)):
                break
            last |= set(layers.step(step))
            rows += sum(len(mine.requests) for mine in step.values())
            served |= {q for mine in step.values() for q in mine.requests}
        return last, rows, (min(served), max(served))
