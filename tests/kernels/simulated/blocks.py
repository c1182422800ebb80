"""Numba's CUDA simulator with blocks that wait instead of being polled, and poisoned shared memory.

Its own block manager spins over all threads until they have come to a barrier and takes the
interpreter from them meanwhile: kernels that synchronise ran ten times longer.
"""

from __future__ import annotations

import sys
import threading
from typing import Any

import numpy as np
from numba.cuda.simulator import kernel
from numba.cuda.simulator.kernelapi import FakeCUDAShared

from kernels.cuda.simulated import Meeting


class _Block(kernel.BlockManager):
    """Runs the threads of one block; a barrier opens when all threads that have not ended have come."""

    def run(self, grid_point: Any, *args: Any) -> None:
        points = list(np.ndindex(*self._block_dim))
        self.meeting, self.failed = Meeting(len(points)), []
        threads = [_Thread(lambda: self._f(*args), self, grid_point, point, self._debug) for point in points]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if self.failed:  # the first one: the others only waited for it in vain
            error, traceback = self.failed[0].exception
            raise error.with_traceback(traceback)


class _Thread(kernel.BlockThread):
    def run(self) -> None:
        super().run()
        if self.exception:
            self._manager.failed.append(self)
            self._manager.meeting.break_up()
            for warp in getattr(self._manager, "warps", {}).values():
                warp.meeting.break_up()
        else:
            self._manager.meeting.leave()

    def syncthreads(self) -> None:
        self._manager.meeting.wait()


_allocating = threading.Lock()


def _shared_array(self: Any, shape: Any, dtype: Any, alignment: int | None = None) -> np.ndarray:
    """One poisoned array for each block and place in the code.

    The simulator's own lets two threads of a block each make one when both are first, and keeps
    the contents from block to block.
    """
    frame, block = sys._getframe(1), threading.current_thread()._manager  # type: ignore[attr-defined]
    dtype = np.dtype(getattr(dtype, "name", dtype))
    dynamic = shape == 0  # every such array is the same memory
    key = "dynamic" if dynamic else (frame.f_code, frame.f_lasti)
    with _allocating:
        arrays = block.__dict__.setdefault("shared", {})
        if key not in arrays:
            poison = 0xFF if dynamic else np.nan if dtype.kind == "f" else np.iinfo(dtype).min
            arrays[key] = np.full(self._dynshared_size, poison, np.uint8) if dynamic else np.full(shape, poison, dtype)
        array = arrays[key]
    return array[: array.size // dtype.itemsize * dtype.itemsize].view(dtype) if dynamic else array


def install() -> None:
    kernel.BlockManager = _Block
    FakeCUDAShared.array = _shared_array
    threading.stack_size(1 << 19)  # thousands of threads are made; their usual stacks take the system's time
