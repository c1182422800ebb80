"""Reference: a fixed piece of work on all cores, by which one sees when a shared computer is slower than at its best."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from typing import TypeVar

import numpy as np

from exec.priority import bind
from exec.products import product, set_threads

STREAMED = 1 << 21
"""float32 numbers that each core reads beside its product: 8 MiB, which it does not find in its own caches."""

ROUNDS = 6

BEST = 10
"""Percentile of the times so far that counts as the computer's best."""

SLOWED = 1.15
"""A computer that needs so many times longer than at its best is disturbed."""

PATIENCE_S = 1.0

TRIES = 2

T = TypeVar("T")


class Reference:
    """Products and reads, as experts are made of, a few milliseconds on each core at once. Keeps all its times."""

    def __init__(self) -> None:
        self._cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
        self._x, self._weight = np.ones((96, 512), np.float32), np.ones((512, 512), np.float32)
        self._outs = [np.empty((96, 512), np.float32) for _ in self._cores]
        self._memory = [np.ones(STREAMED, np.float32) for _ in self._cores]
        self._once()
        self._times = [self._once() for _ in range(20)]

    @property
    def best_s(self) -> float:
        return float(np.percentile(self._times, BEST))

    def seconds(self) -> float:
        """Mean over the cores, of the quicker of two goes: a thread may have to wait for its core once."""
        self._times.append(min(self._once() for _ in range(2)))
        return self._times[-1]

    def calm_s(self) -> float:
        """As `seconds`, when the computer is about as quick as at its best, or after a while however it is."""
        give_up = time.monotonic() + PATIENCE_S
        while (took := self.seconds()) > SLOWED * self.best_s and time.monotonic() < give_up:
            time.sleep(0.02)
        return took

    def calmly(self, work: Callable[[], T]) -> T:
        """What `work` gave while the computer was about as quick as at its best; where it never is, in the calmest of a few tries."""
        done: list[tuple[float, T]] = []
        while len(done) < TRIES and all(took > SLOWED * self.best_s for took, _ in done):
            before_s, result = self.calm_s(), work()
            done.append((max(before_s, self.seconds()), result))
        return min(done, key=lambda one: one[0])[1]

    def _once(self) -> float:
        took = [0.0] * len(self._cores)
        gate = threading.Barrier(len(took))

        def work(k: int) -> None:
            set_threads(1)
            bind({self._cores[k]})  # two of them on one core would be twice as slow
            gate.wait()
            start = time.perf_counter()
            for _ in range(ROUNDS):
                product(self._x, self._weight, self._outs[k])
                self._memory[k].sum()
            took[k] = time.perf_counter() - start

        threads = [threading.Thread(target=work, args=(k,), name=f"reference-{k}") for k in range(len(took))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return float(np.mean(took))
