"""CUDA kernels in Numba's simulator. `tests/kernels/test_simulated.py` runs this folder in processes
of its own, since the simulator is chosen before Numba is imported; a plain pytest run passes it by."""

from __future__ import annotations

import os
import sys

collect_ignore_glob = [] if os.environ.get("NUMBA_ENABLE_CUDASIM") == "1" else ["test_*.py"]

# Simulated threads hand over at barriers all the time, and the simulator's own loop polls them.
sys.setswitchinterval(1e-4)
