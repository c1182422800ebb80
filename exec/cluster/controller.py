"""The controller: starts the ranks, gives them their orders, and hands Plans out."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing import AuthenticationError
from multiprocessing.connection import Listener
from types import TracebackType
from typing import Any, Self

from exec.cluster import launch, wire
from exec.cluster.clocks import Offset, estimate
from exec.cluster.job import Order
from exec.cluster.losses import RunStopped
from exec.cluster.machine import Place
from exec.cluster.members import Member, Members, called
from exec.cluster.merge import Stamps
from exec.cluster.wire import HEARTBEAT_S, SILENCE_S
from sim.drive import Deadlock
from sim.errors import UserError
from sim.plan import Plan

PINGS = 40
"""Round trips by which a clock's offset is estimated."""

HEAD_START_NS = 3_000_000
"""Ranks are told to begin so much later than now: the word has reached all of them by then."""

IDLE_S = 2.0
"""Where no rank runs anything for so long, nothing is on its way either, and tasks are open, they wait in a circle."""

SILENT = f"it has stalled, it did not call within {SILENCE_S:g} s of its start"


def _number(names: list[str], name: str) -> int:
    return list(dict.fromkeys(names)).index(name)


class Cluster(Members):
    """Ranks that are ready for orders. Use as a context manager; leaving it ends every process that it started.

    with Cluster(4) as cluster:
        cluster.prepare(order)
        done = execute(cluster, scheduler, requests, profile, lanes)
    """

    # Coming and going ---------------------------------------------------------------------------

    def __enter__(self) -> Self:
        try:
            self._open()
        except BaseException:
            self._end_processes()
            raise
        return self

    def _open(self) -> None:
        place = launch.place()
        self._own_address = place is None
        if place is None:
            launch.choose_addresses()
        with self._door() as door:
            self._pulse.start()
            self._children = launch.Children(range(self.ranks) if place is None else range(1), self.ranks)
            self._welcome(door)

    def _door(self) -> Listener:
        """Where ranks call. Raises UserError where its port is taken."""
        host, port = launch.control_address()
        try:
            return wire.listen(host, port, self.ranks, HEARTBEAT_S)
        except OSError as error:
            raise UserError(f"{launch.CONTROL_PORT}: port {port} of {host}: {error.strerror}; name a free one") from None

    def _welcome(self, door: Listener) -> None:
        """Wait for every rank to call. Raises RankLost for one of ours that ends or falls silent before, RunStopped after a while
        for those that others start."""
        give_up = time.monotonic() + wire.CONNECT_S
        while missing := sorted(set(range(self.ranks)) - set(self._members)):
            try:
                member = called(door)
            except (EOFError, OSError, AuthenticationError):  # also a TimeoutError: nobody has called
                self._look_at_children(missing)
                if time.monotonic() > give_up:
                    raise RunStopped(f"ranks {', '.join(map(str, missing))} did not call within {wire.CONNECT_S:g} s") from None
                continue
            if member.rank not in missing:  # another run's, or another of this rank
                member.line.close()
                continue
            self._pulse.lines.append(member.line)
            self._members[member.rank] = member

    def _look_at_children(self, missing: Sequence[int]) -> None:
        """Who has not called, and will not? Nobody is blamed for a time in which this process itself did not run."""
        assert self._children is not None
        now = time.monotonic()
        if now - self._looked > SILENCE_S / 2:
            self._children.count_from(now)
        self._looked = now
        for rank in missing:
            if how := self._children.ended(rank) or (SILENT if self._children.silent_s(rank) > SILENCE_S else ""):
                self._lost(rank, how)

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        if not self._over:
            for member in self._members.values():
                with suppress(OSError):
                    member.line.send(wire.Bye() if kind is None else wire.Stop("interrupted"))
        self._end_processes()

    def _end_processes(self) -> None:
        self._pulse.stop()
        if self._children is not None:
            self._children.end()
        for member in self._members.values():
            member.line.close()
        if self._own_address:
            launch.forget_addresses()

    @property
    def pids(self) -> dict[int, int]:
        """Process of each rank, on the computer that it runs on."""
        return {rank: member.pid for rank, member in self._members.items()}

    @property
    def places(self) -> tuple[Place, ...]:
        """Which computer and which host (network namespace) each rank runs on, both numbered in order of ranks."""
        hosts = [self._members[rank].host for rank in range(self.ranks)]
        computers = [host.partition(" ")[0] for host in hosts]
        return tuple(Place(_number(computers, c), _number(hosts, h)) for c, h in zip(computers, hosts, strict=True))

    # Work ---------------------------------------------------------------------------------------

    def prepare(self, order: Order) -> None:
        """Have every rank load what it holds of the order and get ready."""
        assert order.ranks == self.ranks, (order.ranks, self.ranks)
        self.tell_all(wire.Prepare(order))
        self.gather(wire.Ready, "preparing")

    def offsets(self) -> dict[int, Offset]:
        """Each rank's clock against this one's."""
        return {rank: estimate(self._ping(member, k) for k in range(PINGS)) for rank, member in self._members.items()}

    def _ping(self, member: Member, k: int) -> tuple[int, int, int]:
        sent = time.perf_counter_ns()
        self.tell(member, wire.Ping(k))
        while True:
            for rank, message in self.hear(HEARTBEAT_S):
                if isinstance(message, wire.Pong) and rank == member.rank and message.ping == k:
                    return sent, message.ns, time.perf_counter_ns()
                assert isinstance(message, wire.Pong), f"rank {rank} said {message}, while clocks were compared"

    def start(
        self, plan: Plan, stamps: Stamps, origin_ns: int | None, states: Any = None, before: dict[int, Offset] | None = None
    ) -> tuple[int, dict[int, Offset]]:
        """Hand a plan out and let all ranks begin together, or, where the run's clock has an origin already, at once. states: see
        `wire.Take`. before: offsets of the ranks' clocks, where they have just been compared. Returns the origin on this
        process's clock, and the offsets."""
        self.tell_all(wire.Take(plan, states))
        self.gather(wire.Ready, "taking the plan")
        before = before or self.offsets()
        self._stamps = stamps
        for member in self._members.values():
            member.heard = time.monotonic()
        if origin_ns is None:
            origin_ns = time.perf_counter_ns() + HEAD_START_NS
        for rank, member in self._members.items():
            self.tell(member, wire.Begin(origin_ns + before[rank].offset_ns))
        return origin_ns, before

    def look_for_deadlock(self, since: float) -> None:
        """Raises Deadlock where every rank has had nothing to run since that time (on the monotonic clock), for long.
        What a rank said before it fell silent proves nothing: it may be lost."""
        now = time.monotonic()
        if now - since < IDLE_S or not all(m.idle and now - m.heard < IDLE_S / 2 for m in self._members.values()):
            return
        story = "; ".join(f"rank {m.rank}: {m.idle}" for m in self._members.values())
        self._stop_all("deadlock")
        raise Deadlock(f"nothing runs on any rank and tasks are open: {story}")
