"""What the main thread of a rank does: prepare, take its share of a plan, run it, hand back what came of it."""

from __future__ import annotations

from exec.cluster import wire
from exec.cluster.backend import RankBackend
from exec.cluster.engine import RankEngine
from exec.cluster.machine import lanes_of
from exec.cluster.mesh import Counters, Landing, Mesh, join_group
from exec.cluster.rank import Listener
from exec.cluster.split import Share, Split
from exec.cluster.wire import Line
from sim.events import Finished

GROUP_TIMEOUT_S = 60.0
"""How long ranks wait for each other when they first connect."""


class NoProfile:
    """Ranks see no machine: the scheduler is the controller's."""

    digest = ""

    def estimate(self, task: object) -> int:
        raise AssertionError("a rank estimates nothing")


class Worker:
    """Serves orders one after another; what an order prepared stays until the next."""

    def __init__(self, rank: int, ranks: int, line: Line, listener: Listener) -> None:
        self.rank, self.ranks = rank, ranks
        self._line, self._listener = line, listener
        self._counters = Counters()
        self._backend: RankBackend | None = None
        join_group(rank, ranks, GROUP_TIMEOUT_S)

    def serve(self) -> None:
        while not isinstance(order := self._listener.orders.get(), wire.Bye):
            if isinstance(order, wire.Prepare):
                self._backend = None  # its memory first
                self._backend = RankBackend(order.order, self.rank)
                self._line.send(wire.Ready())
            elif isinstance(order, wire.Take):
                self._run(order)

    def _run(self, order: wire.Take) -> None:
        backend = self._backend
        assert backend is not None, "a plan came before what it is for"
        share = Split(order.plan).share(self.rank)
        backend.reset()
        machine = lanes_of(self.rank, self.ranks)
        engine = RankEngine(machine, backend, NoProfile(), lambda rank, number: mesh.signal(rank, number))
        names = share.arrives

        def landed(landing: Landing) -> None:
            backend.moe.landed(names[landing.number], landing)
            engine.heard(landing.number)

        mesh = Mesh(
            self.rank, self.ranks, backend.rows, backend.order.most_rows, self._counters, landed=landed, told=engine.heard, broke=engine.lost
        )
        backend.moe.mesh, backend.moe.numbers = mesh, share.numbers
        with mesh, engine:
            self._listener.engine = engine
            self._line.send(wire.Ready())
            begin = self._listener.orders.get()
            assert isinstance(begin, wire.Begin), begin
            engine.begin(share, begin.origin_ns)
            self._report_events(engine, share)
        self._listener.engine = None
        self._line.send(wire.Finished(engine.stamps(), backend.outputs()))

    def _report_events(self, engine: RankEngine, share: Share) -> None:
        """Wait until all is done, telling the controller what the scheduler wants to hear."""
        while (happened := engine.wait()) is not None:
            now, event = happened
            if isinstance(event, Finished):
                self._line.send(wire.Event(now, share.numbers[event.task], event.result))
