"""Which copy of an expert serves which row, and who holds which copies while a Plan runs.

One rule for both clocks: at rank A the rows of an expert with n copies go to them in turn, the j-th row to copy number (j + A) mod n
in order of ranks. Over many rows that is the even split that placements are made for.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from sim.plan import Plan

Ints = NDArray[np.int64]


class Copies:
    """Copies of one layer's experts, numbered rank by rank, those of a rank by expert.

    held: experts of each rank that has any. rank, expert [copies]. first [ranks + 1]: number of each rank's first copy.
    """

    def __init__(self, held: Mapping[int, tuple[int, ...]], ranks: int, experts: int) -> None:
        pairs = [(r, e) for r in sorted(held) for e in sorted(held[r])]
        self.rank: Ints = np.array([r for r, _ in pairs], np.int64)
        self.expert: Ints = np.array([e for _, e in pairs], np.int64)
        self.first: Ints = np.searchsorted(self.rank, np.arange(ranks + 1))
        self.held = {r: tuple(sorted(held[r])) for r in held}
        self._count: Ints = np.bincount(self.expert, minlength=experts)
        self._start: Ints = np.cumsum(self._count) - self._count
        self._of = np.argsort(self.expert, kind="stable")
        """Copies by expert, those of an expert by rank."""

    def __len__(self) -> int:
        return len(self.rank)

    def serving(self, ids: NDArray[np.int16], source: int) -> Ints:
        """The copy [n, k] that serves each row of `source` for the experts ids [n, k]. Each of these has one."""
        flat = ids.ravel().astype(np.int64)
        count = self._count[flat]
        assert count.all(), f"experts {sorted(set(flat[count == 0].tolist()))} have no copy"
        turn = (_occurrence(flat, len(self._count)) + source) % count
        found: Ints = self._of[self._start[flat] + turn].reshape(ids.shape)
        return found

    def rows(self, ids: NDArray[np.int16], source: int) -> Ints:
        """Rows of `source` that each copy serves [copies]."""
        return np.bincount(self.serving(ids, source).ravel(), minlength=len(self))

    def of(self, rank: int) -> slice:
        """Numbers of a rank's copies."""
        return slice(int(self.first[rank]), int(self.first[rank + 1]))


def _occurrence(values: Ints, kinds: int) -> Ints:
    """How many equal values stand before each [n]."""
    order = np.argsort(values, kind="stable")
    counts = np.bincount(values, minlength=kinds)
    found = np.empty(len(values), np.int64)
    found[order] = np.arange(len(values)) - np.repeat(np.cumsum(counts) - counts, counts)
    return found


def buffers_of(plan: Plan) -> tuple[set[tuple[int, int, int]], set[tuple[int, int, int]]]:
    """(rank, layer, expert) of the copies that a Plan computes with or sends, and of those that it fills."""
    copies = {i: (int(r), int(la), int(e)) for i, name in enumerate(plan.buffers) if name.startswith("weights.")
              for _, r, la, e in (name.split("."),)}  # fmt: skip
    read = {copies[i] for i in np.unique(plan.buffer[~plan.buffer_write]).tolist() if i in copies}
    written = {copies[i] for i in np.unique(plan.buffer[plan.buffer_write]).tolist() if i in copies}
    return read, written


def copies_of(plan: Plan, ranks: int, experts: int) -> dict[int, Copies]:
    """By layer, the copies that serve while the Plan runs."""
    held: dict[int, dict[int, list[int]]] = {}
    for rank, layer, expert in sorted(buffers_of(plan)[0]):
        held.setdefault(layer, {}).setdefault(rank, []).append(expert)
    return {layer: Copies({r: tuple(e) for r, e in mine.items()}, ranks, experts) for layer, mine in held.items()}
