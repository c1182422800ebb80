"""ThreadEngine: the wall clock. One thread for each server of each lane.

A task's way: `submit` turns it into a record and puts it on the board; whoever changes the board
(the driving thread or the lane thread that has just ended a task) starts every task that may start:
it takes its holds, its start is stamped, and it goes to its lane's inbox; the lane thread runs the
op without the lock, stamps the end, and tells the board. Waking the lane is thus part of the task,
as launch latency is in the simulator. See docs/decisions/0004-executor-threads.md.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from types import TracebackType
from typing import Self

from exec.runtime.board import Board, Ended
from exec.runtime.bodies import Stamps, inside_of
from exec.runtime.delivery import Delivery
from exec.runtime.errors import Fault, Interrupted, TaskFailed, describe
from exec.runtime.history import last_number, run_of
from exec.runtime.records import Interrupt, Record, record_of, records_of
from exec.runtime.servers import Backend, LaneThreads, Server, join, undisturbed
from sim.body import outer_lanes
from sim.drive import Deadlock
from sim.engines.run import CANCELLED, FAILED, Run
from sim.events import Event, Profile, Request, Result
from sim.machines.schema import Lane, Machine
from sim.plan import Plan
from sim.tasks import PS_PER_S, Cancel, Command, Task, Time

SIGNAL_POLL_S = 0.25
"""A Ctrl-C that arrives just before the driving thread falls asleep does not wake it; this does."""


class ThreadEngine:
    """Runs commands on this computer, as `sim.drive.Engine`. Use it as a context manager:

        with ThreadEngine(machine, backend, profile, requests, pools) as engine:
            drive(scheduler, engine, log)
        run = engine.run()

    Times are picoseconds since the first submission. `wait` raises `TaskFailed` for an op that
    raised, `Deadlock` where open tasks can never start, `HazardError` for a broken plan; leaving the
    context stops and joins every thread, whatever happened.
    """

    def __init__(
        self, machine: Machine, backend: Backend, profile: Profile, requests: Sequence[Request], pools: Mapping[str, int] | None = None
    ) -> None:
        self._backend = backend
        self._lock = threading.Lock()
        self._driver = threading.Condition(self._lock)
        lanes = outer_lanes(machine)
        self._board = self._make_board(lanes, {**machine.pools, **(pools or {})})
        self._lanes = {lane.name: LaneThreads(lane, self._lock) for lane in lanes}
        self._entered = 0
        self._stopping = False
        self._error: BaseException | None = None
        self._origin_ns: int | None = None
        self._delivery = Delivery(profile, requests)
        self._sources: list[Plan | Task] = []
        self._inside: list[tuple[int, Plan, Stamps]] = []
        self._exit = ExitStack()

    def _make_board(self, lanes: Sequence[Lane], pools: Mapping[str, int]) -> Board:
        return Board(lanes, pools)

    # Life of the threads ------------------------------------------------------------------------

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            stack.enter_context(undisturbed())
            stack.callback(self._stop)
            self._start_threads()
            self._exit = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self._exit.close()

    def _start_threads(self) -> None:
        for lane in self._lanes.values():
            lane.start(self._serve)
        wanted = sum(len(lane.servers) for lane in self._lanes.values())
        with self._lock:
            self._driver.wait_for(lambda: self._entered == wanted or self._error is not None)
            if self._error is not None:
                raise self._error

    def _stop(self) -> None:
        """Stop and join every lane thread; running ops are interrupted where they can be."""
        with self._lock:
            self._halt()
        join(self._lanes.values())

    def _halt(self) -> None:
        """Ask all lanes to stop. The lock is held."""
        self._stopping = True
        for lane in self._lanes.values():
            lane.halt()
        self._driver.notify_all()

    # What a lane thread does --------------------------------------------------------------------

    def _serve(self, lane: LaneThreads, server: Server) -> None:
        try:
            self._backend.enter_lane(lane.lane)
        except BaseException as error:
            with self._lock:
                self._error = error
                self._halt()
            return
        with self._lock:
            self._entered += 1
            self._driver.notify_all()
            while (task := self._next(lane)) is not None:
                server.task = task
                if task.cancelled is None:
                    server.interrupt.clear()
                    task.interrupt = server.interrupt
                    self._execute(task, server.interrupt)
                else:
                    self._settle(task, None, None, self._now())
                server.task = None

    def _next(self, lane: LaneThreads) -> Record | None:
        """Next task of the lane; None when the run stops. The lock is held, and let go while waiting."""
        while not self._stopping:
            if lane.inbox:
                return lane.inbox.popleft()
            lane.wake.wait()
        return None

    def _execute(self, task: Record, interrupt: Interrupt) -> None:
        """Run one op. The lock is held at entry and exit, and not while the op runs."""
        result: Result | None = None
        error: BaseException | None = None
        self._lock.release()
        try:
            result = self._backend.run(task, interrupt)
        except BaseException as raised:
            # Every kind of error, whatever the op raised, is the driving thread's to report.
            error = raised
        end = self._now()
        self._lock.acquire()
        self._settle(task, result, error, end)

    def _settle(self, task: Record, result: Result | None, error: BaseException | None, end: Time) -> None:
        """Tell the board how a task ended and hand out what may start now. The lock is held."""
        board = self._board
        try:
            if isinstance(error, Fault):
                board.fail(task, str(error), error.fraction_done, FAILED, end)
            elif task.cancelled is not None and (error is None or isinstance(error, Interrupted)):
                board.fail(task, task.cancelled, _fraction(task, error), CANCELLED, end)
            elif error is None:
                board.done(task, result, end)
                if task.inside is not None and task.body is not None:
                    self._inside.append((task.number, task.body, task.inside))
            elif not (isinstance(error, Interrupted) and self._stopping):
                failure = TaskFailed(f"{describe(task)} failed on lane {task.lane!r}: {type(error).__name__}: {error}")
                failure.__cause__ = error
                raise failure
            self._hand_out(end)
        except BaseException as raised:
            # The lane thread ends here; `wait` raises the first error in the driving thread.
            self._error = self._error or raised
            self._halt()

    def _hand_out(self, now: Time) -> None:
        """Give every task that may start to its lane, and wake the driver where it has something to do.
        Between a failure and its answer nothing starts. The lock is held."""
        board, delivery = self._board, self._delivery
        armed = len(board.timers)
        self._take_in()
        if not delivery.unheard and not self._stopping:
            for task in board.start(now):
                assert task.lane is not None
                lane = self._lanes[task.lane]
                lane.inbox.append(task)
                lane.wake.notify()
            self._take_in()
        if delivery or board.running == 0 or len(board.timers) > armed:
            self._driver.notify()

    def _take_in(self) -> None:
        self._delivery.add(self._board.events)
        self._board.events.clear()

    # What the driving loop calls ----------------------------------------------------------------

    def submit(self, commands: Sequence[Command]) -> None:
        """Take commands in. Raises UserError for commands that break the rules of `sim.tasks`."""
        batches: list[list[Record] | Cancel] = []
        for command in commands:
            if isinstance(command, Cancel):
                batches.append(command)
            else:
                batches.append(records_of(command) if isinstance(command, Plan) else [record_of(command)])
                self._sources.append(command)
        self._start_clock()
        with self._lock:
            now = self._now()
            for batch in batches:
                if isinstance(batch, Cancel):
                    running = self._board.cancel(batch.task, batch.reason, now)
                    if running is not None and running.interrupt is not None:
                        running.interrupt.set()
                else:
                    self._board.submit(batch, now)
            self._hand_out(now)

    def wait(self) -> tuple[Time, Event] | None:
        """The next event by (time, submission number); None when all is done. A call says that the
        last event was answered."""
        with self._lock:
            if self._delivery.answered():
                self._hand_out(self._now())
            while True:
                if self._error is not None:
                    raise self._error
                happened = self._take()
                if happened is not None:
                    return happened
                if self._finished():
                    return None
                self._start_clock()
                self._driver.wait(self._until_due_s())

    def _take(self) -> tuple[Time, Event] | None:
        """What is due, if anything. The lock is held."""
        now = self._now()
        timers = self._board.timers
        if timers and timers[0][0] <= now:
            self._board.due_timers(now)
            self._hand_out(now)
        self._delivery.arrive(now)
        return self._delivery.pop()

    def _finished(self) -> bool:
        """Whether nothing is left. Raises Deadlock where what is left can never happen."""
        board = self._board
        if board.running or self._delivery.next_arrival_ps is not None:
            return False
        if board.open:
            raise Deadlock(f"{board.open} tasks are open and none can start: {board.story()}")
        return True

    def _until_due_s(self) -> float:
        """Seconds until the next timer or arrival, at most until signals should be looked at."""
        due = [timer[0] for timer in self._board.timers[:1]]
        if (arrival := self._delivery.next_arrival_ps) is not None:
            due.append(arrival)
        left_s = (min(due) - self._now()) / PS_PER_S if due else SIGNAL_POLL_S
        return max(0.0, min(SIGNAL_POLL_S, left_s))

    def _start_clock(self) -> None:
        if self._origin_ns is None:
            self._origin_ns = time.perf_counter_ns()

    def _now(self) -> Time:
        return (time.perf_counter_ns() - self._origin_ns) * 1000 if self._origin_ns is not None else 0

    def run(self) -> Run:
        """What ran from when to when, tasks that have ended, in order of their numbers."""
        with self._lock:
            return self._with_inside(self._run(self._board.ended, self._sources), self._inside)

    def drain(self) -> Run:
        """As `run`, of what has ended since the last call, and then forgotten: a service that runs for
        days hands out its timeline in pieces. The sources are those of the tasks that have ended, and of
        open ones."""
        with self._lock:
            ended, self._board.ended = self._board.ended, []
            inside, self._inside = self._inside, []
            sources, oldest = self._sources, self._board.oldest
            self._sources = [s for s in sources if last_number(s) >= oldest]
        return self._with_inside(self._run(ended, sources), inside)

    def _with_inside(self, run: Run, stamped: Sequence[tuple[int, Plan, Stamps]]) -> Run:
        origin = self._origin_ns or 0
        return replace(run, inside=tuple(inside_of(*one, origin) for one in sorted(stamped, key=lambda one: one[0])))

    def _run(self, ended: Sequence[Ended], sources: Sequence[Plan | Task]) -> Run:
        return run_of(ended, sources, tuple(self._lanes))


def _fraction(task: Record, error: BaseException | None) -> float:
    """How much of a cancelled task was done: all of it where its op ended before it looked."""
    if isinstance(error, Interrupted):
        return error.fraction_done
    return 1.0 if task.interrupt is not None else 0.0
