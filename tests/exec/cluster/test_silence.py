"""How long ranks and their controller may be silent, by a clock that stands still until it is moved on."""

from __future__ import annotations

import multiprocessing
import os
from types import SimpleNamespace

import pytest
import torch

from exec.backends.cuda.torch_device import CudaStream
from exec.cluster import members, rank, wire
from exec.cluster.controller import Cluster
from exec.cluster.losses import RankLost
from exec.cluster.members import Member
from exec.cluster.wire import OPENING_S, SILENCE_S, Line


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


def pipe() -> tuple[Line, Line]:
    here, there = multiprocessing.Pipe()
    return Line(here), Line(there)


def test_a_rank_that_opens_a_device_may_be_silent_for_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where it says that it lives for a moment more."""
    clock = Clock()
    monkeypatch.setattr(members, "time", SimpleNamespace(monotonic=clock.monotonic))
    cluster, (line, other) = Cluster(1), pipe()
    cluster._looked = clock.now
    cluster._members[0] = Member(0, 1, "here", line, clock.now)

    def later(seconds: float) -> None:
        """In steps in which this process can be seen to have run."""
        until = clock.now + seconds
        while clock.now < until:
            clock.now += 1.0
            cluster.hear(0.0)

    for message in (wire.Patience(OPENING_S), wire.Beat([], 0, "")):
        other.send(message)
    later(OPENING_S - 2.0)
    other.send(wire.Patience(SILENCE_S))
    later(SILENCE_S)
    with pytest.raises(RankLost, match="rank 0 was lost: it has stalled, nothing was heard of it for 3 s"):
        later(2.0)


class Ended(Exception):
    """In place of the end of a process."""


class Quiet:
    """A controller that has said something once. Each look at the line takes a second."""

    def __init__(self, clock: Clock, *said: object) -> None:
        self._clock, self._said = clock, list(said)

    def poll(self, _: float) -> bool:
        self._clock.now += 1.0
        return bool(self._said)

    def receive(self) -> object:
        return self._said.pop(0)

    def send(self, _: object) -> None:
        pass


@pytest.mark.parametrize(("said", "seconds"), [((), SILENCE_S), ((wire.Patience(OPENING_S),), OPENING_S)])
def test_a_rank_is_patient_with_a_controller_that_opens_a_device(
    said: tuple[object, ...], seconds: float, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def leave(_: int) -> None:
        raise Ended

    clock = Clock()
    monkeypatch.setattr(rank, "time", SimpleNamespace(monotonic=clock.monotonic))
    monkeypatch.setattr(os, "_exit", leave)
    began = clock.now
    with pytest.raises(Ended):
        rank.Listener(Quiet(clock, *said), 0, quiet=False).listen()  # type: ignore[arg-type]
    assert seconds < clock.now - began <= seconds + 2.0
    assert capsys.readouterr().err == f"error: the controller has stalled: nothing was heard of it for {seconds:g} s\n"


def test_nobody_waits_for_word_because_another_is_sent_a_lot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(members, "PULSE_S", 0.001)
    (busy, _), (line, other) = pipe(), pipe()
    pulse = members.Pulse()
    pulse.lines += [busy, line]
    with busy._lock:  # as while a large message is on its way
        pulse.start()
        assert other.poll(60.0)
        pulse.stop()
    assert other.receive() == wire.Alive()


def test_a_controller_that_opens_a_device_says_so_before_and_after() -> None:
    cluster, (line, other) = Cluster(1), pipe()
    cluster._members[0] = Member(0, 1, "here", line, 0.0)
    with cluster.opening():
        assert other.receive() == wire.Patience(OPENING_S)
        assert not other.poll(0.0)
    assert other.receive() == wire.Patience(SILENCE_S)


@pytest.mark.parametrize("asleep", [False, True])
def test_who_waits_for_a_device_of_ranks_does_not_spin(asleep: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[dict[str, bool]] = []

    def event(**options: bool) -> SimpleNamespace:
        made.append(options)
        return SimpleNamespace(record=lambda stream: None)

    monkeypatch.setattr(torch.cuda, "Event", event)
    monkeypatch.setattr(torch.cuda, "Stream", lambda *_, **__: None)
    CudaStream("gpu", torch.device("cuda"), 0, asleep).record()
    assert made == [{"enable_timing": True, "blocking": asleep}]
