"""Inputs and poisoned outputs of the kernel tests."""

from __future__ import annotations

import numpy as np


def floats(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape, dtype=np.float32)


def poisoned(*shape: int, dtype: type = np.float32) -> np.ndarray:
    """An output or scratch that shows what was not written: NaN, or the smallest integer."""
    return np.full(shape, np.nan if np.issubdtype(dtype, np.floating) else np.iinfo(dtype).min, dtype)


def assert_close(actual: np.ndarray, wanted: np.ndarray, tolerance: float = 2e-6) -> None:
    """Within `tolerance` of the largest magnitude, and nothing left unwritten."""
    assert actual.shape == wanted.shape
    assert np.isfinite(actual).all(), f"{np.count_nonzero(~np.isfinite(actual))} elements never written"
    np.testing.assert_allclose(actual, wanted, rtol=0, atol=tolerance * max(1e-30, np.abs(wanted).max(initial=0)))
