"""Token sets: the different sets of experts that tokens chose together in a layer, and how often."""

from __future__ import annotations

import numpy as np

from sim.placement.problem import Floats, Ints, Sample


def token_sets(sample: Sample, layer: int) -> tuple[Ints, Floats]:
    """Sets [sets, k], each ascending, and their share of the tokens [sets]."""
    rows = np.sort(sample.experts[:, layer], axis=1).astype(np.int64)
    key = np.zeros(len(rows), np.uint64)
    for column in rows.T:  # a hash where k experts need more than 64 bits; tokens of two sets with one key would count as one
        key = key * np.uint64(0x100000001B3) + column.astype(np.uint64) + np.uint64(1)
    _, first, which = np.unique(key, return_index=True, return_inverse=True)
    return rows[first], np.bincount(which, minlength=len(first)) / len(rows)
