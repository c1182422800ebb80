"""Streams between two ranks that are threads of one process."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from queue import SimpleQueue
from typing import Any

import torch.distributed as dist

from exec.cluster.group import Group, join
from exec.cluster.mesh import Counters, Landing, Mesh, PeerLost
from exec.cluster.rows import RowMemory
from exec.runtime import HazardError

CONNECT_S = 0.5
TRIES = 100


def pair() -> Sequence[Group]:
    """Two ranks; on a busy computer they may need a few tries."""
    for _ in range(TRIES):
        store = dist.HashStore()
        with ThreadPoolExecutor(2) as pool, suppress(RuntimeError):
            return list(pool.map(lambda rank, store=store: join(store, "pair", (0, 1), rank, CONNECT_S), range(2)))
    raise AssertionError(f"two ranks could not connect within {CONNECT_S} s, {TRIES} times")


@contextmanager
def meshes(**heard: Callable[[Any], None]) -> Iterator[list[Mesh]]:
    """Of two ranks whose streams are open."""

    def mesh(rank: int, group: Group) -> Mesh:
        rows = RowMemory(8, (2, 8), (2, 1))
        nothing = dict.fromkeys(("landed", "told", "broke"), lambda message: None)
        return Mesh(rank, range(2), rows, Counters(), group=group, **{**nothing, **heard})

    both = [mesh(rank, group) for rank, group in enumerate(pair())]
    with ThreadPoolExecutor(2) as pool, ExitStack() as stack:
        stack.callback(lambda: list(pool.map(lambda m: m.__exit__(None), both)))  # each waits for the other's end
        for one in both:
            one.__enter__()
        yield both


def test_a_pair_may_be_silent_for_longer_than_it_may_take_to_connect() -> None:
    told, broken = threading.Event(), list[BaseException]()
    with meshes(told=lambda number: told.set(), broke=broken.append) as both:
        time.sleep(3 * CONNECT_S)
        both[0].signal(1, 7)
        assert told.wait(60) and not broken, broken


def test_what_could_not_be_used_is_no_loss_of_who_sent_it() -> None:
    """A schedule's hazard is a RuntimeError, as what gloo raises is."""
    broken: SimpleQueue[BaseException] = SimpleQueue()

    def landed(landing: Landing) -> None:
        raise HazardError("buffer 'recv.0.1.0': is overwritten before it was read")

    with meshes(landed=landed, broke=broken.put) as both:
        both[0].put(1, 7, both[0]._rows.send(), ())
        assert isinstance(broken.get(timeout=60), HazardError)


def test_a_stream_that_breaks_is_the_loss_of_its_peer() -> None:
    broken: SimpleQueue[BaseException] = SimpleQueue()
    one, other = pair()
    mesh = Mesh(0, range(2), RowMemory(8, (2, 8), (2, 1)), Counters(), landed=broken.put, told=broken.put, broke=broken.put, group=one)
    mesh.__enter__()
    del other  # as if the rank had been killed
    lost = broken.get(timeout=60)
    assert isinstance(lost, PeerLost) and lost.peer == 1
    assert "\n" not in str(lost)
