"""Who is served where: requests in seats of ranks, step by step, and what of it holds for good."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping

from sim.schedulers.ep.placed import Rows


class Seats:
    """waiting: requests in order. of: those that each rank serves. steps: of each request that are done; lengths: that it has.

    `copy` gives what a Plan may advance while this stays as it was.
    """

    def __init__(self, ranks: int, seats: int) -> None:
        self.seats = seats
        self.waiting: deque[int] = deque()
        self.of: dict[int, list[int]] = {r: [] for r in range(ranks)}
        self.steps: dict[int, int] = {}
        self.lengths: dict[int, int] = {}
        self.ended: list[int] = []
        """Requests in the order in which they had their last step."""

    def copy(self) -> Seats:
        other = Seats(len(self.of), self.seats)
        other.waiting, other.of = self.waiting.copy(), {r: list(mine) for r, mine in self.of.items()}
        other.steps, other.lengths, other.ended = dict(self.steps), self.lengths, list(self.ended)
        return other

    def arrive(self, request: int, length: int) -> None:
        self.waiting.append(request)
        self.steps[request], self.lengths[request] = 0, length

    def leave(self, rank: int) -> list[int]:
        """The rank is gone: what it served waits again, first in the queue, with the steps that are done."""
        moved, self.of[rank] = self.of[rank], []
        self.waiting.extendleft(reversed(moved))
        return moved

    def next_step(self, ranks: Iterable[int]) -> Mapping[int, Rows]:
        """Give free seats of these ranks to those who wait, one rank after another, and take everybody a step on. Returns who
        steps where, of ranks that have anybody."""
        living = sorted(ranks)
        while self.waiting:
            rank = min(living, key=lambda r: (len(self.of[r]), r))
            if len(self.of[rank]) >= self.seats:
                break
            self.of[rank].append(self.waiting.popleft())
        rows = {r: Rows(tuple(self.of[r]), tuple(self.steps[q] for q in self.of[r])) for r in living if self.of[r]}
        for rank, mine in rows.items():
            for request in mine.requests:
                self.steps[request] += 1
            self.ended += [q for q in mine.requests if self.steps[q] == self.lengths[q]]
            self.of[rank] = [q for q in mine.requests if self.steps[q] < self.lengths[q]]
        return rows

    @property
    def busy(self) -> bool:
        return bool(self.waiting) or any(self.of.values())
