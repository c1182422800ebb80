"""`mma.cu` compiled for the host: the layout of fragments, against float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from kernels.cuda import mma
from kernels.cuda.element import from_bfloat16, round_bfloat16
from tests.kernels.arrays import floats

RNG = np.random.default_rng(6)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return mma.on_host(tmp_path_factory.mktemp("mma"))


def bits_and_values(name: str, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if mma.ELEMENTS[name] == "uint16":
        bits = round_bfloat16(x)
        return bits.ravel(), from_bfloat16(bits).astype(float)
    halves = x.astype(np.float16)
    return halves.view(np.uint16).ravel(), halves.astype(float)


@pytest.mark.parametrize("name", mma.ELEMENTS)
@pytest.mark.parametrize("k", [8, 32, 40, 200])
def test_product(library: Any, name: str, k: int) -> None:
    """Rows lie anywhere; -1 is a row of zeros; k that is no multiple of the step."""
    (x, wide_x), (w, wide_w) = bits_and_values(name, floats(RNG, 70, k)), bits_and_values(name, floats(RNG, 90, k))
    rows, columns = RNG.permutation(70)[:64], RNG.permutation(90)[:64]
    x_at, w_at = (rows * k).astype(np.int64), (columns * k).astype(np.int64)
    x_at[5] = w_at[61] = -1
    wanted = wide_x[rows] @ wide_w[columns].T
    wanted[5], wanted[:, 61] = 0, 0
    found = mma.product_on_host(library, name, x, x_at, w, w_at, k)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=2e-6 * np.abs(wanted).max())
