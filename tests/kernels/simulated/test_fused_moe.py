"""The persistent kernel in the CUDA simulator, whose blocks run one after another: the first drains the list."""

from __future__ import annotations

import numpy as np
import pytest

from kernels.cuda.element import from_bfloat16, round_bfloat16
from kernels.fused_moe.gpu import DeviceLaunch
from kernels.fused_moe.reference import reference
from kernels.fused_moe.tiles import Tiling
from tests.kernels.arrays import assert_close
from tests.kernels.moe import Case, case, check_timeline

DECODE = Tiling(tokens=16, experts=3, rows=16, gate_up=4, down=4, combine=8)
GROUPED = Tiling(tokens=4, experts=64, rows=3, gate_up=8, down=16, combine=16)


def run(made: Case, threads: int | None, blocks: int = 2) -> None:
    """Twice, since a launch must leave everything ready for the next."""
    kernel = DeviceLaunch(made.tiles, made.program, blocks, threads=threads)
    for _ in range(2 if len(made.program) < 100 else 1):
        made.layer.out[:] = np.nan
        made.layer.ids[:] = -1
        kernel(made.layer)
        assert_close(made.layer.out, made.wanted, 5e-6)
        assert (made.layer.ids == made.ids).all()
        assert_close(made.layer.weights, made.weights, 5e-6)
        check_timeline(made, kernel.state, blocks)


@pytest.mark.parametrize(
    ("tokens", "experts", "top_k", "spread"),
    [(1, 4, 1, "random"), (1, 8, 8, "random"), (2, 5, 3, "random"), (5, 6, 2, "one"), (3, 4, 4, "random"), (3, 8, 5, "random"),
     (4, 9, 6, "random"), (2, 8, 7, "one")],
)  # fmt: skip
def test_decode(tokens: int, experts: int, top_k: int, spread: str) -> None:
    run(case(tokens, 16, 8, experts, top_k, DECODE, spread=spread), threads=32)


@pytest.mark.parametrize(("tokens", "hidden", "ffn", "threads"), [(1, 1032, 8, 64), (1, 8, 520, 32)])
def test_decode_of_rows_longer_than_a_batch_of_loads(tokens: int, hidden: int, ffn: int, threads: int) -> None:
    run(case(tokens, hidden, ffn, 2, 1, DECODE._replace(experts=1, gate_up=64, down=128, combine=1024), spread="one"), threads)


@pytest.mark.parametrize(
    ("tokens", "experts", "top_k", "spread"), [(1, 1, 1, "random"), (5, 4, 2, "random"), (9, 5, 1, "one"), (2, 8, 8, "random")]
)
def test_grouped(tokens: int, experts: int, top_k: int, spread: str) -> None:
    run(case(tokens, 8, 5, experts, top_k, GROUPED, spread=spread), threads=None)


def test_decode_of_bfloat16_rounds_what_it_stores() -> None:
    made = case(2, 16, 8, 4, 2, DECODE)
    bits = [round_bfloat16(a) for a in made.layer[:4]]
    layer = made.layer._replace(x=bits[0], gate=bits[1], experts=bits[2], residual=bits[3], out=np.zeros_like(bits[3]))
    DeviceLaunch(made.tiles, made.program, 1, np.uint16, threads=32)(layer)
    wanted, ids, _ = reference(*(from_bfloat16(b).astype(float) for b in bits), 2, 8)
    assert (layer.ids == ids).all()
    np.testing.assert_allclose(from_bfloat16(layer.out), wanted, atol=2**-6 * np.abs(wanted).max())


@pytest.mark.parametrize(
    ("shape", "tiling", "message"),
    [((1, 12, 8, 4, 2), DECODE, "multiples of 8"), ((20, 16, 8, 4, 2), DECODE._replace(tokens=20), "one slot an expert"),
     ((4, 8, 8, 4, 2), GROUPED._replace(rows=65), "64 rows")],
)  # fmt: skip
def test_sizes_that_the_kernels_do_not_do(shape: tuple[int, ...], tiling: Tiling, message: str) -> None:
    made = case(*shape, tiling)
    with pytest.raises(ValueError, match=message):
        DeviceLaunch(made.tiles, made.program, 1)
