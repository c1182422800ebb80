"""What an expert-cache decode fetches and when: demand loads, those that nobody waits for, and who makes way for whom."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from sim import buffers
from sim.events import Failed, Result
from sim.models.spec import ModelSpec
from sim.residency.governor import Governor
from sim.residency.grant import Grant, Load, Refusal
from sim.residency.prefetch import PREDICTORS
from sim.schedulers.background import Background, Flight
from sim.schedulers.caching import Caching, Served
from sim.schedulers.expert_tasks import H2D, NVME, Tasks
from sim.tasks import Command, Task, Time

PROMOTIONS = 4
"""Promotions on their way at a time; more would be of yesterday's experts when they arrive."""


class Loads:
    """Two tiers of slots and the way into each: from the disk to `host` (None: all experts are there), and over the link to
    `table`. Methods that take `out` append commands to it."""

    def __init__(self, model: ModelSpec, caching: Caching, tasks: Tasks, served: Served) -> None:
        self.table = caching.table(model)
        self.host = caching.host_table(model)
        self.governor = Governor() if caching.governed and caching.prefetch != "none" else None
        self._model, self._tasks, self._served = model, tasks, served
        self._predictor = PREDICTORS[caching.prefetch](range(model.dense_layers, model.layers), model.experts)
        self._link = Background(self._fetch_ahead)
        self._disk = Background(self._read_ahead)
        self._reader: dict[int, int] = {}
        """Last task that read each slot."""
        self._reads: dict[int, int] = {}
        """Last read of each key that an event waited for."""
        self._pinned = -1
        self._host_pinned = False

    # Ends of loads ------------------------------------------------------------------------------

    def landed(self, number: int) -> list[Command]:
        """A load that nobody waited for is there."""
        if (flight := self._link.ended(number)) is not None:
            self._served.moved += flight.left
            self._served.ahead += flight.left
            self._let_go(self._link, flight)
            if flight.wanted:
                self.table.landed(flight.key)
            return self._link.fill()
        flight = self._disk.ended(number)
        assert flight is not None, f"task {number} is none of this scheduler's"
        self._served.read += flight.left
        assert self.host is not None
        if not flight.wanted:
            return self._disk.fill()
        self.host.landed(flight.key)
        self._guess(flight.key)
        return self.fill()

    def failed(self, event: Failed) -> list[Command] | None:
        """A load that nobody waited for failed or was cancelled; None: the task is none of these."""
        for background, table in ((self._link, self.table), (self._disk, self.host)):
            found = background.failed(event.task, event.fraction_done)
            if found is None:
                continue
            flight, copied, cancelled = found
            self._let_go(background, flight)
            if background is self._link:
                self._served.moved += copied
                self._served.ahead += copied
            else:
                self._served.read += copied
            if flight.wanted and not cancelled:
                assert table is not None
                table.lost(flight.key)  # it really failed, and nobody waited for it
            return background.fill()
        return None

    def _let_go(self, background: Background, flight: Flight) -> None:
        """A copy from the host's memory is over: its source may give way."""
        if background is self._link and self.host is not None:
            self.host.let_go(flight.key)

    def ended(self, now: Time, rows: int, over: int) -> None:
        """A step of `rows` sequences is done, with `over` of them."""
        if self.governor is not None:
            self.governor.ended(now, rows)
        if over:
            self.table.evictor.ended(over / rows)
            self._predictor.ended(over / rows)

    # An event -----------------------------------------------------------------------------------

    def release(self) -> None:
        """The layer before has been computed: its experts may go."""
        if self._pinned >= 0:
            self.table.release(self._pinned)
            if self._host_pinned:
                assert self.host is not None
                self.host.release(self._pinned)
        self._pinned, self._host_pinned = -1, False

    def need(self, layer: int, asked: Sequence[int], elsewhere: Collection[int], out: list[Command]) -> Grant:
        """Slots for an event, pinned until `release`."""
        grant = self.table.need(layer, asked, elsewhere, max(0, PROMOTIONS - len(self._link)))
        assert isinstance(grant, Grant), grant
        self._pinned = layer
        out += [c for k in grant.cancelled for c in self._link.drop(k)]
        return grant

    def read(self, keys: list[int], out: list[Command]) -> dict[int, int]:
        """Demand reads of what is not in the host's memory; the task that each such key waits for."""
        if self.host is None or not keys:
            return {}
        layer, experts = keys[0] // self._model.experts, self._model.experts
        grant = self.host.need(layer, [k % experts for k in keys])
        assert isinstance(grant, Grant) and len(grant.waves) <= 1, grant
        self._host_pinned = True
        out += [c for k in grant.cancelled for c in self._disk.drop(k)]
        loads = [load for wave in grant.waves for load in wave]
        if loads:
            out += self._disk.stop(but=grant.late)
        numbers: dict[int, int] = {}
        for k in grant.late:
            flight = self._disk.claim(k)
            assert flight is not None, f"key {k} is late and on no way"
            numbers[k] = flight.number if flight.number >= 0 and flight.wanted and not flight.stopped else self._demand_read(k, flight, out)
        for load in loads:
            numbers[load.key] = self._demand_read(load.key, Flight(load.key, load.slot), out)
        self._reads.update(numbers)
        return numbers

    def _demand_read(self, key: int, flight: Flight, out: list[Command]) -> int:
        self._served.read += flight.left
        task = self._tasks.copy("read_expert", NVME, flight, (), buffers.expert_host(flight.slot))
        out.append(task)
        return task.number

    def claim(self, keys: Sequence[int], reads: dict[int, int], out: list[Command]) -> list[tuple[int, int, int]]:
        """(key, slot, task) of what is on its way and is waited for now."""
        arriving: list[tuple[int, int, int]] = []
        for k in keys:
            flight = self._link.claim(k)
            assert flight is not None, f"key {k} is late and on no way"
            going = flight.number >= 0 and not flight.stopped
            arriving.append((k, flight.slot, flight.number if going else self.demand(flight, reads, out)))
        return arriving

    def demand(self, flight: Flight, reads: dict[int, int], out: list[Command]) -> int:
        """A load that the layer waits for. What it overwrites has been read to the end."""
        deps = tuple(n for n in (reads.get(flight.key, -1), self._reader.get(flight.slot, -1)) if n >= 0)
        task = self._tasks.copy("load_expert", H2D, flight, deps, buffers.expert(flight.slot), self.host_buffers(flight.key))
        self._served.moved += flight.left
        out.append(task)
        return task.number

    def make_way(self, but: Collection[int] = ()) -> list[Command]:
        """Something that is waited for comes on the link: the others stop, but for these keys."""
        return self._link.stop(but=but)

    def read_by(self, number: int, slots: Iterable[int]) -> None:
        """Task `number` reads these slots: what overwrites them comes after it."""
        for s in slots:
            self._reader[s] = number

    def host_buffers(self, key: int) -> tuple[str, ...]:
        """Where the host has it; without a table every expert has the slot of its key."""
        return (buffers.expert_host(key if self.host is None else self.host.slot(key)),)

    # Loads that nobody waits for ----------------------------------------------------------------

    def promote(self, loads: Sequence[Load]) -> None:
        for load in loads:
            self._link.add(load.key, load.slot, first=True)

    def fill(self) -> list[Command]:
        """Hand out what may go now."""
        return [*self._link.fill(), *self._disk.fill()]

    def fill_link(self) -> list[Command]:
        return self._link.fill()

    def prefetch(self, layer: int, asked: Sequence[int], result: Result) -> None:
        """Fetch ahead what the predictor expects after this event."""
        guesses = self._predictor.saw(layer, asked, result.facts)
        if self.governor is not None and not self.governor.on:
            return
        for then, e in guesses:
            self._guess(then * self._model.experts + e)

    def _guess(self, key: int) -> None:
        """Fetch ahead what is not here; from the disk first, where it is not in the host's memory either."""
        if self.host is not None and not self.host.here(key):
            if isinstance(read := self.host.ahead(key), Load):
                self._disk.add(key, read.slot)
            return
        found = self.table.ahead(key)
        if not isinstance(found, Refusal):
            self._served.guesses += 1
            self._link.add(key, found.slot)

    def _fetch_ahead(self, flight: Flight) -> Task | None:
        if self.host is not None:
            if not self.host.here(flight.key):  # it gave way while the flight waited
                self.table.lost(flight.key)
                return None
            self.host.hold(flight.key)
        deps = tuple(n for n in (self._reads.get(flight.key, -1), self._reader.get(flight.slot, -1)) if n >= 0)
        task = self._tasks.copy("load_expert", H2D, flight, deps, buffers.expert(flight.slot), self.host_buffers(flight.key), True)
        flight.number = task.number
        return task

    def _read_ahead(self, flight: Flight) -> Task:
        task = self._tasks.copy("read_expert", NVME, flight, (), buffers.expert_host(flight.slot), (), True)
        flight.number = task.number
        return task
