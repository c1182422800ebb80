"""The SimPy engine's book: every task that was handed out, as columns of Python lists.

A Plan's columns are converted once; no Task objects are made. Rows are in order of submission and
numbers ascend, so a row index orders as its number does. Bodies have their rows behind those of the
Plan that has them, without numbers.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping, Sequence
from itertools import repeat
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sim.engines.intake import check_bodies, check_references, lane_table, pool_table, task_takes
from sim.engines.run import Inside, LaneLike
from sim.engines.slots import Rates
from sim.errors import UserError, unknown
from sim.plan import Plan
from sim.tasks import Task

if TYPE_CHECKING:
    from sim.costs import Costs, PricedPlan, Prices

NOBODY = -1
"""Number of a row inside a body: nobody outside refers to it."""

OPEN, STARTABLE, RUNNING, ENDED = range(4)


class Book:
    """Columns over all tasks; `index` finds the row of a number, `NOBODY` standing for rows inside bodies.

    Attributes
    ----------
    lane: index of the machine's lane, -1 for none. missing: dependencies not done yet. dependents:
        rows that wait for this one, or None. takes, releases: only rows that have some. status: see
        `sim.engines.run`. state: OPEN, STARTABLE (its dependencies are done), RUNNING or ENDED.
    latency, fluid: of each price class, in ps; whether it has demands.
    bodies: rows of the bodies that run, by row of their task; outer: the other way; surplus: rows that end as skipped.
    """

    def __init__(self, lanes: Sequence[LaneLike], pools: Mapping[str, int], costs: Costs, rates: Rates) -> None:
        self.lanes, self.pools, self.costs, self.rates = tuple(lane.name for lane in lanes), pools, costs, rates
        self._machine_lanes = lanes
        self._lane_index = {name: i for i, name in enumerate(self.lanes)}
        self._pool_index = {name: i for i, name in enumerate(pools)}
        self._price_rows: dict[tuple[bytes, ...], int] = {}
        self.sources: list[Plan | Task] = []
        self._source_first: list[int] = []
        self._source_number: list[int] = []
        self.number: list[int] = []
        self.lane: list[int] = []
        self.cls: list[int] = []
        self.priority: list[int] = []
        self.notify: list[bool] = []
        self.missing: list[int] = []
        self.dependents: list[list[int] | None] = []
        self.bodies: dict[int, range] = {}
        self.outer: dict[int, int] = {}
        self.surplus: set[int] = set()
        self._body_plans: dict[int, Plan] = {}
        self._last = NOBODY
        self.takes: dict[int, list[tuple[int, int]]] = {}
        self.releases: dict[int, list[int]] = {}
        self.state: list[int] = []
        self.status: list[int] = []
        self.start: list[int] = []
        self.end: list[int] = []
        self.latency: list[int] = []
        self.fluid: list[bool] = []

    def __len__(self) -> int:
        return len(self.number)

    def index(self, number: int) -> int:
        """Row of a task; -1 if no such task was handed out. O(1) where numbers have no gaps, else O(log n) in what was handed out."""
        numbers = self.number
        if not numbers or number < numbers[0]:
            return -1
        i = number - numbers[0]
        if i < len(numbers) and numbers[i] == number:
            return i
        k = bisect_right(self._source_number, number) - 1
        i = self._source_first[k] + number - self._source_number[k]
        return i if i < len(numbers) and numbers[i] == number else -1

    def task(self, i: int) -> Task:
        """The i-th row as an object."""
        k = bisect_left(self._source_first, i + 1) - 1
        source = self.sources[k]
        return source if isinstance(source, Task) else source.task(i - self._source_first[k])

    def add_task(self, task: Task) -> int:
        """Take in one task; returns its row. Raises UserError for unknown lanes, pools and numbers."""
        assert task.body is None, f"task {task.number} has a body: as a Plan of one task it is taken in"
        i = self._next_row(task.number, task)
        if task.lane is not None and task.lane not in self._lane_index:
            raise unknown(f"task {task.number}: lane", task.lane, self.lanes)
        waits = [self._known(d, f"task {task.number}: depends on") for d in task.deps]
        takes = [(self._pool_index[pool], units) for pool, units in task_takes(task.number, task.takes, self.pools).items()]
        releases = [i if r == task.number else self._known(r, f"task {task.number}: releases") for r in task.releases]
        self.number.append(task.number)
        self.lane.append(-1 if task.lane is None else self._lane_index[task.lane])
        self.cls.append(self._class_of(self.costs.task(task)))
        self.priority.append(task.priority)
        self.notify.append(task.notify)
        if takes:
            self.takes[i] = takes
        if releases:
            self.releases[i] = releases
        self._open_rows(1)
        self.missing.append(self._wait_for(i, waits))
        return i

    def add_plan(self, plan: Plan) -> range:
        """Take in a Plan; returns its rows. Raises UserError as `add_task` does."""
        if not len(plan):
            return range(len(self), len(self))
        check_references(plan, self._all_known)
        lane = lane_table(plan, self.lanes)[plan.lane]
        pools = pool_table(plan, self.pools)
        priced = self.costs.bind(plan)
        check_bodies(priced, self._machine_lanes)
        base = self._next_row(plan.first, plan)
        self._last = plan.first + len(plan) - 1
        self.notify.extend(plan.notify.tolist())
        self._add_takes(plan, pools, base)
        self._add_releases(plan, base)
        self._add_rows(priced, self._new_classes(priced.prices), range(plan.first, plan.first + len(plan)), lane)
        self._add_bodies(priced, base)
        return range(base, base + len(plan))

    def _add_rows(self, priced: PricedPlan, classes: int, numbers: Iterable[int], lane: NDArray[np.int32]) -> None:
        base, plan = len(self), priced.plan
        self.cls.extend((priced.cls + classes).tolist())
        self.number.extend(numbers)
        self.lane.extend(lane.tolist())
        self.priority.extend(plan.priority.tolist())
        self._open_rows(len(plan))
        self._add_deps(plan, base)

    def _add_bodies(self, priced: PricedPlan, base: int) -> None:
        classes: dict[int, int] = {}
        for i, body in sorted(priced.bodies.items()):
            if not len(body.plan):
                continue
            if id(body) not in classes:
                classes[id(body)] = self._new_classes(body.prices)
            rows = range(len(self), len(self) + len(body.plan))
            self.bodies[base + i], self._body_plans[base + i] = rows, body.plan
            self.outer.update(dict.fromkeys(rows, base + i))
            if body.surplus is not None:
                self.surplus.update((rows.start + np.flatnonzero(body.surplus)).tolist())
            self.notify.extend(repeat(False, len(rows)))
            self._add_rows(body, classes[id(body)], repeat(NOBODY, len(rows)), lane_table(body.plan, self.lanes)[body.plan.lane])

    def _next_row(self, number: int, source: Plan | Task) -> int:
        if number <= self._last:
            raise UserError(f"task {number}: numbers ascend in order of submission; one above {self._last} would be right")
        self.sources.append(source)
        self._source_first.append(len(self.number))
        self._source_number.append(number)
        self._last = number
        return len(self.number)

    def _open_rows(self, n: int) -> None:
        self.dependents.extend([None] * n)
        self.state.extend([OPEN] * n)
        self.status.extend([0] * n)
        self.start.extend([0] * n)
        self.end.extend([0] * n)

    def _known(self, number: int, what: str) -> int:
        i = self.index(number)
        if i < 0:
            raise UserError(f"{what} {number}, which was not submitted before it; the number of an earlier task would be right")
        return i

    def _all_known(self, numbers: NDArray[np.int32]) -> NDArray[np.bool_]:
        return np.array([self.index(number) >= 0 for number in numbers.tolist()], np.bool_)

    def _wait_for(self, i: int, waits: Sequence[int]) -> int:
        """Hang row `i` on the rows that are not done; returns how many, -1 - k where row k failed."""
        open_rows = 0
        for d in waits:
            if self.state[d] != ENDED:
                self._hang(i, d)
                open_rows += 1
        doomed = [d for d in waits if self.state[d] == ENDED and self.status[d] != 0]
        return -1 - min(doomed) if doomed else open_rows

    def _hang(self, i: int, on: int) -> None:
        waiting = self.dependents[on]
        if waiting is None:
            self.dependents[on] = [i]
        else:
            waiting.append(i)

    def _add_takes(self, plan: Plan, pools: NDArray[np.int16], base: int) -> None:
        pool, units, ptr = pools[plan.take_pool].tolist(), plan.take_units.tolist(), plan.take_ptr.tolist()
        for i in np.flatnonzero(np.diff(plan.take_ptr)).tolist():
            merged: dict[int, int] = {}
            for j in range(ptr[i], ptr[i + 1]):
                merged[pool[j]] = merged.get(pool[j], 0) + units[j]
            self.takes[base + i] = list(merged.items())

    def _add_releases(self, plan: Plan, base: int) -> None:
        shift = base - plan.first
        release, ptr = plan.release.tolist(), plan.release_ptr.tolist()
        for i in np.flatnonzero(np.diff(plan.release_ptr)).tolist():
            named = release[ptr[i] : ptr[i + 1]]
            self.releases[base + i] = [r + shift if r >= plan.first else self.index(r) for r in named]

    def _add_deps(self, plan: Plan, base: int) -> None:
        """Dependencies within the Plan become lists of dependents in numpy; those on earlier tasks one by one."""
        owner = np.repeat(np.arange(base, base + len(plan)), np.diff(plan.dep_ptr))
        inner = plan.dep >= plan.first
        on = plan.dep[inner] - plan.first
        missing = np.bincount(owner[inner] - base, minlength=len(plan)).tolist()
        order = np.argsort(on, kind="stable")
        waiting = owner[inner][order].tolist()
        counts = np.bincount(on, minlength=len(plan))
        ends = np.cumsum(counts)
        for i, (a, b) in enumerate(zip((ends - counts).tolist(), ends.tolist(), strict=True)):
            if a < b:
                self.dependents[base + i] = waiting[a:b]
        earlier: dict[int, list[int]] = {}
        for i, d in zip(owner[~inner].tolist(), plan.dep[~inner].tolist(), strict=True):
            earlier.setdefault(i, []).append(self.index(d))
        for i, waits in earlier.items():
            found = self._wait_for(i, waits)
            missing[i - base] = found if found < 0 else found + missing[i - base]
        self.missing.extend(missing)

    def _class_of(self, prices: Prices) -> int:
        """Class of a single price; equal prices share one."""
        key = tuple(getattr(prices, name).tobytes() for name in ("latency_ps", "resource", "amount", "cap", "weight"))
        if key not in self._price_rows:
            self._price_rows[key] = self._new_classes(prices)
        return self._price_rows[key]

    def _new_classes(self, prices: Prices) -> int:
        since = self.rates.extend(prices)
        self.latency.extend(prices.latency_ps.tolist())
        self.fluid.extend((self.rates.classes["solo"][since:] > 0).tolist())
        return since

    def columns(self) -> dict[str, Any]:
        """The arrays of a Run, and what ran inside tasks."""
        whole: dict[str, NDArray[Any]] = {
            "number": np.array(self.number, np.int64),
            "lane": np.array(self.lane, np.int32),
            "start_ps": np.array(self.start, np.int64),
            "end_ps": np.array(self.end, np.int64),
            "status": np.array(self.status, np.int8),
        }
        if not self.bodies:
            return whole
        own = whole["number"] != NOBODY
        inside = tuple(self._inside(i, whole, rows) for i, rows in self.bodies.items())
        return {**{name: column[own] for name, column in whole.items()}, "inside": inside}

    def _inside(self, i: int, columns: Mapping[str, NDArray[Any]], rows: range) -> Inside:
        here = slice(rows.start, rows.stop)
        return Inside(self.number[i], self._body_plans[i], *(columns[c][here] for c in ("start_ps", "end_ps", "status")))
