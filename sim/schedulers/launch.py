"""Launcher: tasks in launch order; what each must wait for follows from the buffers it touches.

Schedulers in `sim/schedulers` are launch orders, as a single launcher thread would issue them: each
lane runs its tasks in that order, one at a time, and a task on another lane that must come first is
a dependency. Reading a buffer waits for its last writer (on any lane, so that a failure reaches
everything that would have used the result); writing one waits for its readers and its last writer
on other lanes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from sim.plan import Plan, PlanBuilder
from sim.tasks import Cancel, Work

POOLED = ("w.", "pin.")
"""Buffers whose reuse is guarded by a pool (gpu_pages, pinned_slots): a writer takes a unit that the
last reader of the slot's previous contents gives back, so it need not wait for that reader by name."""


class At(NamedTuple):
    """Labels of the pass that a task belongs to."""

    phase: str = ""
    step: int = -1
    attempt: int = 0


NOWHERE = At()

Store = tuple[str, tuple[str, ...], tuple[str, ...]]
"""Lane of a copy, the buffers that it reads, those that it writes."""


class Launcher:
    """Builds one Plan after the other; numbers and buffers go on from Plan to Plan."""

    def __init__(self, first: int = 0) -> None:
        self._builder = PlanBuilder(first)
        self._ended = first
        self._lane_of: dict[str, str | None] = {}
        """Lane of the last writer of each buffer."""
        self._writer: dict[str, int] = {}
        self._readers: dict[str, dict[str, int]] = {}
        """Last reader of each buffer on each lane, since it was written."""
        self._holds: dict[str, tuple[int, ...]] = {}
        """Tasks that hold pool units until somebody releases them, by the name they were kept under."""
        self._stores: dict[int, Store] = {}
        self._handed_out: dict[int, Store] = {}
        self._late: dict[int, Store] = {}
        """Copies of K and V to the host: of the Plan being built, of the last one, of the one before it."""

    @property
    def next(self) -> int:
        return self._builder.next

    def add(
        self,
        work: Work,
        lane: str | None,
        *,
        reads: Sequence[str] = (),
        writes: Sequence[str] = (),
        after: Iterable[int] = (),
        takes: Iterable[tuple[str, int]] = (),
        releases: Iterable[int] = (),
        requests: tuple[int, ...] = (),
        at: At = NOWHERE,
        layer: int = -1,
        microbatch: int = -1,
        page: int = -1,
        notify: bool = False,
        body: Plan | None = None,
    ) -> int:
        """Launch a task; returns its number. `after`: tasks to wait for beyond what the buffers tell."""
        deps = self._deps(lane, reads, writes, after)
        number = self._builder.add(
            work, lane, deps, reads=reads, writes=writes, takes=takes, releases=releases, requests=requests,
            phase=at.phase, step=at.step, attempt=at.attempt, layer=layer, microbatch=microbatch, page=page, notify=notify, body=body,
        )  # fmt: skip
        for b in reads:
            if lane is not None:
                self._readers.setdefault(b, {})[lane] = number
        for b in writes:
            self._writer[b] = number
            self._lane_of[b] = lane
            self._readers[b] = {}
        if work.op == "kv_to_cpu" and lane is not None:
            self._stores[number] = (lane, tuple(reads), tuple(writes))
        return number

    def _deps(self, lane: str | None, reads: Sequence[str], writes: Sequence[str], after: Iterable[int]) -> list[int]:
        deps = set(after)
        for b in reads:
            if b in self._writer:
                deps.add(self._writer[b])
        for b in writes:
            if b.startswith(POOLED):
                continue
            deps.update(n for where, n in self._readers.get(b, {}).items() if where != lane)
            if b in self._writer and self._lane_of[b] != lane:
                deps.add(self._writer[b])
        return sorted(deps)

    def stand_for(self, number: int, buffers: Iterable[str]) -> None:
        """From here on, readers of `buffers` wait for task `number` in place of the writers."""
        for b in buffers:
            self._writer[b] = number

    def writers(self, buffers: Iterable[str]) -> list[int]:
        """The tasks that a reader of `buffers` would wait for."""
        return sorted({self._writer[b] for b in buffers if b in self._writer})

    # Holds --------------------------------------------------------------------------------------

    def keep(self, name: str, number: int) -> None:
        """Remember that task `number` holds pool units under `name`."""
        self._holds[name] = (*self._holds.get(name, ()), number)

    def give_back(self, name: str) -> tuple[int, ...]:
        """Tasks kept under `name`, for a `releases`; they are forgotten here."""
        return self._holds.pop(name, ())

    # Plans --------------------------------------------------------------------------------------

    def build(self) -> Plan:
        """Everything launched since the last Plan; the next one starts behind it."""
        plan = self._builder.build()
        self._ended = self._builder.next
        self._builder = PlanBuilder(self._ended)
        self._late, self._handed_out, self._stores = self._handed_out, self._stores, {}
        return plan

    def give_up(self, since: int, reason: str) -> list[Cancel]:
        """Cancels for all that was handed out from task `since` on, but for copies of the Plan before
        the last to the host: what they store belongs to tokens that were sampled.

        The other buffers are nobody's then. The next Plan starts with a join that gives back whatever any
        of these tasks may still hold: its releaser may have been cancelled before it took it.
        """
        self._writer.clear()
        self._readers.clear()
        self._holds.clear()
        for number, (lane, reads, writes) in self._late.items():
            for b in reads:
                self._readers.setdefault(b, {})[lane] = number
            for b in writes:
                self._writer[b], self._lane_of[b] = number, lane
        ended = [n for n in range(since, self._ended) if n not in self._late]
        self.add(Work("join"), None, releases=ended)
        return [Cancel(n, reason) for n in ended]

    # Repetition ---------------------------------------------------------------------------------

    def steps(self, launch: Callable[[int], None], first: int, last: int, period: int, advance: Callable[[Work, int], Work]) -> None:
        """Launch the steps `first`..`last`, tiling as soon as they repeat.

        Steps repeat when launching `period` of them has moved every task that the next ones may
        refer to by exactly as many numbers as they have tasks: the next would then get the same
        references, moved on. Until that is so (the first steps refer to the prefill), and for what
        is left over, steps are launched one by one.
        """
        step = first
        while step <= last:
            if last - step + 1 < 2 * period:
                launch(step)
                step += 1
                continue
            since, before = self._builder.mark(), self._referred()
            for s in range(step, step + period):
                launch(s)
            step += period
            size = self._builder.next - since
            if self._repeats(before, size):
                times = (last - step + 1) // period
                self._builder.repeat(since, times, steps=period, advance=advance)
                self._move(since, times * size)
                step += times * period

    def _referred(self) -> dict[str, dict[str, tuple[int, ...]]]:
        """Every task number that later tasks may refer to, by buffer (or name of a hold) and why."""
        state: dict[str, dict[str, tuple[int, ...]]] = {"hold " + name: {"": numbers} for name, numbers in self._holds.items()}
        for b, n in self._writer.items():
            state.setdefault(b, {})[f"written on {self._lane_of[b]}"] = (n,)
        for b, readers in self._readers.items():
            state.setdefault(b, {}).update({lane: (n,) for lane, n in readers.items()})
        return state

    def _repeats(self, before: dict[str, dict[str, tuple[int, ...]]], size: int) -> bool:
        """Whether all that was touched since `before` moved by `size`. What was not touched then will
        not be touched by the next steps either."""
        after = self._referred()
        if after.keys() != before.keys():
            return False
        return all(after[b] == was or after[b] == _moved(was, size) for b, was in before.items())

    def _move(self, since: int, by: int) -> None:
        """After tiling: the last copy's tasks are the ones to refer to."""

        def moved(numbers: Iterable[int]) -> Iterator[int]:
            return (n + by if n >= since else n for n in numbers)

        self._writer = dict(zip(self._writer, moved(self._writer.values()), strict=True))
        self._holds = {name: tuple(moved(numbers)) for name, numbers in self._holds.items()}
        self._readers = {b: dict(zip(r, moved(r.values()), strict=True)) for b, r in self._readers.items()}


def _moved(numbers: dict[str, tuple[int, ...]], by: int) -> dict[str, tuple[int, ...]]:
    return {why: tuple(n + by for n in ns) for why, ns in numbers.items()}
