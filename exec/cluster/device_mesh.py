"""DeviceMesh: as `Mesh`, rows going from device to device; headers and words stay on the host."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from exec.cluster.header import DATA, HEADER, counts_of, fill_header
from exec.cluster.links import Links
from exec.cluster.mesh import AHEAD, Counters, Landing, Mesh
from exec.cluster.rows import Piece, RowMemory


class DeviceMesh(Mesh):
    """rows: memory of the device. links: carry them. most_counts: of a header. told: as `Mesh` has them.

    A put's header goes ahead over gloo. The receiver learns from it how many rows follow, as NCCL's two ends have to name the
    same number, and takes them in at once: nothing else of that peer is looked at before they are there.
    """

    def __init__(
        self, rank: int, peers: Sequence[int], rows: RowMemory, counters: Counters, *, links: Links, most_counts: int, **told: Any
    ) -> None:
        heads = RowMemory(HEADER + most_counts, landing=(1, (len(peers) - 1) * (AHEAD + 1)), sending=(1, 1))
        super().__init__(rank, peers, heads, counters, **told)
        self._body, self._links = rows, links

    def put(self, peer: int, number: int, piece: Piece, counts: Sequence[int]) -> None:
        """As `Mesh.put`; the row for a header goes unused. Only one thread at a time may send to the same peer."""
        head = np.zeros((1, HEADER + len(counts)), np.float32)
        fill_header(head, DATA, number, piece.count - 1, counts)
        sent = self._isend(peer, head)
        if piece.count > 1:
            self._links.send(peer, self._body.of(piece)[1:])
        self._finish(peer, sent)

    def _arrived(self, peer: int, number: int, piece: Piece, count: int, experts: int) -> None:
        counts = counts_of(self._rows.of(piece), experts)
        self._rows.give(piece)
        self._post(peer)
        there = self._body.land()
        at_ns = self._links.receive(peer, self._body.of(there)[1 : 1 + count]) if count else None
        self._landed(Landing(peer, number, there, count, counts, at_ns))
