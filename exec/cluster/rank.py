"""A rank: a process that does what the controller orders, until it says goodbye or something is lost.

Two threads talk to the controller: this module's listener answers pings at once, says every tenth of a
second that the rank lives (and what has ended since), and ends the process when the run is stopped or
the controller is gone, whatever the others wait for; the main thread does the work.
"""

from __future__ import annotations

import os
import queue
import signal
import sys
import threading
import time
from multiprocessing import AuthenticationError
from typing import TYPE_CHECKING, NoReturn

from exec.cluster import wire
from exec.cluster.engine import PATIENCE_S
from exec.cluster.wire import HEARTBEAT_S, SILENCE_S, Line
from exec.runtime.errors import TaskFailed

if TYPE_CHECKING:
    from exec.cluster.worker import Worker

RUN_FAILED = 1


class GivenUp(Exception):
    """The controller wants a run ended that others cannot go on with."""


def cause_of(error: BaseException) -> BaseException | None:
    """What a task failed of; else the error itself."""
    return error.__cause__ if isinstance(error, TaskFailed) else error


def main(rank: int, ranks: int, host: str, port: int, quiet: bool = True) -> int:
    """Serve the controller at host:port; exit code. quiet: somebody else tells the user why a run ended."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the controller hears Ctrl-C, and tells
    try:
        line = _connect(host, port)
    except ConnectionError as error:
        if not quiet:
            print(f"error: {error}", file=sys.stderr)
        return RUN_FAILED
    line.send(wire.Joined(rank, os.getpid(), wire.host()))
    listener = Listener(line, rank, quiet)
    threading.Thread(target=listener.listen, name="listener", daemon=True).start()
    try:
        _worker(rank, ranks, line, listener).serve()
    except BaseException as error:
        # Whatever it is, the controller tells it; this process waits to be stopped.
        listener.broken(error)
    line.close()
    return 0


def _worker(rank: int, ranks: int, line: Line, listener: Listener) -> Worker:
    """Imports torch and the kernels: after the controller knows that the process lives."""
    from exec.cluster.launch import STORE
    from exec.cluster.standing_worker import StandingWorker
    from exec.cluster.worker import Worker

    return (StandingWorker if STORE in os.environ else Worker)(rank, ranks, line, listener)


def _connect(host: str, port: int) -> Line:
    """The controller may not listen yet. Raises ConnectionError after a while, or where it has another key."""
    give_up = time.monotonic() + wire.CONNECT_S
    while True:
        try:
            return wire.connect(host, port)
        except AuthenticationError:
            raise ConnectionError(f"who listens at {host}:{port} has another key; TANDEM_KEY has to be the same for all ranks") from None
        except (EOFError, OSError) as error:
            if time.monotonic() > give_up:
                raise ConnectionError(f"no controller at {host}:{port} after {wire.CONNECT_S:g} s ({error})") from None
            time.sleep(0.05)


class Listener:
    """Reads what the controller sends. orders: what the main thread has to do. engine: set while a run goes on."""

    def __init__(self, line: Line, rank: int, quiet: bool) -> None:
        self.orders: queue.SimpleQueue[object] = queue.SimpleQueue()
        self.engine = None
        self._line, self._rank, self._quiet = line, rank, quiet
        self._ended = 0
        self._patience_s = SILENCE_S
        self._dismissed = False
        """Whether the last order has come: the controller may go from then on."""

    def listen(self) -> None:
        from exec.priority import SHORT_SLICE_NS, ask_for_slice

        ask_for_slice(SHORT_SLICE_NS)
        heard = asked = time.monotonic()
        beaten = 0.0
        try:
            while True:
                if self._line.poll(HEARTBEAT_S):
                    heard = time.monotonic()
                    self._take(self._line.receive())
                now = time.monotonic()
                if now - asked > SILENCE_S / 2:
                    heard = now  # this process itself did not run: nobody can be blamed for the silence
                asked = now
                if now - heard > self._patience_s:
                    self._stalled(self._patience_s)
                if now - beaten >= HEARTBEAT_S:
                    self._line.send(self._beat())
                    beaten = now
        except BlockingIOError:
            self._stalled(SILENCE_S)
        except (EOFError, OSError):
            if not self._dismissed:
                self._leave("the controller is gone")
            time.sleep(SILENCE_S)  # the main thread ends the process; unless it waits for a peer that is gone
            os._exit(0)

    def _take(self, message: object) -> None:
        if isinstance(message, wire.Ping):
            self._line.send(wire.Pong(message.ping, time.perf_counter_ns()))
        elif isinstance(message, wire.Stop):
            self._line.send(wire.Last(self._last()))
            self._leave(message.why)
        elif isinstance(message, wire.Patience):
            self._patience_s = message.silence_s
        elif not isinstance(message, wire.Alive):
            self._dismissed = isinstance(message, wire.Bye)
            self.orders.put(message)
            if isinstance(message, wire.Halt) and (engine := self.engine) is not None:
                engine.lost(GivenUp())

    def _beat(self) -> wire.Beat:
        engine = self.engine
        if engine is None:
            return wire.Beat([], self._ended, "")
        stamps = engine.stamps(PATIENCE_S)
        self._ended += len(stamps)
        return wire.Beat(stamps, self._ended, engine.idle())

    def _last(self) -> list:
        engine = self.engine
        return [] if engine is None else [*engine.stamps(), *engine.unfinished()]

    def broken(self, error: BaseException) -> NoReturn:
        """Tell the controller that this rank cannot go on, and wait for its word."""
        from exec.cluster.mesh import PeerLost, first_line
        from sim.errors import UserError

        cause = cause_of(error)
        peer = cause.peer if isinstance(cause, PeerLost) else -1
        why = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {first_line(error)}"
        try:
            self._line.send(wire.Broken(why, peer, isinstance(error, UserError)))
        except OSError:
            self._leave("the controller is gone")
        while True:
            time.sleep(1.0)

    def _stalled(self, silence_s: float) -> NoReturn:
        self._leave(f"the controller has stalled: nothing was heard of it for {silence_s:g} s")

    def _leave(self, why: str) -> NoReturn:
        """End the process at once: its threads may wait for peers that are gone, and nothing here needs cleaning up."""
        if not self._quiet:
            print(f"error: {why}", file=sys.stderr, flush=True)
        os._exit(RUN_FAILED)
