"""Drawing tokens from the nucleus on the CPU."""

from __future__ import annotations

import numpy as np
import pytest

from kernels import sample
from tests.kernels.arrays import floats, poisoned
from tests.kernels.moving import nucleus

RNG = np.random.default_rng(6)


def drawn(logits: np.ndarray, temperature: float, top_p: float, uniform: np.ndarray) -> np.ndarray:
    out = poisoned(len(logits), dtype=np.int64)
    sample.draw(logits, temperature, top_p, uniform, poisoned(logits.shape[1]), out)
    return out


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 0.9), (0.7, 0.5), (2.0, 1.0), (1.0, 1e-6)])
@pytest.mark.parametrize("vocab", [1, 33, 1000])
def test_draws_follow_the_nucleus(vocab: int, temperature: float, top_p: float) -> None:
    """Evenly spaced random numbers draw each token as often as its probability says."""
    count = 2000
    row = 2 * floats(RNG, 1, vocab)
    uniform = ((np.arange(count) + 0.5) / count).astype(np.float32)
    tokens = drawn(np.tile(row, (count, 1)), temperature, top_p, uniform)
    p = nucleus(row, temperature, top_p)[0]
    assert (p[tokens] > 0).all() and (np.diff(tokens) >= 0).all()
    np.testing.assert_allclose(np.bincount(tokens, minlength=vocab) / count, p / p.sum(), atol=1.5 / count)


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 0.9), (0.5, 0.3)])
def test_the_reference_draws_the_same(temperature: float, top_p: float) -> None:
    logits, uniform = 2 * floats(RNG, 40, 65), RNG.random(40, dtype=np.float32)
    wanted = sample.draw_reference(logits.astype(float), temperature, top_p, uniform.astype(float))
    assert (drawn(logits, temperature, top_p, uniform) == wanted).all()


def test_equally_probable_tokens_are_all_in_the_nucleus() -> None:
    uniform = np.array([0.1, 0.4, 0.6, 0.9], np.float32)
    logits = np.tile(np.array([0, 5, 5, -np.inf, 5, 5], np.float32), (4, 1))
    assert drawn(logits, 1.0, 0.5, uniform).tolist() == [1, 2, 4, 5]


def test_the_largest_random_number_draws_the_last_token_of_the_nucleus() -> None:
    logits = np.zeros((1, 7), np.float32)
    assert drawn(logits, 1.0, 1.0, np.array([np.nextafter(np.float32(1), np.float32(0))])).tolist() == [6]
