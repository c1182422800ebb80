"""Reference: a fixed piece of work on all cores, by which one sees when a shared computer is slower than at its best."""

from __future__ import annotations

import os
import threading
import time

import numpy as np

from exec import decoder

STREAMED = 1 << 21
"""float32 numbers that each core reads beside its product: 8 MiB, which it does not find in its own caches."""


class Reference:
    """Products and reads, as experts are made of, a few milliseconds on each core at once."""

    def __init__(self) -> None:
        count = os.cpu_count() or 1
        self._x, self._weight = np.ones((96, 512), np.float32), np.ones((512, 512), np.float32)
        self._outs = [np.empty((96, 512), np.float32) for _ in range(count)]
        self._memory = [np.ones(STREAMED, np.float32) for _ in range(count)]
        self.seconds()

    def seconds(self) -> float:
        """Mean over the cores, of the quicker of two goes: a thread may have to wait for its core once."""
        return min(self._once() for _ in range(2))

    def _once(self) -> float:
        took = [0.0] * len(self._outs)
        gate = threading.Barrier(len(took))

        def work(core: int) -> None:
            decoder.set_threads(1)
            gate.wait()
            start = time.perf_counter()
            for _ in range(3):
                decoder._product(self._x, self._weight, self._outs[core])
                self._memory[core].sum()
            took[core] = time.perf_counter() - start

        threads = [threading.Thread(target=work, args=(core,), name=f"reference-{core}") for core in range(len(took))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return float(np.mean(took))
