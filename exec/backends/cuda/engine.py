"""StreamEngine: the wall clock of streams. A task is handed on when it is enqueued, not when it is done.

Its lane's thread enqueues it behind the tokens of what it depends on and goes on with the next one, so
the device never waits for the host between two of its tasks. Host lanes wait for tokens themselves.
What the scheduler must hear of (samplings), a reaper thread reports when it is really done.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Self

from exec.backends.cuda.device import Event
from exec.backends.cuda.ends import Ends, StreamPools
from exec.runtime import Record, ThreadEngine
from exec.runtime.board import Board, Ended
from exec.runtime.bodies import Stamps
from sim.engines.run import Run
from sim.events import Finished, Result
from sim.machines.schema import Lane
from sim.plan import Plan
from sim.tasks import Cancel, Command, Task, Time


@dataclass(frozen=True, slots=True)
class Later:
    """The result of a task that is enqueued: `result` makes it once `event` has happened."""

    event: Event
    result: Callable[[], Result | None]


class StreamBoard(Board):
    """Joins end with the tokens of what they join; pool units carry those of their releasers."""

    def __init__(self, lanes: Sequence[Lane], pools: Mapping[str, int], ends: Ends) -> None:
        super().__init__(lanes, pools)
        self.pools: StreamPools = StreamPools(dict(pools), ends)
        self._ends = ends

    def done(self, task: Record, result: Result | None, now: Time) -> None:
        if task.lane is None:
            self._ends.joined(task.number, task.deps)
        super().done(task, result, now)


class StreamEngine(ThreadEngine):
    """`ThreadEngine` for a backend with `ends` and `device` (see `backend.CudaBackend`)."""

    _backend: Any

    def _make_board(self, lanes: Sequence[Lane], pools: Mapping[str, int]) -> StreamBoard:
        board = StreamBoard(lanes, pools, self._backend.ends)
        self._backend.pools = board.pools
        self._pending = 0
        self._to_reap: queue.SimpleQueue[tuple[int, Later] | None] = queue.SimpleQueue()
        return board

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            stack.callback(self._backend.close)
            reaper = threading.Thread(target=self._reap, name="reaper", daemon=True)
            reaper.start()
            stack.callback(reaper.join)
            stack.callback(self._to_reap.put, None)
            super().__enter__()
            # Closed last in, first out: the lanes stop, then the reaper, then the device.
            stack.push(self._exit)
            self._exit = stack.pop_all()
        return self

    def _settle(self, task: Record, result: Any, error: BaseException | None, end: Time) -> None:
        if error is None and isinstance(result, Later):
            self._pending += 1
            self._to_reap.put((task.number if task.notify else -1, result))
            task.notify = False
            result = None
        super()._settle(task, result, error, end)

    def _reap(self) -> None:
        """Report results in the order in which their tasks were enqueued."""
        while (item := self._to_reap.get()) is not None:
            number, later = item
            try:
                later.event.synchronize()
                result = later.result()
                with self._lock:
                    self._pending -= 1
                    if number >= 0:
                        self._delivery.add([(self._now(), number, Finished(number, result or Result()))])
                    self._driver.notify()
            except BaseException as error:
                # `wait` raises it in the driving thread.
                with self._lock:
                    self._error = self._error or error
                    self._halt()

    def _finished(self) -> bool:
        return not self._pending and super()._finished()

    def submit(self, commands: Sequence[Command]) -> None:
        if any(isinstance(c, Cancel) for c in commands):
            # What was enqueued cannot be called back; what follows may reuse all of its buffers.
            self._backend.device.synchronize()
        super().submit(commands)

    def drain(self) -> Run:
        self._backend.read_clock()
        self._backend.device.synchronize()
        return super().drain()

    def _run(self, ended: Sequence[Ended], sources: Sequence[Plan | Task]) -> Run:
        """With the times at which tasks really ran, by the device's stamps."""
        stamps, origin = self._backend.ends.stamps(), self._origin_ns or 0
        rows = []
        for number, lane, start, end, status in ended:
            if number in stamps:
                start, end = ((t - origin) * 1000 for t in stamps[number])
            rows.append((number, lane, start, max(start, end), status))
        return super()._run(_joins_last(rows, sources), sources)

    def _with_inside(self, run: Run, stamped: Sequence[tuple[int, Plan, Stamps]]) -> Run:
        return super()._with_inside(run, self._backend.layers.on_host_clock(stamped))


def _joins_last(rows: Sequence[Ended], sources: Sequence[Plan | Task]) -> Sequence[Ended]:
    """Joins end when the last task that they join has ended."""
    ends = {row[0]: row[3] for row in rows}
    deps = _deps_of({row[0] for row in rows if row[1] is None}, sources)
    moved = []
    for number, lane, start, end, status in rows:
        if lane is None and deps.get(number):
            last = max((ends.get(d, end) for d in deps[number]), default=end)
            start, end = last, last + (end - start)
            ends[number] = end
        moved.append((number, lane, start, end, status))
    return moved


def _deps_of(numbers: set[int], sources: Sequence[Plan | Task]) -> dict[int, Sequence[int]]:
    found: dict[int, Sequence[int]] = {}
    for source in sources:
        if isinstance(source, Task):
            if source.number in numbers:
                found[source.number] = source.deps
            continue
        for n in range(source.first, source.first + len(source)):
            if n in numbers:
                i = n - source.first
                found[n] = source.dep[source.dep_ptr[i] : source.dep_ptr[i + 1]].tolist()
    return found

