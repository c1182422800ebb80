"""The real executor. Importing it settles how OpenMP threads wait, before torch or Numba start any."""

import os

# Spinning OpenMP threads cost a factor of 6 on a busy 2-core machine; every lane brings its own threads.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
