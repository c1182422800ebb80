"""Ranks as the controller has them: it tells and hears them, and notices who is lost."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Listener
from multiprocessing.connection import wait as wait_for
from typing import Any, NoReturn

from exec.cluster import launch, wire
from exec.cluster.losses import RankLost, RunStopped
from exec.cluster.merge import Stamps
from exec.cluster.wire import HEARTBEAT_S, SILENCE_S, Line
from sim.engines.run import Run
from sim.errors import UserError

PULSE_S = 0.4
"""How often ranks hear that the controller lives."""


def stalled(silence_s: float = SILENCE_S) -> str:
    return f"it has stalled, nothing was heard of it for {silence_s:g} s"


@dataclass(slots=True)
class Member:
    """A rank as the controller sees it. heard: when it last said something. idle: its blocked tasks, where none runs. patience_s: how
    long it may be silent."""

    rank: int
    pid: int
    host: str
    line: Line
    heard: float
    ended: int = 0
    idle: str = ""
    patience_s: float = SILENCE_S


def called(door: Listener) -> Member:
    """Who calls next. Raises TimeoutError where nobody does, and EOFError, OSError or AuthenticationError for a caller that does not
    say who it is."""
    line = Line(door.accept())
    try:
        joined = line.receive()
        if not isinstance(joined, wire.Joined):
            raise EOFError(f"a caller said {type(joined).__name__} before who it is")
    except BaseException:
        line.close()
        raise
    return Member(joined.rank, joined.pid, joined.host, line, time.monotonic())


class Pulse:
    """Tells all ranks, whatever the main thread is busy with, that this process lives, between `start` and `stop`. lines: to whom."""

    def __init__(self) -> None:
        self.lines: list[Line] = []
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._tell, name="pulse", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def _tell(self) -> None:
        while not self._stopped.wait(PULSE_S):
            for line in tuple(self.lines):
                with suppress(OSError):  # who is gone, the main thread finds out
                    line.send_unless_busy(wire.Alive())  # nobody waits for word because another is sent a lot

    def stop(self) -> None:
        """Also where it was never started."""
        self._stopped.set()
        if self._thread.ident is not None:
            self._thread.join()


class Members:
    """So many ranks that have called. Whatever is asked of them, it raises RankLost or RunStopped when a rank is lost or cannot go on.

    The processes that are this one's own are its children; stamps: what is known of the plan that runs.
    """

    def __init__(self, ranks: int) -> None:
        self.ranks = ranks
        self._members: dict[int, Member] = {}
        self._children: launch.Children | None = None
        self._own_address = False
        self._stamps: Stamps | None = None
        self._looked = time.monotonic()
        self._over = False
        self._pulse = Pulse()

    # Talking ------------------------------------------------------------------------------------

    @contextmanager
    def opening(self) -> Iterator[None]:
        """For opening a device in this process: ranks are patient meanwhile."""
        self.tell_all(wire.Patience(wire.OPENING_S))
        yield
        self.tell_all(wire.Patience(SILENCE_S))

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
            elif isinstance(message, wire.Patience):
                member.patience_s = message.silence_s
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
            return stalled()
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
            if now - member.heard > member.patience_s:
                self._lost(member.rank, stalled(member.patience_s))

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

    @property
    def members(self) -> Sequence[int]:
        """Ranks that are there."""
        return sorted(self._members)

    @property
    def ended(self) -> int:
        """Tasks that ranks have reported so far, in their heartbeats."""
        return sum(m.ended for m in tuple(self._members.values()))  # others join meanwhile
