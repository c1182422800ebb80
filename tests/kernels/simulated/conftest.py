"""CUDA kernels in Numba's simulator. `tests/kernels/test_simulated.py` runs this folder in processes
of its own, since the simulator is chosen before Numba is imported; a plain pytest run passes it by."""

from __future__ import annotations

import os
import sys
import threading
from typing import Any

import numpy as np

SIMULATED = os.environ.get("NUMBA_ENABLE_CUDASIM") == "1"
collect_ignore_glob = [] if SIMULATED else ["test_*.py"]

_allocating = threading.Lock()


def _shared_array(self: Any, shape: Any, dtype: Any, alignment: int | None = None) -> np.ndarray:
    """One poisoned array for each block and line of code.

    The simulator's own lets two threads of a block each make one when both are first, and keeps
    the contents from block to block.
    """
    frame, block = sys._getframe(1), threading.current_thread()._manager  # type: ignore[attr-defined]
    dtype = np.dtype(getattr(dtype, "name", dtype))
    dynamic = shape == 0  # every such array is the same memory
    key = "dynamic" if dynamic else (frame.f_code, frame.f_lineno)
    with _allocating:
        arrays = block.__dict__.setdefault("shared", {})
        if key not in arrays:
            poison = 0xFF if dynamic else np.nan if dtype.kind == "f" else np.iinfo(dtype).min
            arrays[key] = np.full(self._dynshared_size, poison, np.uint8) if dynamic else np.full(shape, poison, dtype)
        array = arrays[key]
    return array[: array.size // dtype.itemsize * dtype.itemsize].view(dtype) if dynamic else array


if SIMULATED:
    from numba.cuda.simulator.kernelapi import FakeCUDAShared

    FakeCUDAShared.array = _shared_array
    # Simulated threads hand over at barriers all the time, and the simulator's own loop polls them.
    sys.setswitchinterval(1e-4)
