"""A service that runs for days: what has ended is handed out and forgotten, and rules about it still hold."""

from __future__ import annotations

import pytest

from exec.runtime import ThreadEngine
from exec.runtime.board import Board
from exec.runtime.records import record_of
from exec.state import Sequences
from sim.engines.run import FAILED
from sim.errors import UserError
from sim.events import Request
from sim.machines.schema import Lane
from tests.exec.runtime.support import Functions, Profile, machine, task, until


def board() -> Board:
    return Board([Lane(name="a", kind="compute", servers=8, order="ready")], {})


def run_through(b: Board, *numbers: int) -> None:
    b.submit([record_of(task(n)) for n in numbers], 0)
    while started := b.start(0):
        for t in started:
            b.done(t, None, 1)


def test_an_ended_task_satisfies_a_dependency_that_names_it_later() -> None:
    b = board()
    run_through(b, 0, 1, 5)
    b.submit([record_of(task(6, deps=(0, 5)))], 2)
    assert [t.number for t in b.start(2)] == [6]


@pytest.mark.parametrize("never", [2, 4, 7, 9])
def test_a_number_between_those_submitted_is_still_none(never: int) -> None:
    b = board()
    run_through(b, 0, 1, 5, 6)
    with pytest.raises(UserError, match=f"depends on task {never}, which was not submitted before it"):
        b.submit([record_of(task(8, deps=(never,)))], 2)
    with pytest.raises(UserError, match=r"Cancel\(3\): no such task"):
        b.cancel(3, "gone", 2)
    assert b.cancel(5, "too late", 2) is None


def test_a_task_does_not_wait_for_itself() -> None:
    with pytest.raises(UserError, match="depends on task 0, which was not submitted before it"):
        board().submit([record_of(task(0, deps=(0,)))], 0)


def test_a_lost_dependency_is_remembered() -> None:
    b = board()
    b.submit([record_of(task(0))], 0)
    (started,) = b.start(0)
    b.fail(started, "broken", 0.5, FAILED, 1)
    b.submit([record_of(task(1, deps=(0,)))], 2)
    assert "dependency 0 failed" in str(b.events[-1])


def test_nothing_is_kept_of_tasks_that_are_done() -> None:
    b = board()
    run_through(b, *range(1000))
    assert not b._known and not b._lost
    assert b._runs == [(0, 999)]
    assert b.oldest == 1000


def test_the_timeline_is_handed_out_in_pieces() -> None:
    with ThreadEngine(machine("a"), Functions(), Profile(), []) as engine:
        engine.submit([task(0), task(1)])
        until(lambda: len(engine._board.ended) == 2)
        first = engine.drain()
        assert first.number.tolist() == [0, 1] and len(first.sources) == 2
        engine.submit([task(2)])
        until(lambda: len(engine._board.ended) == 1)
        second = engine.drain()
    assert second.number.tolist() == [2]
    assert [s.number for s in second.sources] == [2]
    assert len(engine.run()) == 0


def test_tokens_of_ended_sequences_are_handed_out_once() -> None:
    sequences = Sequences([Request(0, 2, 2), Request(1, 1, 3)], [[1, 2], [3]], 10)
    sequences.sampled([0, 1], [4, 5])
    assert sequences.hand_out() == {}
    sequences.sampled([0, 1], [6, 7])
    assert sequences.hand_out() == {0: [4, 6]}
    sequences.sampled([1], [8])
    assert sequences.hand_out() == {1: [5, 7, 8]}
    assert sequences.hand_out() == {}
