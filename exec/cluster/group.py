"""Groups: gloo's connections between ranks, those that go up to a higher rank apart from those that go down.

While rows are written to a connection gloo holds its lock. What comes in on the same connection meanwhile wakes gloo's loop,
which finds the lock taken, goes back to wait, and is woken again at once: it takes a core, and takes in nothing, until all is
written (`Pair::handleEvents` of gloo's tcp transport). Two ranks that send to each other at once, as all do between the phases of a
bulk-synchronous layer, would both be held up by that; so what one sends and what it receives never share a connection.
"""

from __future__ import annotations

import os
import time
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from exec.cluster.rows import Floats
from exec.priority import short_slices

FOREVER = timedelta(hours=12)
"""Receives are posted ahead, and wait for as long as nobody sends; a group's own limit is for ranks that connect. Who notices a
peer that is gone is the operating system, and one that has stalled, the controller."""

LEAST_S = 0.1


class Group:
    """Connections of the rank that is `members[place]` to the other members. up, down: process groups of all of them."""

    def __init__(self, members: tuple[int, ...], place: int, up: Any, down: Any) -> None:
        self.ranks = members
        self._place, self._up, self._down = place, up, down
        self._places = {rank: i for i, rank in enumerate(members)}

    def send(self, rows: Floats, peer: int, tag: int) -> Any:
        to = self._places[peer]
        return (self._up if to > self._place else self._down).send([torch.from_numpy(rows)], to, tag)

    def receive(self, rows: Floats, peer: int, tag: int) -> Any:
        of = self._places[peer]
        return (self._up if of < self._place else self._down).recv([torch.from_numpy(rows)], of, tag)


def join_world(rank: int, ranks: int, timeout_s: float) -> Group:
    """The group of all ranks, by what the environment names (MASTER_ADDR, MASTER_PORT)."""
    if os.environ["MASTER_ADDR"].startswith("127.") or os.environ["MASTER_ADDR"] == "localhost":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    timeout = timedelta(seconds=timeout_s)
    with short_slices():
        dist.init_process_group("gloo", init_method="env://", rank=rank, world_size=ranks, timeout=timeout)
        return Group(tuple(range(ranks)), rank, dist.new_group(backend="gloo", timeout=timeout), dist.group.WORLD)


def join(store: Any, name: str, members: tuple[int, ...], rank: int, timeout_s: float) -> Group:
    """A group of some ranks, who find each other under `name` in a store. Raises RuntimeError where one does not come in time."""
    place, give_up = members.index(rank), time.monotonic() + timeout_s

    def one(way: str) -> Any:
        left = timedelta(seconds=max(LEAST_S, give_up - time.monotonic()))
        found = dist.ProcessGroupGloo(dist.PrefixStore(f"{name}-{way}", store), place, len(members), left)
        found._set_default_timeout(FOREVER)
        return found

    with short_slices():
        return Group(members, place, one("up"), one("down"))
