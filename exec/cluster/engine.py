"""RankEngine: the part of a Plan that one rank runs, on the runtime's threads.

What other ranks do shows up as records that wait for messages: `heard` is called by whoever received
one. What this rank ends, others are told, by the thread that ended it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from exec.cluster.split import Kind, Share
from exec.runtime import Backend, Record, ThreadEngine
from exec.runtime.board import Board
from exec.runtime.hazards import BufferGuard
from exec.runtime.records import RUNNING
from sim.engines.run import CANCELLED
from sim.events import Profile, Result
from sim.machines.schema import Lane, Machine
from sim.tasks import Time

STARTED, ENDED, WHOLE = range(3)

PATIENCE_S = 0.02
"""How long a heartbeat waits for the lanes' lock."""


class Stamp(NamedTuple):
    """What a rank knows of one task: when it started here, when it ended here, or both. Times in ps since
    the run began, on this rank's clock."""

    number: int
    what: int
    start_ps: Time
    end_ps: Time
    status: int


class PutsAside(BufferGuard):
    """Leaves puts out: they end where they arrive. What waited for one may be under way here before the thread that sent it
    has come back from the call. (Buffers that are filled before they were read show in `Store`.)"""

    def enter(self, task: Record) -> None:
        if not _is_put(task.lane):
            super().enter(task)

    def leave(self, task: Record) -> None:
        if not _is_put(task.lane):
            super().leave(task)


def _is_put(lane: str | None) -> bool:
    return lane is not None and lane.startswith("put.")


class RankBoard(Board):
    """A board that notes whom to tell of an end."""

    def __init__(self, lanes: Sequence[Lane], pools: Mapping[str, int]) -> None:
        super().__init__(lanes, pools)
        self.guard = PutsAside()
        self.tells: dict[int, list[tuple[int, int]]] = {}
        self.to_tell: list[tuple[int, int]] = []

    def done(self, task: Record, result: Result | None, now: Time) -> None:
        super().done(task, result, now)
        self.to_tell += self.tells.pop(task.number, ())

    def heard(self, number: int, now: Time) -> None:
        """One of the messages that a record waits for has come."""
        task = self._known[number]
        assert task.waiting > 0, f"record {number} waits for nothing"
        task.waiting -= 1
        if task.waiting == 0:
            self._became_ready(task, now)

    def under_way(self) -> list[Record]:
        return [task for task in self._known.values() if task.state == RUNNING]


class RankEngine(ThreadEngine):
    """Runs one `Share`. tell(rank, number) sends a message that `number` has ended here."""

    _board: RankBoard

    def __init__(self, machine: Machine, backend: Backend, profile: Profile, tell: Callable[[int, int], None]) -> None:
        super().__init__(machine, backend, profile, ())
        self._tell = tell
        self._share = Share(0)
        self._early: Counter[int] = Counter()
        """Messages that came before the share did: ranks do not start at the very same time."""

    def _make_board(self, lanes: Sequence[Lane], pools: Mapping[str, int]) -> RankBoard:
        return RankBoard(lanes, pools)

    def begin(self, share: Share, origin_ns: int) -> None:
        """Take the share in; its times count from `origin_ns` of this computer's clock."""
        with self._lock:
            self._origin_ns = origin_ns
            self._share = share
            board = self._board
            board.tells = dict(share.tells)
            now = self._now()
            board.submit(share.records, now)
            for number, count in self._early.items():
                for _ in range(count):
                    board.heard(share.awaits[number], now)
            self._early.clear()
            self._hand_out(now)

    def heard(self, number: int, at_ns: int | None = None) -> None:
        """Somebody told about task `number`, or a put has arrived, at that time of this computer's clock (None: now).
        Errors are raised by `wait`."""
        with self._lock:
            if self._stopping:
                return
            try:
                local = self._share.awaits.get(number)
                if local is None:
                    assert not self._share.records, f"nobody here waits for task {number}"
                    self._early[number] += 1
                    return
                now = self._now() if at_ns is None else self._since_origin(at_ns)
                self._board.heard(local, now)
                self._hand_out(now)
            except BaseException as error:
                # Whatever it was, `wait` raises it in the driving thread.
                self.fail(error)

    def _since_origin(self, at_ns: int) -> Time:
        assert self._origin_ns is not None
        return (at_ns - self._origin_ns) * 1000

    def fail(self, error: BaseException) -> None:
        """End the run: `wait` raises the first error. The lock is held, or nothing runs any more."""
        self._error = self._error or error
        self._halt()

    def lost(self, error: BaseException) -> None:
        """As `fail`, for who does not hold the lock."""
        with self._lock:
            self.fail(error)

    def _hand_out(self, now: Time) -> None:
        board = self._board
        while True:
            super()._hand_out(now)
            if not board.to_tell:
                return
            telling, board.to_tell = board.to_tell, []
            for rank, number in telling:
                self._tell(rank, number)

    def _finished(self) -> bool:
        """A rank with nothing to run may still hear from others; the controller looks for deadlocks."""
        return self._board.open == 0

    def stamps(self, patience_s: float = -1.0) -> list[Stamp]:
        """What has ended since the last call; nothing where the lanes cannot be asked within `patience_s`: a heartbeat must
        not wait until a large plan was taken in."""
        if not self._lock.acquire(timeout=patience_s):
            return []
        try:
            ended, self._board.ended = self._board.ended, []
        finally:
            self._lock.release()
        return [stamp for row in ended if (stamp := self._stamp(*row)) is not None]

    def unfinished(self) -> list[Stamp]:
        """Tasks of lanes that run now, as cancelled."""
        with self._lock:
            now = self._now()
            running = [r for r in self._board.under_way() if r.lane is not None]
            return [Stamp(self._share.numbers[r.number], WHOLE, r.start_ps, now, CANCELLED) for r in running]

    def _stamp(self, local: int, lane: str | None, start: Time, end: Time, status: int) -> Stamp | None:
        kind, number = self._share.kinds[local], self._share.numbers[local]
        if kind is Kind.RUN:
            return Stamp(number, STARTED if _is_put(lane) else WHOLE, start, end, status)
        return Stamp(number, ENDED, end, end, status) if kind is Kind.ARRIVED else None

    def idle(self) -> str:
        """What blocked tasks wait for, where nothing runs here; else empty."""
        if not self._lock.acquire(timeout=PATIENCE_S):
            return ""
        try:
            board = self._board
            return board.story() if board.open and not board.running else ""
        finally:
            self._lock.release()


class DeviceEngine(RankEngine):
    """For a backend with `ended_ns`: by task, when the device had done it, if a device did it. Such a task ends then, not when its
    thread has noticed; what it let start counts from then, unless something that was noticed before it had ended later."""

    _backend: Any
    _latest: Time = 0

    def _settle(self, task: Record, result: Result | None, error: BaseException | None, end: Time) -> None:
        at_ns = self._backend.ended_ns.pop(task.number, None)
        if at_ns is not None:
            end = max(task.start_ps, min(end, self._since_origin(at_ns)))
        super()._settle(task, result, error, end)

    def _hand_out(self, now: Time) -> None:
        self._latest = max(self._latest, now)
        super()._hand_out(self._latest)
