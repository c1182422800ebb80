"""Matrix product with a weight stored [n, k]: x [rows, k] -> [rows, n]."""

from __future__ import annotations

from kernels.cost import NOTHING, Cost


def work(rows: int, k: int, n: int, b: int) -> Cost:
    """2 rows k n FLOPs (a multiply and an add each).

    Bytes: the weight [n, k] and x [rows, k] read, out [rows, n] written. Without rows: nothing.
    """
    if not rows:
        return NOTHING
    return Cost(2 * rows * k * n, b * (rows * k + k * n + rows * n))
