"""Outputs: what a rank hands back at the end of a run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]


class DeviceClock(NamedTuple):
    """A device's clock against its host's in one run: how far off a time can be, and by how much they moved apart."""

    uncertainty_us: float
    moved_us: float


@dataclass(frozen=True, slots=True)
class Outputs:
    """counts: (layer, step, chunk, rows for each expert [experts]) of each permute. hidden: activations after the last layer
    [t, H]; tokens, logits: by request; where asked for. cpu_s: what all threads of the process computed meanwhile; computed_s: of
    that, in ops that compute; whole_s: and until all this was ready to be handed back. clock: of the rank's device, where it has one.
    """

    counts: list[tuple[int, int, int, list[int]]]
    hidden: Floats | None
    tokens: dict[int, list[int]]
    logits: dict[int, Floats]
    cpu_s: float
    computed_s: float = field(default=0.0, kw_only=True)
    whole_s: float = field(default=0.0, kw_only=True)
    clock: DeviceClock | None = field(default=None, kw_only=True)
