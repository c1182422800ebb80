"""StandingCluster: ranks that go on without one that is lost, and take in its replacement."""

from __future__ import annotations

import math
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from multiprocessing import AuthenticationError
from multiprocessing.connection import Listener
from queue import SimpleQueue
from typing import Any, NoReturn

from exec.cluster import launch, wire
from exec.cluster.controller import Cluster
from exec.cluster.job import Order
from exec.cluster.losses import RunStopped
from exec.cluster.members import Member, called, stalled
from exec.cluster.wire import CONNECT_S, GROUP_S, HEARTBEAT_S, SILENCE_S
from sim.errors import UserError

TRIES = 3
"""So many replacements of a rank may be lost on their way, one after another, before the run ends."""


HALT_S = 60.0
"""How long ranks may take to give up what runs: what a lane has begun it ends, within `exec.runtime.servers.JOIN_TIMEOUT_S`."""


class RankGone(RunStopped):
    """A rank was lost; the others stand by for a halt. at_s: when that was noticed, by this process's monotonic clock."""

    def __init__(self, rank: int, why: str) -> None:
        super().__init__(f"rank {rank} was lost: {why}")
        self.rank, self.at_s = rank, time.monotonic()


class StandingCluster(Cluster):
    """As `Cluster`, on this computer; whatever it was doing, it raises RankGone when a rank is lost. Then

        cluster.halt()      until it no longer raises: all others have given up what ran,
        cluster.regroup()   and form a group without the lost one.
        cluster.replace(rank) starts a process in its place, and cluster.come() says when one is ready; `admit` and `regroup`
                            take it in.

    recover: else a loss ends all ranks, as in `Cluster`. A store that outlives every rank lives in this process; groups are formed by it.
    """

    def __init__(self, ranks: int, recover: bool = True) -> None:
        super().__init__(ranks)
        self._recover = recover
        self._order: Order | None = None
        self._epoch = self._halts = 0
        self._listener: Listener | None = None
        self._store: Any = None
        self._called: SimpleQueue[Member] = SimpleQueue()
        self._coming: dict[int, Member] = {}
        self._ready: set[int] = set()
        self._due: dict[int, float] = {}
        """Replacements that have not called yet, and until when they may."""
        self._tries: Counter[int] = Counter()
        """Replacements that were started since the rank was in a group."""
        self._closed = threading.Event()

    # Coming and going ---------------------------------------------------------------------------

    def _open(self) -> None:
        from torch.distributed import TCPStore

        if launch.place() is not None:
            raise UserError("--placement: needs ranks that this command starts; leave torchrun out and give --ranks")
        launch.choose_addresses()
        self._own_address = True
        self._store = TCPStore(os.environ["MASTER_ADDR"], 0, is_master=True, wait_for_workers=False)
        os.environ[launch.STORE] = str(self._store.port)
        self._listener = self._door()
        self._pulse.start()
        self._children = launch.Children(range(self.ranks), self.ranks)
        self._welcome(self._listener)

    def _end_processes(self) -> None:
        self._closed.set()
        for member in self._coming.values():
            member.line.close()
        super()._end_processes()
        if self._listener is not None:
            self._listener.close()
        self._store = None

    def prepare(self, order: Order, joining: Order | None = None) -> None:
        """As `Cluster.prepare`, and the first group. joining: what a replacement is told, who loads nothing at once.
        Nothing runs yet that others could go on with: a loss is a RankLost."""
        self._order = None
        super().prepare(order)
        self.regroup()
        self._order = joining or order

    def regroup(self) -> None:
        """All that are there form a group. Raises RankGone; then it is for the others to do again, after a halt. Raises RunStopped
        where all live and cannot reach each other."""
        self._epoch += 1
        self.tell_all(wire.Regroup(self._epoch, tuple(sorted(self._members))))
        self.gather(wire.Ready, "forming a group", GROUP_S + SILENCE_S)
        for rank in self._members:
            del self._tries[rank]

    def halt(self) -> None:
        """Have all members give up what runs. What they had done is noted in the stamps of the plan. Raises RunStopped where one lives
        and does not."""
        self._halts += 1
        self.tell_all(wire.Halt(self._halts))
        halted: set[int] = set()
        give_up = time.monotonic() + HALT_S
        while missing := set(self._members) - halted:
            self._check_time(give_up, HALT_S, "giving up what ran", missing)
            for rank, message in self.hear(HEARTBEAT_S):
                if isinstance(message, wire.Halted) and message.number == self._halts:
                    halted.add(rank)
                    if self._stamps is not None:
                        self._stamps.add(rank, message.stamps)

    def replace(self, rank: int) -> None:
        """Start a process in place of a lost one. It is ready some time after."""
        assert self._children is not None and rank not in self._members
        self._tries[rank] += 1
        self._children.kill(rank)  # one that is stopped would never end
        self._children.start(rank)
        self._due[rank] = time.monotonic() + CONNECT_S
        threading.Thread(target=self._await_call, args=(self._due[rank],), name=f"await-{rank}", daemon=True).start()

    def _await_call(self, give_up: float) -> None:
        """Take one call. The caller hears at once, and from then on, that this process lives."""
        while not self._closed.is_set() and time.monotonic() < give_up:
            with suppress(EOFError, OSError, AuthenticationError):
                member = called(self._listener)
                self._pulse.lines.append(member.line)
                self._called.put(member)
                return

    def come(self) -> list[int]:
        """Replacements that are ready and not admitted yet. One that is lost on its way is replaced; after `TRIES`, RunStopped."""
        while not self._called.empty():
            self._take_call(self._called.get())
        for member in list(self._coming.values()):
            self._try(member, self._listen_to)
        for rank, give_up in list(self._due.items()):
            assert self._children is not None
            late = f"it did not call within {CONNECT_S:g} s" if time.monotonic() > give_up else ""
            if why := self._children.ended(rank) or late:
                self._again(rank, why)
        return sorted(self._ready)

    def _take_call(self, member: Member) -> None:
        """A replacement has called, unless another has been started in its place since."""
        assert self._children is not None
        if self._children.pid(member.rank) != member.pid:
            self._pulse.lines.remove(member.line)
            member.line.close()
            return
        self._due.pop(member.rank, None)
        self._coming[member.rank] = member
        self._try(member, lambda m: m.line.send(wire.Prepare(self._order)))

    def _try(self, member: Member, talk: Callable[[Member], None]) -> None:
        """Talk with a replacement on its way. Another is started in place of one that is lost."""
        assert self._children is not None
        try:
            talk(member)
        except (EOFError, OSError) as error:
            silent = stalled() if isinstance(error, BlockingIOError) else ""
            self._forget(self._coming, member.rank)
            self._again(member.rank, silent or self._children.ended(member.rank) or str(error) or "its connection broke")

    def _listen_to(self, member: Member) -> None:
        while member.line.poll(0):
            member.heard = time.monotonic()
            message = member.line.receive()
            if isinstance(message, wire.Broken):
                raise ConnectionError(message.why)
            if isinstance(message, wire.Ready):
                self._ready.add(member.rank)
        if time.monotonic() - member.heard > SILENCE_S:
            raise TimeoutError(stalled())

    def _again(self, rank: int, why: str) -> None:
        """A replacement was lost on its way. Raises RunStopped when too many were."""
        if self._tries[rank] < TRIES:
            self.replace(rank)
            return
        self._stop(f"rank {rank} could not be replaced: {TRIES} processes were lost before they were ready, of the last one: {why}")

    def _stop(self, why: str) -> NoReturn:
        self._stop_all(why)
        raise RunStopped(why, self.story())

    def admit(self, rank: int) -> None:
        """It is a member from now on; `regroup` comes next."""
        self._ready.discard(rank)
        self._members[rank] = self._coming.pop(rank)

    # Losses -------------------------------------------------------------------------------------

    def _lost(self, rank: int, why: str) -> NoReturn:
        if not self._recover or self._order is None:
            super()._lost(rank, why)
        assert self._children is not None
        self._children.kill(rank)
        self._forget(self._members, rank)
        if not self._members:
            raise RunStopped(f"rank {rank}, the last one, was lost: {why}", self.story())
        raise RankGone(rank, why)

    def _forget(self, among: dict[int, Member], rank: int) -> None:
        self._ready.discard(rank)
        member = among.pop(rank)
        self._pulse.lines.remove(member.line)
        member.line.close()

    def _broken(self, rank: int, message: wire.Broken) -> None:  # type: ignore[override]
        """Who could not reach a rank that is known as lost says nothing new."""
        if message.peer < 0 or message.bad_input:
            super()._broken(rank, message)
        if message.peer in self._members:
            self._blame(message.peer, rank)

    # Talking to those that are there ------------------------------------------------------------

    def tell_all(self, message: Any) -> None:
        """All hear the same orders in the same order, whoever is lost meanwhile; raises RankGone after the last."""
        gone: list[RankGone] = []
        for member in list(self._members.values()):
            try:
                self.tell(member, message)
            except RankGone as error:
                gone.append(error)
        if gone:
            raise gone[0]

    def gather(self, kind: type, what: str, within_s: float = math.inf) -> dict[int, Any]:
        """One message of that kind from every member. What a run says that ended meanwhile is void. Raises RunStopped after
        `within_s`."""
        found: dict[int, Any] = {}
        give_up = time.monotonic() + within_s
        while missing := set(self._members) - set(found):
            self._check_time(give_up, within_s, what, missing)
            for rank, message in self.hear(HEARTBEAT_S):
                if isinstance(message, kind):
                    found[rank] = message
                else:
                    assert isinstance(message, wire.Broken), f"rank {rank} said {message}, while {what}"
        return found

    def _check_time(self, give_up: float, within_s: float, what: str, missing: Iterable[int]) -> None:
        if time.monotonic() > give_up:
            self._stop(f"{what}: not done within {within_s:g} s by ranks {', '.join(map(str, sorted(missing)))}")
