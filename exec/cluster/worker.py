"""What the main thread of a rank does: prepare, take its share of a plan, run it, hand back what came of it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from exec.cluster import wire
from exec.cluster.backend import RankBackend
from exec.cluster.engine import RankEngine
from exec.cluster.group import Group, join_world
from exec.cluster.job import Order
from exec.cluster.machine import lanes_of
from exec.cluster.mesh import Counters, Landing, Mesh
from exec.cluster.profile import Unknown
from exec.cluster.rank import Listener
from exec.cluster.split import Share, Split
from exec.cluster.wire import Line
from sim.events import Finished

if TYPE_CHECKING:
    from exec.cluster.device import RankDevice

T = TypeVar("T")

GROUP_TIMEOUT_S = 60.0
"""How long ranks wait for each other when they first connect."""


def _unexpected(message: object) -> None:
    raise AssertionError(f"{message} came before anything was sent")


class Worker:
    """Serves orders one after another; what an order prepared stays until the next."""

    def __init__(self, rank: int, ranks: int, line: Line, listener: Listener) -> None:
        self.rank, self.ranks = rank, ranks
        self._line, self._listener = line, listener
        self._counters = Counters()
        self._backend: RankBackend | None = None
        self._group: Group | None = None
        self._device: Any = None
        """(device, its links to those of the others), where an order asks for one."""
        self._join()

    def _join(self) -> None:
        self._group = join_world(self.rank, self.ranks, GROUP_TIMEOUT_S)

    def serve(self) -> None:
        while not isinstance(order := self._listener.orders.get(), wire.Bye):
            if isinstance(order, wire.Prepare):
                self._backend = self._prepared(order.order)
                with self._mesh(self._backend):
                    pass  # a first message each way: gloo connects a pair when it is used first
                self._line.send(wire.Ready())
            elif isinstance(order, wire.Take):
                self._run(order)
        if self._device is not None:
            self._device[1].close()

    def _prepared(self, order: Order) -> RankBackend:
        kept = self._backend.kept_for(order) if self._backend is not None else None
        self._backend = None  # its memory is wanted
        if not order.device:
            return RankBackend(order, self.rank, kept)
        from exec.cluster.device_backend import DeviceBackend
        from exec.cluster.links import Links

        if self._device is None:
            device = self._opened(order.device)
            self._device = device, Links(self.rank, self.ranks, order.device, device)
        return DeviceBackend(order, self.rank, *self._device, kept)

    def _opened(self, kind: str) -> RankDevice:
        from exec.cluster.device import RankDevice, open_device

        self._line.send(wire.Patience(wire.OPENING_S))
        device = RankDevice(open_device(kind, self.rank))
        self._line.send(wire.Patience(wire.SILENCE_S))
        return device

    def _mesh(
        self, backend: RankBackend, landed: Callable[[Landing], None] = _unexpected, told: Callable[[int], None] = _unexpected,
        broke: Callable[[BaseException], None] | None = None,
    ) -> Mesh:  # fmt: skip
        broke = broke or self._listener.broken
        assert self._group is not None
        return backend.mesh(range(self.ranks), self._counters, landed=landed, told=told, broke=broke, group=self._group)

    def _run(self, order: wire.Take) -> None:
        backend = self._backend
        assert backend is not None, "a plan came before what it is for"
        share = Split(order.plan).share(self.rank)
        backend.begin(order.plan, order.states)
        machine = lanes_of(self.rank, self.ranks)
        engine = backend.engine(machine, backend, Unknown(), lambda rank, number: mesh.signal(rank, number))
        names = share.arrives

        def landed(landing: Landing) -> None:
            backend.moe.landed(names[landing.number], landing)
            engine.heard(landing.number, landing.at_ns)

        mesh = self._mesh(backend, landed, engine.heard, engine.lost)
        backend.moe.mesh, backend.moe.numbers = mesh, share.numbers
        with mesh, engine:
            self._listener.engine = engine
            self._line.send(wire.Ready())
            begin = self._next_order(wire.Begin)
            time.sleep(max(0.0, (begin.origin_ns - time.perf_counter_ns()) / 1e9))
            began_s = time.process_time()
            engine.begin(share, begin.origin_ns)
            self._report_events(engine, share)
            cpu_s = time.process_time() - began_s
        self._listener.engine = None
        backend.moe.mesh = None
        stamps, outputs = engine.stamps(), backend.outputs(cpu_s)
        self._line.send(wire.Finished(stamps, replace(outputs, whole_s=time.process_time() - began_s)))

    def _next_order(self, kind: type[T]) -> T:
        order = self._listener.orders.get()
        assert isinstance(order, kind), order
        return order

    def _report_events(self, engine: RankEngine, share: Share) -> None:
        """Wait until all is done, telling the controller what the scheduler wants to hear."""
        while (happened := engine.wait()) is not None:
            now, event = happened
            if isinstance(event, Finished):
                self._line.send(wire.Event(now, share.numbers[event.task], event.result))
