"""The queue of a lane: which of its tasks may start next."""

from __future__ import annotations

from bisect import insort
from collections import deque
from collections.abc import Callable

from exec.runtime.records import ENDED, Record
from sim.machines.schema import Lane
from sim.tasks import Time


class LaneQueue:
    """Tasks of one lane that have not started, in the lane's order.

    "submitted" keeps all of them and only the head may start; "ready" and "priority" keep those
    whose dependencies are done, by (priority, instant it became ready, number): "ready" skips tasks
    whose pools have no room, "priority" waits for the first.
    """

    __slots__ = ("lane", "free", "in_order", "strict", "_queue", "_ready")

    def __init__(self, lane: Lane) -> None:
        self.lane = lane
        self.free = lane.servers
        self.in_order = lane.order == "submitted"
        self.strict = lane.order == "priority"
        self._queue: deque[Record] = deque()
        self._ready: list[tuple[int, Time, int, Record]] = []

    def submitted(self, task: Record) -> None:
        if self.in_order:
            self._queue.append(task)

    def became_ready(self, task: Record) -> None:
        if not self.in_order:
            insort(self._ready, (task.priority, task.ready_ps, task.number, task))

    def pop(self, has_room: Callable[[Record], bool]) -> Record | None:
        """Remove and return the task that may start now; None: nobody may."""
        return self._head(has_room) if self.in_order else self._first_ready(has_room)

    def _head(self, has_room: Callable[[Record], bool]) -> Record | None:
        queue = self._queue
        while queue and queue[0].state == ENDED:  # cancelled while it waited
            queue.popleft()
        if queue and queue[0].waiting == 0 and has_room(queue[0]):
            return queue.popleft()
        return None

    def _first_ready(self, has_room: Callable[[Record], bool]) -> Record | None:
        self._ready = [entry for entry in self._ready if entry[3].state != ENDED]
        for i, entry in enumerate(self._ready):
            if has_room(entry[3]):
                del self._ready[i]
                return entry[3]
            if self.strict:
                return None
        return None

    def waiting(self) -> list[Record]:
        """Open tasks that a story should name: the head, or all ready ones without room."""
        if self.in_order:
            return next(([task] for task in self._queue if task.state != ENDED), [])
        return [entry[3] for entry in self._ready if entry[3].state != ENDED]
