"""Run: what an engine hands back, the times of every task."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from sim.plan import Plan
from sim.tasks import Task, Time

if TYPE_CHECKING:
    from sim.costs import PricedPlan

STATUSES = ("done", "failed", "cancelled", "skipped")
DONE, FAILED, CANCELLED, SKIPPED = range(4)


def status_of(priced: PricedPlan) -> NDArray[np.int8]:
    """[n], of tasks that all ran to their end: surplus ones are skipped."""
    status = np.full(len(priced.plan), DONE, np.int8)
    if priced.surplus is not None:
        status[priced.surplus] = SKIPPED
    return status


class LaneLike(Protocol):
    """What engines need of a lane."""

    @property
    def name(self) -> str: ...
    @property
    def order(self) -> str: ...
    @property
    def servers(self) -> int: ...


@dataclass(frozen=True, eq=False, slots=True)
class Inside:
    """Times of the m tasks of one body, which ran inside task number `task`: start_ps, end_ps, status [m] as in a `Run`."""

    task: int
    body: Plan
    start_ps: NDArray[np.int64]
    end_ps: NDArray[np.int64]
    status: NDArray[np.int8]

    def same_times(self, other: Inside) -> bool:
        """Whether both clocks saw exactly the same."""
        columns = ("start_ps", "end_ps", "status")
        return self.task == other.task and all(np.array_equal(getattr(self, c), getattr(other, c)) for c in columns)


@dataclass(frozen=True, eq=False, slots=True)
class Run:
    """Times of n tasks in order of their numbers.

    Attributes
    ----------
    sources: the Plans and Tasks that were handed out, in order of submission.
    lanes: names of the machine's lanes; lane [n] indexes them, -1 for joins and timers.
    number [n], start_ps [n], end_ps [n]: a task that never started has both times at its cancelling.
    status [n]: index into STATUSES.
    inside: of the tasks that ran their bodies task by task, in order of their numbers.
    """

    sources: tuple[Plan | Task, ...]
    lanes: tuple[str, ...]
    number: NDArray[np.int64]
    lane: NDArray[np.int32]
    start_ps: NDArray[np.int64]
    end_ps: NDArray[np.int64]
    status: NDArray[np.int8]
    inside: tuple[Inside, ...] = ()

    def __len__(self) -> int:
        return len(self.number)

    @property
    def makespan_ps(self) -> Time:
        """End of the last task on the clock that began at 0."""
        return int(self.end_ps.max(initial=0))

    @property
    def nbytes(self) -> int:
        return sum(a.nbytes for a in (self.number, self.lane, self.start_ps, self.end_ps, self.status))

    def busy_ps(self) -> dict[str, Time]:
        """Server time that each lane's tasks took, in ps; up to `servers` times the makespan."""
        spans = self.end_ps - self.start_ps
        return {name: int(spans[self.lane == i].sum()) for i, name in enumerate(self.lanes)}

    def same_times(self, other: Run) -> bool:
        """Whether both clocks saw exactly the same: numbers, picoseconds and statuses, inside bodies too."""
        same = all(np.array_equal(getattr(self, c), getattr(other, c)) for c in ("number", "start_ps", "end_ps", "status"))
        return same and len(self.inside) == len(other.inside) and all(map(Inside.same_times, self.inside, other.inside))
