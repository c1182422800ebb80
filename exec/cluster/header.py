"""Headers of messages between ranks: one row of numbers, int32 in the place of float32."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from exec.cluster.rows import Floats

HEADER = 4
"""Fixed fields, int32: kind, task number, rows, experts whose counts follow."""

DATA, SIGNAL, LAST = 1, 2, 3


def fill_header(message: Floats, kind: int, number: int, rows: int, counts: Sequence[int]) -> None:
    """Write the header into row 0 of a message. Its row must have room for HEADER + len(counts) numbers."""
    header = message[0].view(np.int32)
    assert len(header) >= HEADER + len(counts), f"a row of {len(header)} numbers holds no header with {len(counts)} counts"
    header[:HEADER] = kind, number, rows, len(counts)
    header[HEADER : HEADER + len(counts)] = counts


def header_of(message: Floats) -> tuple[int, int, int, int]:
    """kind, task number, rows, number of counts."""
    kind, number, rows, counts = message[0].view(np.int32)[:HEADER].tolist()
    return kind, number, rows, counts


def counts_of(message: Floats, experts: int) -> NDArray[np.int32]:
    return message[0].view(np.int32)[HEADER : HEADER + experts].copy()
