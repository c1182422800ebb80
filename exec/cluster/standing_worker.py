"""StandingWorker: a rank that goes on when another is lost. It gives up what ran, ends its streams and enters the next group."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TypeVar

import torch.distributed as dist

from exec.cluster import wire
from exec.cluster.backend import RankBackend
from exec.cluster.engine import RankEngine, Stamp
from exec.cluster.group import join
from exec.cluster.job import Order
from exec.cluster.launch import STORE
from exec.cluster.mesh import Counters, Landing, Mesh, PeerLost
from exec.cluster.placed import PlacedBackend, PlacedOrder
from exec.cluster.rank import GivenUp, cause_of
from exec.cluster.worker import Worker, _unexpected
from exec.runtime.errors import TaskFailed

T = TypeVar("T")


class StandingWorker(Worker):
    """Serves as `Worker` does; orders to halt and to regroup come in between."""

    _engine: RankEngine | None = None

    def _join(self) -> None:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        self._store = dist.TCPStore(os.environ["MASTER_ADDR"], int(os.environ[STORE]), is_master=False)

    def serve(self) -> None:
        while not isinstance(order := self._listener.orders.get(), wire.Bye):
            try:
                self._obey(order)
            except (PeerLost, GivenUp, TaskFailed) as error:
                self._gave_up(error)

    def _obey(self, order: object) -> None:
        if isinstance(order, wire.Prepare):
            self._backend = self._prepared(order.order)
            self._line.send(wire.Ready())
        elif isinstance(order, wire.Regroup):
            self._regroup(order)
        elif isinstance(order, wire.Take):
            self._run(order)
        else:
            assert isinstance(order, wire.Halt), order
            self._line.send(wire.Halted(order.number, self._left()))

    def _prepared(self, order: Order) -> RankBackend:
        """Placed experts, or any other order."""
        self._backend = None  # whose weights are others, and whose memory is wanted
        return PlacedBackend(order, self.rank) if isinstance(order, PlacedOrder) else super()._prepared(order)

    def _regroup(self, order: wire.Regroup) -> None:
        try:
            self._group = join(self._store, f"epoch-{order.epoch}", order.members, self.rank, wire.GROUP_S)
        except RuntimeError as error:  # somebody has not come: the controller finds out who, and wants another group
            raise GivenUp(str(error)) from error
        self._counters = Counters()
        assert self._backend is not None
        with self._mesh(self._backend):
            pass  # a first message each way: gloo connects a pair when it is used first
        self._line.send(wire.Ready())

    def _mesh(
        self, backend: RankBackend, landed: Callable[[Landing], None] = _unexpected, told: Callable[[int], None] = _unexpected,
        broke: Callable[[BaseException], None] | None = None,
    ) -> Mesh:  # fmt: skip
        assert self._group is not None
        return Mesh(
            self.rank, self._group.ranks, backend.rows, self._counters, landed=landed, told=told, broke=broke or _later, group=self._group,
            stands=True,
        )  # fmt: skip

    def _next_order(self, kind: type[T]) -> T:
        """A Halt may come instead: it is obeyed when what runs has been given up."""
        order = self._listener.orders.get()
        if isinstance(order, wire.Halt):
            self._listener.orders.put(order)
            raise GivenUp
        assert isinstance(order, kind), order
        return order

    def _gave_up(self, error: BaseException) -> None:
        """A run ended early. What it lacks is a peer, or else this rank is broken."""
        cause = cause_of(error)
        if not isinstance(cause, PeerLost | GivenUp):
            raise error
        self._engine, self._listener.engine = self._listener.engine, None
        if self._backend is not None:
            self._backend.moe.mesh = None
        if isinstance(cause, PeerLost):
            self._line.send(wire.Broken(str(cause), cause.peer))

    def _left(self) -> list[Stamp]:
        """What the run that was given up had ended, and what was under way."""
        engine, self._engine = self._engine, None
        return [] if engine is None else [*engine.stamps(), *engine.unfinished()]


def _later(error: BaseException) -> None:
    """A stream broke before anything was sent; ending the streams tells."""
