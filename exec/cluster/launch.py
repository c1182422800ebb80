"""Starting ranks: as children of this process, or, under torchrun, one by whoever started them all.

`python -m exec run --ranks N` starts N children. Under torchrun every process runs the same command: rank 0
becomes the controller and starts a child that is rank 0's worker; the others are workers themselves.
Either way the controller is a process of its own, so that any rank may be lost and the story be told.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import secrets
import signal
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from multiprocessing import forkserver, resource_tracker
from multiprocessing.process import BaseProcess

from sim.errors import UserError

GRACE_S = 1.0
"""How long a process that was told to end may take, before it is killed."""

CONTROL_PORT = "TANDEM_CONTROL_PORT"
STORE = "TANDEM_STORE"
"""Port of the store by which ranks that outlive each other form their groups; not set: they are one group for good."""
TOLD = ("MASTER_ADDR", "MASTER_PORT", "TANDEM_KEY", "GLOO_SOCKET_IFNAME", STORE)
"""What ranks are told of the environment."""


def place() -> tuple[int, int] | None:
    """(rank, ranks) where this process was started as one of several, as torchrun does; else None.

    Raises UserError for an environment that says so by halves.
    """
    if "RANK" not in os.environ and "WORLD_SIZE" not in os.environ:
        return None
    values = {}
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        if name not in os.environ:
            raise UserError(f"environment: {name} is missing; torchrun sets RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT")
        values[name] = os.environ[name]
    if not (values["RANK"].isdecimal() and values["WORLD_SIZE"].isdecimal() and values["MASTER_PORT"].isdecimal()):
        raise UserError("environment: RANK, WORLD_SIZE and MASTER_PORT must be whole numbers")
    rank, ranks = int(values["RANK"]), int(values["WORLD_SIZE"])
    if rank >= ranks:
        raise UserError(f"environment: RANK is {rank} of {ranks}; 0 to {ranks - 1} is needed")
    return rank, ranks


def control_address() -> tuple[str, int]:
    """Where the controller listens: on MASTER_ADDR, at the port above MASTER_PORT unless TANDEM_CONTROL_PORT names another.
    Raises UserError for what is no port."""
    port = os.environ.get(CONTROL_PORT) or str(int(os.environ["MASTER_PORT"]) + 1)
    if not port.isdecimal() or not 0 < int(port) < 1 << 16:
        raise UserError(f"{CONTROL_PORT}: is {port}, by default the one above MASTER_PORT; a port of 1 to 65535 is needed")
    return os.environ["MASTER_ADDR"], int(port)


def choose_addresses() -> None:
    """An address for a launch on this computer alone, and a key that only its processes know."""
    os.environ["MASTER_ADDR"] = "127.0.0.1"
    first, second = _free_ports(2)
    os.environ["MASTER_PORT"], os.environ[CONTROL_PORT] = str(first), str(second)
    os.environ["TANDEM_KEY"] = secrets.token_hex(16)


def forget_addresses() -> None:
    for name in ("MASTER_ADDR", "MASTER_PORT", CONTROL_PORT, "TANDEM_KEY", STORE):
        os.environ.pop(name, None)


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


class Children:
    """Ranks that this process has started."""

    def __init__(self, ranks: range, world: int) -> None:
        self._address = control_address()
        self._environment = {k: os.environ[k] for k in TOLD if k in os.environ}
        self._context = multiprocessing.get_context("forkserver")
        self._world = world
        _register_end()
        self._context.set_forkserver_preload(["exec.cluster.worker", "numba.np.ufunc.parallel"])
        self._processes: dict[int, BaseProcess] = {}
        self._started: dict[int, float] = {}
        try:
            with _deaf_to_interrupts():
                forkserver.ensure_running()
            for rank in ranks:
                self.start(rank)
        except BaseException:  # also Ctrl-C
            self.end()
            raise

    def start(self, rank: int) -> None:
        """A process for a rank; the one that it replaces, if any, has been killed."""
        if rank in self._processes:
            self._processes[rank].join()
        arguments = (self._environment, rank, self._world, *self._address)
        process = self._context.Process(target=_child, args=arguments, name=f"rank-{rank}", daemon=True)
        process.start()  # returns when it runs, all that takes long being imported
        self._processes[rank] = process
        self._started[rank] = time.monotonic()

    def silent_s(self, rank: int) -> float:
        """How long a child that has not called runs; 0 where it is not ours."""
        return time.monotonic() - self._started[rank] if rank in self._started else 0.0

    def count_from(self, now: float) -> None:
        """What children did until then does not count against them."""
        self._started = dict.fromkeys(self._started, now)

    def pid(self, rank: int) -> int | None:
        """Of the process that was started last as this rank; None where it is not ours."""
        process = self._processes.get(rank)
        return None if process is None else process.pid

    def how_it_ended(self, rank: int) -> str:
        """What became of a child whose connection broke; empty where it is not ours."""
        process = self._processes.get(rank)
        if process is None:
            return ""
        process.join(GRACE_S)
        return self.ended(rank) or "closed its connection"

    def ended(self, rank: int) -> str:
        """How a child has ended; empty where it has not, or is not ours."""
        process = self._processes.get(rank)
        if process is None or (code := process.exitcode) is None:
            return ""
        return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"

    def kill(self, rank: int) -> None:
        """End a child that does nothing any more; also one that is stopped."""
        if rank in self._processes:
            self._processes[rank].kill()

    def end(self) -> None:
        """Wait a moment for them to end, then kill those that have not: none is left behind."""
        deadline = time.monotonic() + GRACE_S
        for process in self._processes.values():
            process.join(max(0.0, deadline - time.monotonic()))
        for process in self._processes.values():
            if process.exitcode is None:
                process.kill()  # also ends one that is stopped
                process.join()


@contextmanager
def _deaf_to_interrupts() -> Iterator[None]:
    """For processes that are started meanwhile, for good: Ctrl-C is for the one that commands them. The one that forks the ranks would
    otherwise print where it was while it imports."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may say so; where another one starts ranks, nobody sits at a terminal
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@cache
def _register_end() -> None:
    """At exit, wait for the process that forks the ranks and for the one that watches semaphores: whoever waits for this
    process finds nothing left of it."""
    for helper in (resource_tracker._resource_tracker, forkserver._forkserver):  # ended in reverse order
        atexit.register(helper._stop)


def _child(environment: Mapping[str, str], rank: int, world: int, host: str, port: int) -> None:
    for name in TOLD:  # those of whoever was started first by the process that forks the ranks, and may be long gone
        os.environ.pop(name, None)
    os.environ.update(environment)
    # Numba makes a lock by this rule. A "forkserver" lock would be reported as leaked whenever a rank is killed.
    multiprocessing.set_start_method("fork", force=True)
    from exec.cluster.rank import main

    raise SystemExit(main(rank, world, host, port))
