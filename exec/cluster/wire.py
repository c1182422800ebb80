"""The line between the controller and a rank: Python objects over a socket, one sender at a time."""

from __future__ import annotations

import os
import socket
import struct
import threading
from dataclasses import dataclass
from multiprocessing.connection import Connection, Listener, answer_challenge, deliver_challenge
from typing import Any

from exec.cluster.engine import Stamp
from exec.cluster.job import Order
from sim.events import Result
from sim.plan import Plan
from sim.tasks import Time

HEARTBEAT_S = 0.1
"""How often a rank says that it lives, and what has ended since."""

SILENCE_S = 3.0
"""A process that was not heard of for so long has stalled, whatever it was doing: heartbeats have a thread of their own, and
loading and compiling leave it its turns."""

OPENING_S = 60.0
"""As `SILENCE_S`, of a process that opens a device: torch holds Python's lock while CUDA starts and loads its kernels, and no thread
of the process can say anything."""

CONNECT_S = 60.0
"""How long ranks wait for the controller to listen, and it for them."""

CALL_S = CONNECT_S / 6
"""How long a rank waits for its call to be taken before it calls again."""

GROUP_S = 20.0
"""How long the ranks of a group wait for each other, where groups are formed again."""


class Line:
    """One end of a connection. `send` may be called from any thread.

    `send` and `receive` raise BlockingIOError, an OSError, after `SILENCE_S` at most, where a message has begun and the other end
    takes or gives nothing more of it: it has stalled in the middle.
    """

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self._lock = threading.Lock()
        with socket.socket(fileno=os.dup(connection.fileno())) as end:
            _limit_waits(end)

    def send(self, message: Any) -> None:
        with self._lock:
            self.connection.send(message)

    def send_unless_busy(self, message: Any) -> None:
        """Not while another thread sends: who takes that hears from this end anyway."""
        if self._lock.acquire(blocking=False):
            try:
                self.connection.send(message)
            finally:
                self._lock.release()

    def receive(self) -> Any:
        return self.connection.recv()

    def poll(self, timeout_s: float) -> bool:
        return self.connection.poll(timeout_s)

    def close(self) -> None:
        self.connection.close()


def _limit_waits(end: socket.socket, seconds: float = SILENCE_S / 3) -> None:
    """Timeouts of the operating system, which the blocking calls of a Connection do not know of. A call that got somewhere
    returns after as long, and so does the next, for which the buffers were made a little larger; then one fails: hence a third."""
    timeout = struct.pack("ll", *divmod(int(seconds * 1e6), 1_000_000))
    end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeout)
    end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeout)


def key() -> bytes:
    """What both ends must know. Ranks of one launch share it through the environment. Never empty: without a key nobody is asked for it."""
    env = os.environ
    launch = f"{env['MASTER_ADDR']}:{env['MASTER_PORT']}:{env.get('TORCHELASTIC_RUN_ID', '')}"
    return (env.get("TANDEM_KEY") or launch).encode()


# From rank to controller ------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Joined:
    """host: name of the computer, or of the network namespace, that the rank runs in."""

    rank: int
    pid: int
    host: str


def host() -> str:
    """What tells this process's network stack from others."""
    namespace = "/proc/self/ns/net"
    return f"{os.uname().nodename} {os.stat(namespace).st_ino if os.path.exists(namespace) else ''}"


@dataclass(frozen=True, slots=True)
class Beat:
    """The rank lives. stamps: what has ended since the last one. idle: what blocked tasks wait for, where none runs."""

    stamps: list[Stamp]
    ended: int
    idle: str


@dataclass(frozen=True, slots=True)
class Pong:
    """The rank's clock when it read `ping`."""

    ping: int
    ns: int


@dataclass(frozen=True, slots=True)
class Ready:
    """An order was prepared, or a plan split: the rank can begin."""


@dataclass(frozen=True, slots=True)
class Event:
    now: Time
    number: int
    result: Result


@dataclass(frozen=True, slots=True)
class Finished:
    """All tasks of the rank's share have ended. outputs: see `exec.cluster.backend`."""

    stamps: list[Stamp]
    outputs: Any


@dataclass(frozen=True, slots=True)
class Broken:
    """The rank cannot go on. peer: the rank whose stream broke, else -1. bad_input: a UserError's text."""

    why: str
    peer: int = -1
    bad_input: bool = False


@dataclass(frozen=True, slots=True)
class Halted:
    """Answer to Halt: nothing runs here any more. stamps: what had ended and was under way."""

    number: int
    stamps: list[Stamp]


@dataclass(frozen=True, slots=True)
class Last:
    """Answer to Stop: what had ended and what was under way."""

    stamps: list[Stamp]


# From controller to rank ------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Ping:
    ping: int


@dataclass(frozen=True, slots=True)
class Prepare:
    order: Order


@dataclass(frozen=True, slots=True)
class Take:
    """states: rows of requests that the plan goes on with, where it serves some (`exec.cluster.placed`)."""

    plan: Plan
    states: Any = None


@dataclass(frozen=True, slots=True)
class Begin:
    """Start at `origin_ns` of the rank's own clock."""

    origin_ns: int


@dataclass(frozen=True, slots=True)
class Regroup:
    """Form a process group with these ranks; `epoch` is its number."""

    epoch: int
    members: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Halt:
    """Give up what runs, and say so with the same number: a rank was lost, others go on."""

    number: int


@dataclass(frozen=True, slots=True)
class Alive:
    """The controller lives."""


@dataclass(frozen=True, slots=True)
class Stop:
    """The run is over because of `why`; the process ends."""

    why: str


@dataclass(frozen=True, slots=True)
class Bye:
    """Nothing more to do."""


# Either way --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Patience:
    """From here on the sender may be silent for so long; it is `SILENCE_S` until something else is said."""

    silence_s: float


def listen(host: str, port: int, ranks: int, patience_s: float) -> Listener:
    """Takes calls; `accept` raises TimeoutError after `patience_s` without one, and OSError where a caller falls silent."""
    listener = Listener((host, port), backlog=ranks, authkey=key())
    end = listener._listener._socket  # type: ignore[attr-defined]
    end.settimeout(patience_s)
    _limit_waits(end)  # those who call inherit it: they answer a challenge first
    return listener


def connect(host: str, port: int) -> Line:
    """Raises OSError where nobody takes the call for long, and AuthenticationError where the keys differ."""
    with socket.create_connection((host, port), timeout=CALL_S) as end:
        end.settimeout(None)
        _limit_waits(end, CALL_S)
        connection = Connection(end.detach())
    try:
        answer_challenge(connection, key())
        deliver_challenge(connection, key())
    except BaseException:
        connection.close()
        raise
    return Line(connection)
