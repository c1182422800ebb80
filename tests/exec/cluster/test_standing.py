"""StandingCluster: replacements that are lost on their way, groups that do not form, with processes that are scripted."""

from __future__ import annotations

import multiprocessing
import threading
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from exec.cluster import standing, wire
from exec.cluster.controller import Member
from exec.cluster.job import Order
from exec.cluster.losses import RankLost, RunStopped
from exec.cluster.standing import TRIES, StandingCluster
from exec.cluster.wire import CONNECT_S, SILENCE_S, Line
from tests.exec.tiny import spec


class Clock:
    """Stands still until it is moved on."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


class Children:
    """Processes that are none. did: what was asked of them. how: how all of them have ended."""

    def __init__(self) -> None:
        self.did: list[str] = []
        self.how = ""

    def start(self, rank: int) -> None:
        self.did.append(f"start {rank}")

    def kill(self, rank: int) -> None:
        self.did.append(f"kill {rank}")

    def ended(self, rank: int) -> str:
        return self.how

    def how_it_ended(self, rank: int) -> str:
        return "closed its connection"

    def pid(self, rank: int) -> int:
        return 100 + self.did.count(f"start {rank}")

    def end(self) -> None:
        pass


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(standing, "time", SimpleNamespace(monotonic=clock.monotonic))
    return clock


@pytest.fixture
def cluster(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandingCluster]:
    """Rank 0 of 2 is there; rank 1 is lost."""
    for name in ("MASTER_ADDR", "MASTER_PORT", "TANDEM_KEY"):
        monkeypatch.setenv(name, "0")
    cluster, children = StandingCluster(2), Children()
    cluster._children, cluster._own_address = children, False  # type: ignore[assignment]
    cluster._listener = wire.listen("127.0.0.1", 0, 2, wire.HEARTBEAT_S)
    cluster._order = Order(spec(), 2, 0)
    cluster._members[0], other = member(0, 100)
    other.send(wire.Last([]))  # whatever it is told
    yield cluster
    cluster._end_processes()
    other.close()


def member(rank: int, pid: int) -> tuple[Member, Line]:
    """A rank that has called at time 0, and its own end of the line."""
    here, there = multiprocessing.Pipe()
    return Member(rank, pid, "here", Line(here), 0.0), Line(there)


def call(cluster: StandingCluster) -> Line:
    """The process that was started last as rank 1 calls."""
    assert cluster._children is not None
    caller, other = member(1, cluster._children.pid(1) or 0)
    cluster._pulse.lines.append(caller.line)
    cluster._called.put(caller)
    return other


def did(cluster: StandingCluster) -> list[str]:
    return cluster._children.did  # type: ignore[union-attr]


def stops(cluster: StandingCluster, why: str) -> None:
    with pytest.raises(RunStopped, match=f"rank 1 could not be replaced: {TRIES} processes .*{why}"):
        cluster.come()
    assert did(cluster) == ["kill 1", "start 1"] * TRIES


def test_replacements_that_end_before_they_call_end_the_run_after_a_few(cluster: StandingCluster) -> None:
    cluster.replace(1)
    assert cluster.come() == []
    cluster._children.how = "ended with code 1"  # type: ignore[union-attr]
    for _ in range(TRIES - 1):
        assert cluster.come() == []
    stops(cluster, "ended with code 1")


def test_replacements_that_do_not_call_are_given_up(cluster: StandingCluster, clock: Clock) -> None:
    cluster.replace(1)
    for _ in range(TRIES - 1):
        clock.now += CONNECT_S + 1.0
        assert cluster.come() == []
    clock.now += CONNECT_S + 1.0
    stops(cluster, "did not call")


def test_a_replacement_that_falls_silent_is_replaced(cluster: StandingCluster, clock: Clock) -> None:
    """One that says that it lives is not, however long it loads; each that is started is killed first."""
    cluster.replace(1)
    silent = call(cluster)
    for _ in range(3):
        clock.now += SILENCE_S - 0.5
        silent.send(wire.Beat([], 0, ""))
        assert cluster.come() == []
    assert did(cluster) == ["kill 1", "start 1"]
    clock.now += SILENCE_S + 0.5
    assert cluster.come() == []
    assert did(cluster) == ["kill 1", "start 1"] * 2
    with call(cluster).connection as ready:
        ready.send(wire.Ready())
        assert cluster.come() == [1]
        assert isinstance(ready.recv(), wire.Prepare)


def test_a_replacement_that_dies_or_fails_after_its_call_is_replaced(cluster: StandingCluster) -> None:
    cluster.replace(1)
    call(cluster).close()
    assert cluster.come() == []
    assert did(cluster) == ["kill 1", "start 1"] * 2
    second = call(cluster)
    second.send(wire.Broken("no memory"))
    assert cluster.come() == []
    third = call(cluster)
    third.send(wire.Broken("no memory"))
    stops(cluster, "no memory")


def test_a_call_of_one_that_was_replaced_since_is_not_taken(cluster: StandingCluster) -> None:
    cluster.replace(1)
    late = call(cluster)
    cluster.replace(1)
    assert cluster.come() == []
    with pytest.raises(EOFError):
        late.receive()
    assert len(did(cluster)) == 4


def test_a_group_that_does_not_form_though_all_live_ends_the_run(
    cluster: StandingCluster, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def silence(timeout_s: float) -> list[tuple[int, object]]:
        clock.now += timeout_s
        return []

    monkeypatch.setattr(cluster, "hear", silence)
    with pytest.raises(RunStopped, match=f"forming a group: not done within {wire.GROUP_S + wire.SILENCE_S:g} s by ranks 0"):
        cluster.regroup()


def test_a_rank_that_lives_and_does_not_give_up_what_ran_ends_the_run(
    cluster: StandingCluster, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def others(timeout_s: float) -> list[tuple[int, object]]:
        clock.now += timeout_s
        return [(1, wire.Halted(1, []))]

    cluster._members[1], other = member(1, 101)
    other.send(wire.Last([]))
    monkeypatch.setattr(cluster, "hear", others)
    with pytest.raises(RunStopped, match="giving up what ran: not done within 60 s by ranks 0$"):
        cluster.halt()
    other.close()


def test_a_rank_lost_while_ranks_prepare_ends_the_run_even_where_one_ran_before(cluster: StandingCluster) -> None:
    """The order of the run before is void: nobody could go on with it."""
    cluster._members[1], other = member(1, 101)
    cluster._pulse.lines += [m.line for m in cluster._members.values()]
    other.close()
    with pytest.raises(RankLost, match="rank 1 was lost: closed its connection; the other ranks were stopped"):
        cluster.prepare(Order(spec(), 2, 0))


def test_nobody_waits_for_calls_after_the_end(cluster: StandingCluster) -> None:
    before = set(threading.enumerate())
    cluster.replace(1)
    (waits,) = set(threading.enumerate()) - before
    cluster._end_processes()
    waits.join()
