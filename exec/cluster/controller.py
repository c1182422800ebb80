"""The controller: holds the scheduler, hands Plans to the ranks, and notices who is lost."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import AuthenticationError
from multiprocessing.connection import wait as wait_for
from types import TracebackType
from typing import Any, NoReturn, Self

from exec.cluster import launch, wire
from exec.cluster.clocks import Offset, estimate
from exec.cluster.job import Order
from exec.cluster.losses import RankLost, RunStopped
from exec.cluster.machine import Place
from exec.cluster.merge import Stamps
from exec.cluster.wire import HEARTBEAT_S, SILENCE_S, Line
from sim.drive import Deadlock
from sim.engines.run import Run
from sim.errors import UserError
from sim.plan import Plan

PINGS = 40
"""Round trips by which a clock's offset is estimated."""

HEAD_START_NS = 3_000_000
"""Ranks are told to begin so much later than now: the word has reached all of them by then."""

IDLE_S = 2.0
"""Where no rank runs anything for so long, nothing is on its way either, and tasks are open, they wait in a circle."""


STALLED = f"it has stalled, nothing was heard of it for {SILENCE_S:g} s"

PULSE_S = 0.4
"""How often ranks hear that the controller lives."""


@dataclass(slots=True)
class Member:
    """A rank as the controller sees it. heard: when it last said something. idle: its blocked tasks, where none runs."""

    rank: int
    pid: int
    host: str
    line: Line
    heard: float
    ended: int = 0
    idle: str = ""


class Pulse(threading.Thread):
    """Tells all ranks, whatever the main thread is busy with, that this process lives. lines: to whom."""

    def __init__(self) -> None:
        super().__init__(name="pulse", daemon=True)
        self.lines: list[Line] = []
        self._stopped = threading.Event()
        self.start()

    def run(self) -> None:
        while not self._stopped.wait(PULSE_S):
            for line in tuple(self.lines):
                with suppress(OSError):  # who is gone, the main thread finds out
                    line.send(wire.Alive())

    def stop(self) -> None:
        self._stopped.set()
        self.join()


def _number(names: list[str], name: str) -> int:
    return list(dict.fromkeys(names)).index(name)


