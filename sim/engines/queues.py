"""Lanes and pools of the SimPy engine."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from heapq import heapify, heappop, heappush

from sim.engines.book import ENDED, STARTABLE, Book
from sim.engines.run import LaneLike


class Pools:
    """Units free, and the rows that hold some."""

    def __init__(self, capacity: Mapping[str, int], book: Book) -> None:
        self.names = tuple(capacity)
        self.room = list(capacity.values())
        self.held: set[int] = set()
        self._book = book

    def fits(self, i: int) -> bool:
        takes = self._book.takes.get(i)
        return takes is None or all(self.room[pool] >= units for pool, units in takes)

    def acquire(self, i: int) -> None:
        takes = self._book.takes.get(i)
        if takes is not None:
            self.held.add(i)
            for pool, units in takes:
                self.room[pool] -= units

    def give_back(self, i: int) -> bool:
        """End the holds of row `i`; False where it holds nothing."""
        if i not in self.held:
            return False
        self.held.remove(i)
        for pool, units in self._book.takes[i]:
            self.room[pool] += units
        return True

    def holders(self) -> dict[str, list[int]]:
        """Numbers of the tasks that hold units, by pool."""
        found: dict[str, list[int]] = {name: [] for name in self.names}
        for i in sorted(self.held):
            for pool, _ in self._book.takes[i]:
                found[self.names[pool]].append(self._book.number[i])
        return found


class Queue:
    """One lane: which of its tasks may start next."""

    def __init__(self, order: str, servers: int, book: Book, pools: Pools) -> None:
        self.order, self.free = order, servers
        self.blocked = False
        self._book, self._pools = book, pools
        self._line: deque[int] = deque()
        self._ready: list[tuple[int, int, int]] = []

    def add(self, rows: Sequence[int]) -> None:
        """Tasks of this lane were submitted."""
        if self.order == "submitted":
            self._line.extend(rows)

    def ready(self, i: int, now: int) -> None:
        """The dependencies of row `i` are done."""
        if self.order != "submitted":
            heappush(self._ready, (self._book.priority[i], now, i))

    def take(self) -> int:
        """Remove and return the next row that may start; -1: none. `blocked` says that a pool is in the way."""
        self.blocked = False
        if self.free == 0:
            return -1
        return self._take_head() if self.order == "submitted" else self._take_ready()

    def _take_head(self) -> int:
        state, line = self._book.state, self._line
        while line:
            i = line[0]
            if state[i] == ENDED:
                line.popleft()
                continue
            if state[i] != STARTABLE:
                return -1
            if not self._pools.fits(i):
                self.blocked = True
                return -1
            return line.popleft()
        return -1

    def _take_ready(self) -> int:
        skipped = []
        found = -1
        while self._ready and found < 0:
            key = heappop(self._ready)
            if self._book.state[key[2]] == ENDED:
                continue
            if self._pools.fits(key[2]):
                found = key[2]
                continue
            skipped.append(key)
            self.blocked = True
            if self.order == "priority":
                break
        if skipped:
            self._ready.extend(skipped)
            heapify(self._ready)
        return found


def queues(lanes: Sequence[LaneLike], book: Book, pools: Pools) -> list[Queue]:
    """One queue a lane; the last one, found as queues[-1], is that of tasks without a lane."""
    return [*(Queue(lane.order, lane.servers, book, pools) for lane in lanes), Queue("ready", 1 << 62, book, pools)]
