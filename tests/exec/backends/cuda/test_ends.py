"""Tokens of tasks, of joins and of pool units."""

from __future__ import annotations

import threading

from exec.backends.cuda.device import Token
from exec.backends.cuda.ends import Ends, StreamPools
from exec.backends.cuda.standin import StandIn
from exec.runtime.records import record_of
from tests.exec.runtime.support import task


class Held:
    """A stream whose work waits until it is let go."""

    def __init__(self) -> None:
        self.device = StandIn()
        self.stream = self.device.stream("gpu")
        self._gate = threading.Event()
        self.ends = Ends(self.device)
        self.stream.run(lambda: self._gate.wait(10) and None)

    def enqueue(self, number: int) -> Token:
        started = self.stream.record()
        ended = Token(self.stream, self.stream.record())
        self.ends.enqueued(number, started, ended)
        return ended

    def let_go(self) -> None:
        self._gate.set()
        self.device.synchronize()


def test_a_join_stands_for_what_it_joins() -> None:
    held = Held()
    a, b = held.enqueue(0), held.enqueue(1)
    held.ends.joined(2, [0, 1])
    held.ends.joined(3, [2])
    assert held.ends.of([3]) == [a, b]
    held.let_go()


def test_a_task_of_a_host_thread_is_over() -> None:
    held = Held()
    held.ends.on_host(0, 5, 9)
    assert held.ends.of([0]) == []
    held.let_go()
    assert held.ends.stamps() == {0: (5, 9)}


def test_what_is_done_is_forgotten_and_stamped() -> None:
    held = Held()
    held.enqueue(0)
    held.let_go()
    start, end = held.ends.stamps()[0]
    assert start <= end
    assert held.ends.of([0]) == []
    assert held.ends.stamps() == {}


def test_a_taker_waits_for_its_own_units_only() -> None:
    """Two units free from the start, one given back by task 9: the third taker waits for task 9, no other does."""
    held = Held()
    pools = StreamPools({"pages": 2}, held.ends)
    for number in (0, 1):
        pools.acquire(number, (("pages", 1),))
        assert pools.waits(record_of(task(number))) == []
    later = held.enqueue(9)
    pools.release(0, by=9)
    held.enqueue(10)
    pools.release(1, by=10)
    pools.acquire(2, (("pages", 1),))
    assert pools.waits(record_of(task(2))) == [later]
    held.let_go()
