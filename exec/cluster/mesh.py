"""Mesh: messages between ranks over `torch.distributed`, one ordered stream for each pair and direction.

A message is a run of rows [1 + n, width]: a header row (which task, how many rows, how many of each
expert) and the rows. It is one `isend`; the receiver has posted receives of the largest size ahead, so
that a put needs no answer before it moves. Each peer's messages are numbered by their tag and taken
in that order by a thread that sleeps until the next is there.

Point to point only: after a loss the streams between the others go on (no collective is ever called).
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from exec.cluster.group import FOREVER, Group
from exec.cluster.header import DATA, HEADER, LAST, SIGNAL, counts_of, fill_header, header_of
from exec.cluster.rows import Floats, Piece, RowMemory
from exec.priority import SHORT_SLICE_NS, ask_for_slice

AHEAD = 4
"""Receives posted ahead for each peer. More messages that nobody has read yet still arrive, only later."""

TAGS = 1 << 20


class Landing(NamedTuple):
    """A put that has arrived: its rows begin behind the header row of `piece`, which may be longer.

    counts: rows of each expert of the rank that computes them, as the sender wrote them. at_ns: when they were there by the
    device's own stamps, on this computer's clock; None: now.
    """

    peer: int
    number: int
    piece: Piece
    rows: int
    counts: NDArray[np.int32]
    at_ns: int | None = None


class PeerLost(ConnectionError):
    """The stream from or to a peer broke."""

    def __init__(self, peer: int, why: str) -> None:
        super().__init__(f"rank {peer}: {why}")
        self.peer = peer


class _Failed:
    """A receive that could not be posted."""

    def __init__(self, error: RuntimeError) -> None:
        self._error = error

    def wait(self, timeout: timedelta) -> None:
        raise self._error


class Mesh:
    """Streams of one run. Use as a context manager: leaving it takes in what is still to come.

    rows: memory that messages are sent from and land in, whose landing pieces hold the longest message. landed: the rows of
    a put are there, in a piece that is the callee's to give back. told(number): a signal. broke(error): a stream failed.
    They are called from receiving threads.
    stands: who is left of the peers goes on after a run that was given up, so its streams are brought to their end even then.
    """

    def __init__(
        self, rank: int, peers: Sequence[int], rows: RowMemory, counters: Counters, *, landed: Callable[[Landing], None],
        told: Callable[[int], None], broke: Callable[[BaseException], None], group: Group, stands: bool = False,
    ) -> None:  # fmt: skip
        self.rank = rank
        self.peers = [r for r in peers if r != rank]
        self._group, self._stands = group, stands
        self._rows = rows
        self._counters = counters
        self._landed, self._told, self._broke = landed, told, broke
        self._locks = {p: threading.Lock() for p in self.peers}
        self._posted: dict[int, deque[tuple[Any, Piece]]] = {p: deque() for p in self.peers}
        self._threads: list[threading.Thread] = []
        self._signals: list[tuple[int, Any]] = []
        """What must live until gloo has sent it, which it may not have when `isend` returns."""

    # Sending ------------------------------------------------------------------------------------

    def put(self, peer: int, number: int, piece: Piece, counts: Sequence[int]) -> None:
        """Send a piece whose first row is free for the header; returns when its memory may be written again.
        Raises PeerLost."""
        message = self._rows.of(piece)
        fill_header(message, DATA, number, piece.count - 1, counts)
        self._finish(peer, self._isend(peer, message))

    def signal(self, peer: int, number: int) -> None:
        """Tell a peer that task `number` has ended."""
        message = np.zeros((1, HEADER), np.float32)
        fill_header(message, SIGNAL, number, 0, ())
        self._signals.append((peer, self._isend(peer, message)))

    def _isend(self, peer: int, message: Floats) -> Any:
        with self._locks[peer]:
            tag = self._counters.next_sent(peer)
            try:
                return self._group.send(message, peer, tag)
            except RuntimeError as error:
                raise PeerLost(peer, first_line(error)) from error

    @staticmethod
    def _finish(peer: int, work: Any) -> None:
        """Wait for what was sent, or posted. Raises PeerLost."""
        try:
            work.wait(FOREVER)
        except RuntimeError as error:
            raise PeerLost(peer, first_line(error)) from error

    # Receiving ----------------------------------------------------------------------------------

    def __enter__(self) -> Mesh:
        for peer in self.peers:
            for _ in range(AHEAD):
                self._post(peer)
        for peer in self.peers:
            thread = threading.Thread(target=self._receive, args=(peer,), name=f"from-{peer}", daemon=True)
            self._threads.append(thread)
            thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Every peer ends its stream with as many messages as receives stay posted, so that none is left over."""
        if kind is not None:
            if not self._stands:
                return
            self._landed, self._told, self._broke = (lambda landing: self._rows.give(landing.piece)), _nobody, _nobody
        lost = [error for peer in self.peers if (error := self._end_stream(peer)) is not None]
        for thread in self._threads:
            thread.join()
        # They hold a run's memory, which whoever comes next needs; the cycle would be found much later.
        self._landed = self._told = self._broke = _over
        if lost and kind is None:
            raise lost[0]

    def _end_stream(self, peer: int) -> PeerLost | None:
        """The error where the peer is gone, and others are to go on; else it is raised."""
        last = np.zeros((1, HEADER), np.float32)
        fill_header(last, LAST, 0, 0, ())
        try:
            sent = [self._isend(peer, last) for _ in range(AHEAD)]
            for work in [*(work for p, work in self._signals if p == peer), *sent]:
                self._finish(peer, work)
        except PeerLost as error:
            if not self._stands:
                raise
            return error
        return None

    def _post(self, peer: int) -> None:
        piece = self._rows.land()
        tag = self._counters.next_received(peer)
        try:
            work = self._group.receive(self._rows.of(piece), peer, tag)
        except RuntimeError as error:
            if not self._stands:
                raise PeerLost(peer, first_line(error)) from error
            work = _Failed(error)  # the thread that receives tells, as of a stream that breaks later
        self._posted[peer].append((work, piece))

    def _receive(self, peer: int) -> None:
        ask_for_slice(SHORT_SLICE_NS)
        try:
            while self._take(peer):
                pass
        except BaseException as error:
            # Whatever went wrong on this thread, the run has to hear of it: the peer is lost, or what has come could not be used.
            self._broke(error)

    def _take(self, peer: int) -> bool:
        """Take the next message in; False after the last."""
        work, piece = self._posted[peer].popleft()
        self._finish(peer, work)
        kind, number, count, experts = header_of(self._rows.of(piece))
        if kind == LAST:
            self._drain(peer, piece)
            return False
        if kind == SIGNAL:
            self._rows.give(piece)
            self._post(peer)
            self._told(number)
            return True
        self._arrived(peer, number, piece, count, experts)
        return True

    def _arrived(self, peer: int, number: int, piece: Piece, count: int, experts: int) -> None:
        """A put's header, and here its rows too, are in `piece`."""
        self._post(peer)
        self._landed(Landing(peer, number, piece, count, counts_of(self._rows.of(piece), experts)))

    def _drain(self, peer: int, piece: Piece) -> None:
        self._rows.give(piece)
        while self._posted[peer]:
            work, piece = self._posted[peer].popleft()
            self._finish(peer, work)
            self._rows.give(piece)


def _nobody(message: object) -> None:
    """What comes after a run was given up."""


def _over(message: object) -> None:
    raise AssertionError(f"{message} came after the end")


class Counters:
    """How many messages went to and came from each peer, over all runs of a process: their tags."""

    def __init__(self) -> None:
        self._sent: dict[int, int] = {}
        self._received: dict[int, int] = {}

    def next_sent(self, peer: int) -> int:
        return self._next(self._sent, peer)

    def next_received(self, peer: int) -> int:
        return self._next(self._received, peer)

    @staticmethod
    def _next(counts: dict[int, int], peer: int) -> int:
        counts[peer] = counts.get(peer, -1) + 1
        return counts[peer] % TAGS


def first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
