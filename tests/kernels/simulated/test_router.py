"""Routers in the CUDA simulator."""

from __future__ import annotations

import numpy as np
import pytest

from kernels import router
from kernels.cuda.element import from_bfloat16, round_bfloat16
from tests.kernels.arrays import assert_close, floats, poisoned
from tests.kernels.routing import RULES

RNG = np.random.default_rng(4)


@pytest.mark.parametrize("top_k", range(1, 9))
@pytest.mark.parametrize(("tokens", "experts"), [(1, 8), (3, 72)])
def test_select(tokens: int, experts: int, top_k: int) -> None:
    logits = 3 * floats(RNG, tokens, experts)
    ids, weights = poisoned(tokens, top_k, dtype=np.int16), poisoned(tokens, top_k)
    router.select_cuda(logits, ids, weights, threads=64)
    wanted_ids, wanted = router.reference(logits.astype(float), top_k)
    assert (ids == wanted_ids).all()
    assert_close(weights, wanted)


@pytest.mark.parametrize("name", RULES)
def test_rules(name: str) -> None:
    rule, logits, bias = RULES[name], floats(RNG, 2, 40), floats(RNG, 40) / 4
    ids, weights = poisoned(2, 6, dtype=np.int16), poisoned(2, 6)
    router.choose_cuda(logits, bias, rule, ids, weights, threads=64)
    wanted_ids, wanted = router.reference(logits.astype(float), 6, rule, bias.astype(float))
    assert (ids == wanted_ids).all()
    assert_close(weights, wanted, 4e-6)


def test_ties_and_extremes() -> None:
    logits = np.array([[1, 2, 2, 2], [-np.inf, -np.inf, 0, -np.inf], [3e38, -3e38, 0, 1]], np.float32)
    ids, weights = poisoned(3, 2, dtype=np.int16), poisoned(3, 2)
    router.select_cuda(logits, ids, weights, threads=32)
    assert ids.tolist() == [[1, 2], [2, 0], [0, 3]]
    np.testing.assert_allclose(weights, [[0.5, 0.5], [1, 0], [1, 0]], atol=1e-7)


def test_bfloat16_logits() -> None:
    logits = round_bfloat16(floats(RNG, 2, 12))
    ids, weights = poisoned(2, 3, dtype=np.int16), poisoned(2, 3)
    router.select_cuda(logits, ids, weights, threads=32)
    wanted_ids, wanted = router.reference(from_bfloat16(logits).astype(float), 3)
    assert (ids == wanted_ids).all()
    assert_close(weights, wanted)


def test_forced_experts_get_the_router_s_weights() -> None:
    logits = floats(RNG, 3, 8)
    ids, weights, again = poisoned(3, 2, dtype=np.int16), poisoned(3, 2), poisoned(3, 2)
    router.select(logits, ids, weights)
    router.weigh_cuda(logits, ids[:, ::-1].copy(), again, threads=32)
    assert_close(again[:, ::-1], weights)
