"""Which connection carries what."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import numpy as np

from exec.cluster.group import Group

MEMBERS = (2, 3, 7)


class Noted:
    """Stands for a process group; says which one was asked for what."""

    def __init__(self, name: str) -> None:
        self.name = name

    def send(self, rows: list[Any], to: int, tag: int) -> tuple[str, int]:
        return self.name, to

    def recv(self, rows: list[Any], of: int, tag: int) -> tuple[str, int]:
        return self.name, of


def test_what_two_ranks_send_each_other_shares_no_connection() -> None:
    rows = np.zeros((1, 1), np.float32)
    groups = {rank: Group(MEMBERS, i, Noted("up"), Noted("down")) for i, rank in enumerate(MEMBERS)}
    for a, b in permutations(MEMBERS, 2):
        way, to = groups[a].send(rows, b, 0)
        back, of = groups[b].receive(rows, a, 0)
        assert (MEMBERS[to], MEMBERS[of]) == (b, a)
        assert way == back == ("up" if a < b else "down")
