"""Timing of small pieces of work, alone and beside others."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

import numpy as np

from exec.products import set_threads

Work = Callable[[], object]


class Eviction:
    """Reads memory that the caches do not hold, so that what is measured next finds its operands cold."""

    def __init__(self, nbytes: int = 48 << 20) -> None:
        self._memory = np.ones(nbytes // 8)

    def __call__(self) -> None:
        self._memory.sum()


def solo(work: Work, before: Work | None = None, *, budget_s: float = 0.12, least: int = 7, most: int = 25) -> float:
    """Median seconds of one call, over `least` to `most` calls and about `budget_s` seconds of them.

    `before` runs ahead of each call and is not timed: it makes weights as cold as they are in a
    real run, where they have just arrived or were used a whole pass ago.
    """
    work()
    samples: list[float] = []
    spent = 0.0
    while len(samples) < least or (spent < budget_s and len(samples) < most):
        if before is not None:
            before()
        start = time.perf_counter()
        work()
        samples.append(time.perf_counter() - start)
        spent += samples[-1]
    return float(np.median(samples))


def together(works: Sequence[Work], *, budget_s: float = 0.6, threads: Sequence[int] = ()) -> list[float]:
    """Median seconds of one call of each, every one looping on a thread of its own beside the others."""
    stop, gate = threading.Event(), threading.Barrier(len(works))
    samples: list[list[float]] = [[] for _ in works]

    def loop(i: int) -> None:
        if threads:
            set_threads(threads[i])
        works[i]()
        try:
            gate.wait()
        except threading.BrokenBarrierError:
            return  # this measurement was given up
        while not stop.is_set() or not samples[i]:  # a computer that was halted meanwhile has run none yet
            start = time.perf_counter()
            works[i]()
            samples[i].append(time.perf_counter() - start)

    runners = [threading.Thread(target=loop, args=(i,), name=f"calibrate-{i}") for i in range(len(works))]
    try:
        for t in runners:
            t.start()
        end, give_up = time.perf_counter() + budget_s, time.perf_counter() + 20 * budget_s
        while time.perf_counter() < end or (min(map(len, samples)) < 4 and time.perf_counter() < give_up):
            time.sleep(0.02)
    except BaseException:  # also Ctrl-C: threads that go on would keep the process
        gate.abort()
        raise
    finally:
        stop.set()
    for t in runners:
        t.join()
    # The first call may have begun before the others ran.
    return [float(np.median(s[1:] or s)) for s in samples]


def on_thread(work: Callable[[], list[float]], threads: int) -> list[float]:
    """Run `work` on a fresh thread whose BLAS and OpenMP calls use `threads` threads, as a lane's do."""
    out: list[list[float]] = []

    def target() -> None:
        set_threads(threads)
        out.append(work())

    runner = threading.Thread(target=target, name="calibrate")
    runner.start()
    runner.join()
    if not out:
        raise RuntimeError("a calibration thread failed; its traceback is above")
    return out[0]
