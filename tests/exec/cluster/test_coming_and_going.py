"""Ranks and their controller: who cannot begin, and who leaves first."""

from __future__ import annotations

import os
import queue
import socket

import pytest

from exec.cluster import launch, rank, wire
from exec.cluster.controller import Cluster
from sim.errors import UserError


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
    class Ended(Exception):
        pass

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


def test_a_control_port_that_is_taken_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        monkeypatch.setattr(launch, "control_address", lambda: taken.getsockname()[:2])
        with pytest.raises(UserError, match=f"{launch.CONTROL_PORT}: port {taken.getsockname()[1]}"):
            Cluster(1).__enter__()
    launch.forget_addresses()
