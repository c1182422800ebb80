"""Streams between two ranks that are threads of one process."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from exec.cluster.mesh import Counters, Mesh, World
from exec.cluster.rows import Floats, RowMemory

CONNECT_S = 0.5
TRIES = 100


class Pair(World):
    """A group of two."""

    def __init__(self, store: Any, rank: int) -> None:
        self._group = dist.ProcessGroupGloo(store, rank, 2, timedelta(seconds=CONNECT_S))

    def send(self, rows: Floats, peer: int, tag: int) -> Any:
        return self._group.send([torch.from_numpy(rows)], peer, tag)

    def receive(self, rows: Floats, peer: int, tag: int) -> Any:
        return self._group.recv([torch.from_numpy(rows)], peer, tag)


def pair() -> Sequence[Pair]:
    """On a busy computer they may need a few tries."""
    for _ in range(TRIES):
        store = dist.HashStore()
        with ThreadPoolExecutor(2) as pool, suppress(RuntimeError):
            return list(pool.map(lambda rank, store=store: Pair(store, rank), range(2)))
    raise AssertionError(f"two ranks could not connect within {CONNECT_S} s, {TRIES} times")


def test_a_pair_may_be_silent_for_longer_than_it_may_take_to_connect() -> None:
    told, broken = threading.Event(), list[BaseException]()

    def mesh(rank: int, group: Pair) -> Mesh:
        rows = RowMemory(8, (2, 8), (2, 1))
        return Mesh(
            rank, range(2), rows, Counters(), landed=lambda landing: None, told=lambda number: told.set(), broke=broken.append, group=group
        )

    meshes = [mesh(rank, group) for rank, group in enumerate(pair())]
    with ThreadPoolExecutor(2) as pool, ExitStack() as stack:
        stack.callback(lambda: list(pool.map(lambda m: m.__exit__(None), meshes)))  # each waits for the other's end
        for one in meshes:
            one.__enter__()
        time.sleep(3 * CONNECT_S)
        meshes[0].signal(1, 7)
        assert told.wait(60) and not broken, broken
