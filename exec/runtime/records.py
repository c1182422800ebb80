"""Records: the light form in which the executor holds a task while it is open.

A Plan is turned into records when it is submitted, column by column; nothing is parsed again
afterwards. A record has the fields of `sim.tasks.Task` that the runtime and the backends read,
under the same names, and what the board notes down while the task lives.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import repeat
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exec.runtime.bodies import Stamps
from sim.plan import PHASES, Plan
from sim.tasks import Task, Work


class Interrupt:
    """A flag that a running op polls: set when its task is cancelled or the run stops.

    It is one byte at a fixed address, so that compiled loops can poll it without the GIL.
    """

    __slots__ = ("flag",)

    def __init__(self) -> None:
        self.flag: NDArray[np.uint8] = np.zeros(1, np.uint8)

    def set(self) -> None:
        self.flag[0] = 1

    def clear(self) -> None:
        self.flag[0] = 0

    def __bool__(self) -> bool:
        return bool(self.flag[0])


class Record:
    """One open task.

    `waiting` counts dependencies that have not ended, `dependents` the records that wait for this
    one, `cancelled` is the reason given with a Cancel, `interrupt` the flag of the server that
    runs it. `inside`: what the op stamped of its body, where it ran it as such.
    """

    __slots__ = (
        "number", "work", "lane", "deps", "reads", "writes", "takes", "releases", "requests", "phase", "step", "layer",
        "microbatch", "page", "priority", "attempt", "notify", "body", "waiting", "dependents", "state", "ready_ps", "start_ps",
        "cancelled", "interrupt", "inside",
    )  # fmt: skip

    number: int
    work: Work
    lane: str | None
    deps: Sequence[int]
    reads: Sequence[str]
    writes: Sequence[str]
    takes: Sequence[tuple[str, int]]
    releases: Sequence[int]
    requests: Sequence[int]
    phase: str
    step: int
    layer: int
    microbatch: int
    page: int
    priority: int
    attempt: int
    notify: bool
    body: Plan | None

    def __init__(self, *fields: Any) -> None:
        (
            self.number, self.work, self.lane, self.deps, self.reads, self.writes, self.takes, self.releases, self.requests,
            self.phase, self.step, self.layer, self.microbatch, self.page, self.priority, self.attempt, self.notify, self.body,
        ) = fields  # fmt: skip
        self.waiting = 0
        self.dependents: list[Record] = []
        self.state = OPEN
        self.ready_ps = 0
        self.start_ps = 0
        self.cancelled: str | None = None
        self.interrupt: Interrupt | None = None
        self.inside: Stamps | None = None

    @property
    def op(self) -> str:
        return self.work.op


OPEN, RUNNING, ENDED = range(3)


def record_of(task: Task) -> Record:
    """The record of a task object."""
    return Record(
        task.number, task.work, task.lane, task.deps, task.reads, task.writes, task.takes, task.releases, task.requests,
        task.phase, task.step, task.layer, task.microbatch, task.page, task.priority, task.attempt, task.notify, task.body,
    )  # fmt: skip


def records_of(plan: Plan) -> list[Record]:
    """Records of a whole Plan, in number order."""
    n = len(plan)
    names = np.array([*plan.buffers, ""], object)[plan.buffer] if n else np.empty(0, object)
    pools = [(plan.pools[p], u) for p, u in zip(plan.take_pool.tolist(), plan.take_units.tolist(), strict=True)]
    # A column is a list of Python values; one zip over all of them makes the records.
    return list(map(
        Record,
        range(plan.first, plan.first + n),
        map(plan.works.__getitem__, plan.work.tolist()),
        map((*plan.lanes, None).__getitem__, plan.lane.tolist()),
        _ragged(plan.dep.tolist(), plan.dep_ptr),
        _ragged(names[~plan.buffer_write].tolist(), _count(~plan.buffer_write)[plan.buffer_ptr]),
        _ragged(names[plan.buffer_write].tolist(), _count(plan.buffer_write)[plan.buffer_ptr]),
        _ragged(pools, plan.take_ptr),
        _ragged(plan.release.tolist(), plan.release_ptr),
        map((*plan.groups, ()).__getitem__, plan.group.tolist()),
        map(PHASES.__getitem__, plan.phase.tolist()),
        plan.step.tolist(), plan.layer.tolist(), plan.microbatch.tolist(), plan.page.tolist(), plan.priority.tolist(),
        plan.attempt.tolist(), plan.notify.tolist(), map((*plan.bodies, None).__getitem__, plan.body.tolist()),
    ))  # fmt: skip


def _ragged(values: Sequence[Any], ptr: NDArray[Any]) -> Iterator[Sequence[Any]]:
    """Slices of `values` between neighbouring offsets."""
    offsets = ptr.tolist()
    if not values:
        return repeat((), len(offsets) - 1)
    return (values[a:b] if a < b else () for a, b in zip(offsets, offsets[1:], strict=False))


def _count(mask: NDArray[np.bool_]) -> NDArray[np.int64]:
    """How many of the first i entries are set, [n + 1]."""
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(mask, dtype=np.int64)])
