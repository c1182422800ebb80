"""Timing of small pieces of work, alone and beside others."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

import numpy as np

Work = Callable[[], object]


def solo(work: Work, *, budget_s: float = 0.15, least: int = 7) -> float:
    """Median seconds of one call, over at least `least` calls and about `budget_s` seconds.

    `work` should touch other weights at each call (see `cold`): in a real run they have just arrived.
    """
    work()
    samples: list[float] = []
    end = time.perf_counter() + budget_s
    while len(samples) < least or time.perf_counter() < end:
        start = time.perf_counter()
        work()
        samples.append(time.perf_counter() - start)
    return float(np.median(samples))


def together(works: Sequence[Work], *, budget_s: float = 0.6, threads: Sequence[int] = ()) -> list[float]:
    """Median seconds of one call of each, every one looping on a thread of its own beside the others."""
    stop, gate = threading.Event(), threading.Barrier(len(works))
    samples: list[list[float]] = [[] for _ in works]

    def loop(i: int) -> None:
        if threads:
            set_threads(threads[i])
        works[i]()
        gate.wait()
        while not stop.is_set():
            start = time.perf_counter()
            works[i]()
            samples[i].append(time.perf_counter() - start)

    runners = [threading.Thread(target=loop, args=(i,), name=f"calibrate-{i}") for i in range(len(works))]
    for t in runners:
        t.start()
    time.sleep(budget_s)
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


def set_threads(count: int) -> None:
    """Threads that this thread's torch calls use."""
    import torch

    torch.set_num_threads(count)


def cold(works: Sequence[Work]) -> Work:
    """One work that runs the next of `works` at each call: operands that caches have forgotten."""
    turn = 0

    def call() -> object:
        nonlocal turn
        turn += 1
        return works[turn % len(works)]()

    return call