class Cluster:
    """Ranks that are ready for orders. Use as a context manager; leaving it ends every process that it started.

        with Cluster(4) as cluster:
            cluster.prepare(order)
            done = cluster.run(scheduler, requests, profile, lanes)

    Raises RankLost or RunStopped, whatever it was doing, when a rank is lost or cannot go on.
    """

    def __init__(self, ranks: int) -> None:
        self.ranks = ranks
        self._members: dict[int, Member] = {}
        self._children: launch.Children | None = None
        self._stamps: Stamps | None = None
        self._looked = time.monotonic()
        self._over = False
        self._pulse = Pulse()

    # Coming and going ---------------------------------------------------------------------------

    def __enter__(self) -> Self:
        place = launch.place()
        self._own_address = place is None
        if place is None:
            launch.choose_addresses()
        host, port = launch.control_address()
        listener = wire.listen(host, port, self.ranks, HEARTBEAT_S)
        try:
            self._children = launch.Children(range(self.ranks) if place is None else range(1), self.ranks)
            self._welcome(listener)
        except BaseException:
            self._end_processes()
            raise
        finally:
            listener.close()
        return self

    def _welcome(self, listener: Any) -> None:
        """Wait for every rank to call. Raises RankLost for one that ends before, RunStopped after a while."""
        give_up = time.monotonic() + wire.CONNECT_S
        while missing := sorted(set(range(self.ranks)) - set(self._members)):
            try:
                line = Line(listener.accept())
                joined = line.receive()
            except (TimeoutError, EOFError, OSError, AuthenticationError):
                self._look_at_children(missing)
                if time.monotonic() > give_up:
                    raise RunStopped(f"ranks {', '.join(map(str, missing))} did not call within {wire.CONNECT_S:g} s") from None
                continue
            self._pulse.lines.append(line)
            self._members[joined.rank] = Member(joined.rank, joined.pid, joined.host, line, time.monotonic())

    def _look_at_children(self, missing: Sequence[int]) -> None:
        assert self._children is not None
        for rank in missing:
            if how := self._children.ended(rank):
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

    # Talking ------------------------------------------------------------------------------------

    def tell_all(self, message: Any) -> None:
        for member in self._members.values():
            self.tell(member, message)

    def tell(self, member: Member, message: Any) -> None:
        try:
            member.line.send(message)
        except OSError as error:
            self._lost(member.rank, self._end_of(member.rank, error))

    def hear(self, timeout_s: float) -> list[tuple[int, Any]]:
        """What ranks say within `timeout_s`, heartbeats taken in. Raises RankLost."""
        by_connection = {m.line.connection: m for m in self._members.values()}
        heard: list[tuple[int, Any]] = []
        for connection in wait_for(list(by_connection), timeout_s):
            member = by_connection[connection]
            try:
                message = member.line.receive()
            except (EOFError, OSError) as error:
                self._lost(member.rank, self._end_of(member.rank, error))
            member.heard = time.monotonic()
            if isinstance(message, wire.Beat):
                self._beat(member, message)
            else:
                heard.append((member.rank, message))
        self._look_around()
        for rank, message in heard:
            if isinstance(message, wire.Broken):
                self._broken(rank, message)
        return heard

    def _end_of(self, rank: int, error: BaseException) -> str:
        """How a rank ended on whose connection `error` was raised."""
        if isinstance(error, BlockingIOError):
            return STALLED
        return (self._children.how_it_ended(rank) if self._children else "") or "its connection broke"

    def _beat(self, member: Member, beat: wire.Beat) -> None:
        member.ended, member.idle = beat.ended, beat.idle
        if self._stamps is not None:
            self._stamps.add(member.rank, beat.stamps)

    def _look_around(self) -> None:
        """Who has been silent for too long? Nobody is blamed for a time in which this process itself did not run."""
        now = time.monotonic()
        if now - self._looked > SILENCE_S / 2:
            for member in self._members.values():
                member.heard = now
        self._looked = now
        for member in self._members.values():
            if now - member.heard > SILENCE_S:
                self._lost(member.rank, STALLED)

    def gather(self, kind: type, what: str) -> dict[int, Any]:
        """One message of that kind from every rank."""
        found: dict[int, Any] = {}
        while len(found) < self.ranks:
            for rank, message in self.hear(HEARTBEAT_S):
                assert isinstance(message, kind), f"rank {rank} said {message}, while {what}"
                found[rank] = message
        return found

    # Losses -------------------------------------------------------------------------------------

    def _broken(self, rank: int, message: wire.Broken) -> NoReturn:
        if message.bad_input:
            self._stop_all(message.why)
            raise UserError(message.why)
        if message.peer >= 0:
            self._blame(message.peer, rank)
        self._stop_all(f"rank {rank}: {message.why}")
        raise RunStopped(f"rank {rank} failed: {message.why}", self.story())

    def _blame(self, peer: int, by: int) -> NoReturn:
        """A stream to `peer` broke. Its own connection tells in a moment how it ended."""
        member = self._members[peer]
        deadline = time.monotonic() + SILENCE_S
        while time.monotonic() < deadline:
            if member.line.poll(0.05):
                try:
                    member.line.receive()
                except (EOFError, OSError) as error:
                    self._lost(peer, self._end_of(peer, error))
        self._lost(peer, f"rank {by} could not reach it")

    def _lost(self, rank: int, why: str) -> NoReturn:
        if self._over:
            raise RankLost(rank, why, None)
        lost = RankLost(rank, why)
        if self._children is not None:
            self._children.kill(rank)
        self._stop_all(str(lost), rank)
        lost.run = self.story()
        raise lost

    def _stop_all(self, why: str, lost: int = -1) -> None:
        """Tell the others why, and take in what they had done; the processes end by themselves, or are killed on leaving."""
        self._over = True
        deadline = time.monotonic() + launch.GRACE_S
        for member in self._members.values():
            if member.rank == lost:
                continue
            with suppress(OSError):
                member.line.send(wire.Stop(why))
        for member in self._members.values():
            if member.rank != lost:
                self._last_words(member, deadline)

    def _last_words(self, member: Member, deadline: float) -> None:
        with suppress(EOFError, OSError):
            while member.line.poll(max(0.0, deadline - time.monotonic())):
                message = member.line.receive()
                if isinstance(message, (wire.Beat, wire.Last, wire.Finished)) and self._stamps is not None:
                    self._stamps.add(member.rank, message.stamps)
                if isinstance(message, wire.Last):
                    return

    def story(self) -> Run | None:
        """What has happened so far of the plan that is running."""
        return self._stamps.run() if self._stamps is not None else None

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

    @property
    def ended(self) -> int:
        """Tasks that ranks have reported so far, in their heartbeats."""
        return sum(m.ended for m in self._members.values())
