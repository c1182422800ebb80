"""Delivery: what the scheduler is told, in which order, and whether it has answered."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence

from sim.events import Arrived, Event, Failed, Profile, Request, Started
from sim.tasks import Time

BEFORE_TASKS = -1
"""Submission number of what no task raised."""


class Delivery:
    """Events by (time, submission number): `Started` first, requests when they arrive, and what tasks raise.

    unheard: failures that the scheduler has not answered.
    """

    def __init__(self, profile: Profile, requests: Sequence[Request]) -> None:
        self.unheard = 0
        self._events: list[tuple[Time, int, int, Event]] = [(0, BEFORE_TASKS, 0, Started(profile))]
        self._coming = sorted(requests, key=lambda r: (r.arrival_ps, r.request_id), reverse=True)
        self._arrived = 0
        self._last: Time = 0
        self._answering: Event | None = None

    def __bool__(self) -> bool:
        return bool(self._events)

    @property
    def next_arrival_ps(self) -> Time | None:
        """When the next request comes; None: none will."""
        return self._coming[-1].arrival_ps if self._coming else None

    def add(self, events: Iterable[tuple[Time, int, Event]]) -> None:
        """Queue (time, submission number, event)."""
        for when, number, event in events:
            heapq.heappush(self._events, (when, number, 0, event))
            self.unheard += isinstance(event, Failed)

    def arrive(self, now: Time) -> None:
        """Queue the requests that have arrived by `now`, each at its own time."""
        while self._coming and self._coming[-1].arrival_ps <= now:
            request = self._coming.pop()
            self._arrived += 1
            event = Arrived(request, last=not self._coming)
            heapq.heappush(self._events, (request.arrival_ps, BEFORE_TASKS, self._arrived, event))

    def pop(self) -> tuple[Time, Event] | None:
        """The next event; None: there is none now. A lane may report an end that lies before an event
        already delivered; the time that goes with an event never goes back."""
        if not self._events:
            return None
        when, _, _, self._answering = heapq.heappop(self._events)
        self._last = max(self._last, when)
        return self._last, self._answering

    def answered(self) -> bool:
        """The event popped last was answered. Returns whether it was the last failure known."""
        event, self._answering = self._answering, None
        if not isinstance(event, Failed):
            return False
        self.unheard -= 1
        return self.unheard == 0
