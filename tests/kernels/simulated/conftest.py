"""CUDA kernels in Numba's simulator. `tests/kernels/test_simulated.py` runs this folder in processes
of its own, since the simulator is chosen before Numba is imported; a plain pytest run passes it by."""

from __future__ import annotations

import os

SIMULATED = os.environ.get("NUMBA_ENABLE_CUDASIM") == "1"
collect_ignore_glob = [] if SIMULATED else ["test_*.py"]

if SIMULATED:
    from tests.kernels.simulated import blocks

    blocks.install()
