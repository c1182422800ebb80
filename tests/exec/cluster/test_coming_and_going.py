"""Ranks and their controller: who cannot begin, and who leaves first."""

from __future__ import annotations

import multiprocessing
import os
import queue
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import AuthenticationError
from multiprocessing.connection import Listener
from types import SimpleNamespace

import pytest

from exec import priority
from exec.cluster import launch, rank, wire
from exec.cluster.controller import Cluster
from exec.cluster.members import called
from exec.cluster.mesh import PeerLost
from exec.cluster.standing import StandingCluster
from exec.runtime.errors import TaskFailed
from sim.errors import UserError


class Ended(Exception):
    """In place of the end of a process."""


class Gone:
    """A controller that says goodbye, or not, and is gone."""

    def __init__(self, *said: object) -> None:
        self._said = list(said)

    def poll(self, _: float) -> bool:
        return True

    def receive(self) -> object:
        if not self._said:
            raise EOFError
        return self._said.pop(0)

    def send(self, _: object) -> None:
        pass


@pytest.mark.parametrize(("said", "code"), [((wire.Bye(),), 0), ((), rank.RUN_FAILED)])
def test_a_controller_may_go_once_it_has_said_goodbye(
    said: tuple[object, ...], code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def leave(found: int) -> None:
        raise Ended(found)

    monkeypatch.setattr(os, "_exit", leave)
    monkeypatch.setattr(rank, "SILENCE_S", 0.0)
    listener = rank.Listener(Gone(*said), 0, quiet=False)  # type: ignore[arg-type]
    with pytest.raises(Ended, match=str(code)):
        listener.listen()
    assert (capsys.readouterr().err == "") == bool(said)
    if said:
        assert listener.orders.get_nowait() == said[0]
    else:
        with pytest.raises(queue.Empty):
            listener.orders.get_nowait()


@pytest.mark.parametrize(("error", "peer", "why"), [
    (PeerLost(1, "closed"), 1, "PeerLost: rank 1: closed"),
    (TaskFailed("task 5 (put) failed on lane 'put.0.1': PeerLost: rank 1: closed"), 1, "TaskFailed: task 5 (put) failed on lane"),
    (TaskFailed("task 5 (put) failed on lane 'put.0.1': RuntimeError: CUDA error: no\nmore lines"), -1, "TaskFailed: task 5 (put) failed"),
])  # fmt: skip
def test_a_rank_tells_in_one_line_whom_it_lacks(error: Exception, peer: int, why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A put that fails of a lost peer is no failure of the rank that sends."""
    if isinstance(error, TaskFailed):
        error.__cause__ = PeerLost(1, "closed") if peer == 1 else RuntimeError("CUDA error")
    controller = Gone()
    sent: list[wire.Broken] = []
    monkeypatch.setattr(controller, "send", sent.append)

    def sleep(_: float) -> None:
        raise Ended

    monkeypatch.setattr(rank, "time", SimpleNamespace(sleep=sleep))
    with pytest.raises(Ended):
        rank.Listener(controller, 0, quiet=False).broken(error)  # type: ignore[arg-type]
    assert sent[0].peer == peer
    assert sent[0].why.startswith(why) and "\n" not in sent[0].why


def test_ranks_of_one_group_after_ranks_that_outlive_each_other_do_not_look_for_the_store_of_those(monkeypatch: pytest.MonkeyPatch) -> None:
    """The process that forks all ranks keeps the environment in which the first were started."""
    seen: list[dict[str, str]] = []
    monkeypatch.setattr(multiprocessing, "set_start_method", lambda *_, **__: None)
    monkeypatch.setattr(rank, "main", lambda *_: seen.append({name: os.environ[name] for name in launch.TOLD if name in os.environ}) or 0)
    for name in launch.TOLD:
        monkeypatch.setenv(name, "of others")
    with pytest.raises(SystemExit):
        launch._child({"MASTER_ADDR": "127.0.0.1", "TANDEM_KEY": "key"}, 0, 2, "127.0.0.1", 1)
    assert seen == [{"MASTER_ADDR": "127.0.0.1", "TANDEM_KEY": "key"}]


@pytest.mark.parametrize("kind", [Cluster, StandingCluster])
def test_a_control_port_that_is_taken_is_named_and_nothing_is_left(kind: type[Cluster], monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        monkeypatch.setattr(launch, "control_address", lambda: taken.getsockname()[:2])
        with pytest.raises(UserError, match=f"{launch.CONTROL_PORT}: port {taken.getsockname()[1]}"), kind(1):
            pass
    assert not {"MASTER_ADDR", "TANDEM_KEY", launch.CONTROL_PORT, launch.STORE} & set(os.environ)


def test_ranks_that_are_never_entered_start_no_thread() -> None:
    before = threading.enumerate()
    Cluster(1)
    assert threading.enumerate() == before


@pytest.mark.parametrize(("own", "master"), [("http", "1"), ("0", "1"), ("", "65535")])
def test_a_control_port_that_is_none_is_refused(own: str, master: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in ((launch.CONTROL_PORT, own), ("MASTER_PORT", master), ("MASTER_ADDR", "127.0.0.1")):
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=f"{launch.CONTROL_PORT}: is {own or 65536}, .* a port of 1 to 65535 is needed"):
        launch.control_address()


def test_a_caller_that_does_not_say_who_it_is_is_hung_up_on(doors: Listener) -> None:
    with ThreadPoolExecutor(1) as pool:
        caller = pool.submit(falls_silent, *doors.address)
        with pytest.raises(EOFError):
            called(doors)
        with pytest.raises(EOFError):
            caller.result().receive()


def test_a_caller_of_another_kind_is_hung_up_on(doors: Listener) -> None:
    with ThreadPoolExecutor(1) as pool:
        caller = pool.submit(says_nothing_of_itself, *doors.address)
        with pytest.raises(EOFError, match="said NoneType before who it is"):
            called(doors)
        with pytest.raises(EOFError):
            caller.result().receive()


def test_a_call_that_is_not_taken_is_given_up(doors: Listener, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "CALL_S", 0.2)
    with pytest.raises(OSError):
        wire.connect(*doors.address)  # the system takes it, and nobody else does


def test_an_empty_key_is_none_that_all_know(doors: Listener, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TANDEM_KEY", "")
    assert wire.key() == b"0:0:" + os.environ.get("TORCHELASTIC_RUN_ID", "").encode()


@pytest.fixture
def doors(monkeypatch: pytest.MonkeyPatch) -> Iterator[Listener]:
    """Where ranks call."""
    for name in ("MASTER_ADDR", "MASTER_PORT", "TANDEM_KEY"):
        monkeypatch.setenv(name, "0")
    with wire.listen("127.0.0.1", 0, 1, 60.0) as door:
        yield door


def test_a_rank_with_another_key_says_so(doors: Listener, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("TANDEM_KEY", "another")
    monkeypatch.setattr(rank, "signal", SimpleNamespace(signal=lambda *_: None, SIGINT=0, SIG_IGN=0))
    with ThreadPoolExecutor(1) as pool:
        heard = pool.submit(called, doors)
        assert rank.main(0, 1, *doors.address, quiet=False) == rank.RUN_FAILED
        assert isinstance(heard.exception(), AuthenticationError)
    host, port = doors.address
    err = capsys.readouterr().err
    assert err == f"error: who listens at {host}:{port} has another key; TANDEM_KEY has to be the same for all ranks\n"


def test_a_caller_that_nobody_waits_for_is_hung_up_on(doors: Listener) -> None:
    """Of another run, or a second one of the same rank."""

    def call() -> None:
        for number in (5, 0):
            line = wire.connect(*doors.address)
            line.send(wire.Joined(number, 1, "here"))
            if number:
                with pytest.raises(EOFError):
                    line.receive()

    cluster = Cluster(1)
    with ThreadPoolExecutor(1) as pool:
        calls = pool.submit(call)
        cluster._welcome(doors)
        calls.result()
    assert cluster.members == [0]


def test_processes_that_were_started_end_where_one_cannot_be(monkeypatch: pytest.MonkeyPatch) -> None:
    class Process:
        exitcode: int | None = None

        def join(self, timeout: float | None = None) -> None:
            """It lives until it is killed."""

        def kill(self) -> None:
            self.exitcode = -9

    process = Process()

    def start(children: launch.Children, number: int) -> None:
        if number:
            raise OSError("no more processes")
        children._processes[number] = process  # type: ignore[assignment]

    monkeypatch.setattr(launch.Children, "start", start)
    with pytest.raises(OSError, match="no more processes"), Cluster(2):
        pass
    assert process.exitcode is not None


def test_wishes_that_cannot_be_granted_are_let_go() -> None:
    """A core that is not this process's, a thread that has ended: numbers beyond what a Linux has."""
    assert not priority.bind({1 << 9})
    assert not priority.ask_for_slice(priority.SHORT_SLICE_NS, 1 << 23)


def test_ranks_of_other_computers_take_no_cores_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """8 ranks, 4 on each computer, 2 threads each on 8 cores."""
    bound: list[list[int]] = []
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr(priority, "bind", bound.append)
    priority.own_cores(5, 8, 2)
    assert bound == []
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_RANK", "1")
    priority.own_cores(5, 8, 2)
    assert bound == [[2, 3]]


def falls_silent(host: str, port: int) -> wire.Line:
    line = wire.connect(host, port)
    with socket.socket(fileno=os.dup(line.connection.fileno())) as end:
        end.shutdown(socket.SHUT_WR)
    return line


def says_nothing_of_itself(host: str, port: int) -> wire.Line:
    line = wire.connect(host, port)
    line.send(None)
    return line
