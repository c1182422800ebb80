"""What a launch refuses: the compiled kernel would take the bytes for what they are not."""

from __future__ import annotations

import numpy as np
import pytest

from kernels import combine, embed
from kernels.cuda.element import from_bfloat16, round_bfloat16

TABLE, OUT = np.ones((4, 6), np.float32), np.ones((2, 6), np.float32)


@pytest.mark.parametrize(
    ("ids", "out", "message"),
    [
        (np.zeros(2, np.int32), OUT, r"argument 1 is \('int32', 1\), not \('int64', 1\)"),
        (np.zeros((2, 1), np.int64), OUT, "argument 1"),
        (np.zeros(2, np.int64), OUT.astype(np.float16), "argument 2 is"),
        (np.zeros(2, np.int64), np.ones((2, 12), np.float32)[:, ::2], "argument 2 is not C-contiguous"),
    ],
)
def test_arguments_that_the_signature_does_not_name(ids: np.ndarray, out: np.ndarray, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        embed.forward_cuda(TABLE, ids, out, threads=32)


def test_number_of_arguments() -> None:
    with pytest.raises(AssertionError, match="3 arguments for"):
        combine._sums.launch(1, 32, OUT, OUT, OUT)
    with pytest.raises(AssertionError, match="argument 3 is an array, not one int32"):
        from kernels import rope

        rope._rotate.launch(1, 32, OUT, np.zeros(2, np.int64), TABLE, np.zeros(1, np.int32))


def test_bfloat16_bits_round_to_nearest_even_and_back() -> None:
    x = np.array([1.0, 1.00390625, 1.01171875, -2.5, np.inf, np.nan, 3.4e38, 1e-40], np.float32)
    torch = pytest.importorskip("torch")
    wanted = torch.from_numpy(x).to(torch.bfloat16).float().numpy()
    np.testing.assert_array_equal(from_bfloat16(round_bfloat16(x)), wanted)
