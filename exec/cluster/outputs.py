"""Outputs: what a rank hands back at the end of a run."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Outputs:
    """counts: (layer, step, chunk, rows for each expert [experts]) of each permute. hidden: activations after the last layer
    [t, H]; tokens, logits: by request; where asked for. peak_rows: most rows of messages held at a time.
    cpu_s: what all threads of the process computed meanwhile.
    """

    counts: list[tuple[int, int, int, list[int]]]
    hidden: Floats | None
    tokens: dict[int, list[int]]
    logits: dict[int, Floats]
    peak_rows: int
    cpu_s: float
