"""Router, dispatch, expert FFN, combine: alone and one after the other."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels import combine, dispatch, expert_ffn, router
from kernels.router import Rule
from tests.kernels.arrays import assert_close, floats, poisoned
from tests.kernels.routing import RULES

RNG = np.random.default_rng(2)
EXPERTS = 8


def chosen(tokens: int, experts: int, top_k: int, spread: str) -> np.ndarray:
    """Routes: random, or every token the same k experts, so that the others have no token."""
    if spread == "one":
        return np.tile(np.arange(top_k, dtype=np.int16) + experts - top_k, (tokens, 1))
    return np.stack([RNG.permutation(experts)[:top_k] for _ in range(tokens)]).astype(np.int16)


@pytest.mark.parametrize("top_k", range(1, 9))
@pytest.mark.parametrize(("tokens", "experts"), [(1, 8), (33, 8), (5, 60)])
def test_router(tokens: int, experts: int, top_k: int) -> None:
    logits = 3 * floats(RNG, tokens, experts)
    ids, weights = poisoned(tokens, top_k, dtype=np.int16), poisoned(tokens, top_k)
    router.select(logits, ids, weights)
    wanted_ids, wanted = router.reference(logits.astype(float), top_k)
    assert (ids == wanted_ids).all()
    assert_close(weights, wanted)
    assert_close(weights.sum(1), np.ones(tokens))


def test_router_prefers_the_lower_expert_of_a_tie_and_survives_extremes() -> None:
    logits = np.array([[1, 2, 2, 2], [-np.inf, -np.inf, 0, -np.inf], [3e38, -3e38, 0, 1]], np.float32)
    ids, weights = poisoned(3, 2, dtype=np.int16), poisoned(3, 2)
    router.select(logits, ids, weights)
    assert ids.tolist() == [[1, 2], [2, 0], [0, 3]]
    np.testing.assert_allclose(weights, [[0.5, 0.5], [1, 0], [1, 0]], atol=1e-7)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_router_on_threads(threads: int) -> None:
    tokens = router.cpu.PARALLEL // 64 + 5
    logits = floats(RNG, tokens, 64)
    ids, weights = poisoned(tokens, 3, dtype=np.int16), poisoned(tokens, 3)
    router.select(logits, ids, weights, threads)
    wanted_ids, wanted = router.reference(logits.astype(float), 3)
    assert (ids == wanted_ids).all()
    assert_close(weights, wanted)


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize(("experts", "top_k"), [(8, 2), (64, 6), (256, 8)])
def test_router_rules(experts: int, top_k: int, name: str) -> None:
    rule, logits, bias = RULES[name], floats(RNG, 20, experts), floats(RNG, experts) / 4
    ids, weights = poisoned(20, top_k, dtype=np.int16), poisoned(20, top_k)
    router.choose(logits, bias, rule, poisoned(*router.choose_scratch_shape(experts)), ids, weights)
    wanted_ids, wanted = router.reference(logits.astype(float), top_k, rule, bias.astype(float))
    assert (ids == wanted_ids).all()
    assert_close(weights, wanted, 4e-6)


def test_groups_limit_the_choice() -> None:
    """Group 0 has the best expert and the worst sum of two; softmax keeps it, sigmoid does not."""
    logits = np.array([[5, -9, -9, 2, 3, 2]], float)
    softmax, _ = router.reference(logits, 2, Rule(renormalise=False, groups=3, kept_groups=1))
    sigmoid, _ = router.reference(logits, 2, Rule(sigmoid=True, groups=3, kept_groups=1), np.zeros(6))
    assert softmax.tolist() == [[0, 1]] and sigmoid.tolist() == [[4, 5]]


def test_router_renormalises_softmax_over_all_experts() -> None:
    logits = floats(RNG, 6, EXPERTS).astype(float)
    every = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    ids, weights = router.reference(logits, 3)
    top = np.take_along_axis(every, ids.astype(int), 1)
    np.testing.assert_allclose(weights, top / top.sum(1, keepdims=True))


def test_forced_experts_get_the_router_s_weights() -> None:
    logits = floats(RNG, 4, EXPERTS)
    ids, weights, again = poisoned(4, 2, dtype=np.int16), poisoned(4, 2), poisoned(4, 2)
    router.select(logits, ids, weights)
    router.weigh(logits, ids[:, ::-1].copy(), again)
    assert_close(again[:, ::-1], weights)


@pytest.mark.parametrize("spread", ["random", "one"])
@pytest.mark.parametrize("top_k", [1, 2, 8])
@pytest.mark.parametrize("tokens", [1, 5, 64])
def test_dispatch(tokens: int, top_k: int, spread: str) -> None:
    x, ids = floats(RNG, tokens, 33), chosen(tokens, EXPERTS, top_k, spread)
    offsets, positions = poisoned(EXPERTS + 1, dtype=np.int32), poisoned(tokens, top_k, dtype=np.int32)
    rows = poisoned(tokens * top_k, 33)
    dispatch.forward(x, ids, offsets, positions, rows)
    wanted_offsets, wanted_positions, wanted = dispatch.reference(x, ids, EXPERTS)
    assert (offsets == wanted_offsets).all() and (positions == wanted_positions).all() and (rows == wanted).all()


@pytest.mark.parametrize("threads", [2, 3])
def test_dispatch_and_combine_on_threads(threads: int) -> None:
    tokens, top_k, hidden = 65, 8, max(dispatch.PARALLEL, combine.PARALLEL) // (64 * 8)
    x, ids, weights = floats(RNG, tokens, hidden), chosen(tokens, EXPERTS, top_k, "random"), floats(RNG, tokens, top_k)
    offsets, positions = poisoned(EXPERTS + 1, dtype=np.int32), poisoned(tokens, top_k, dtype=np.int32)
    rows, out = poisoned(tokens * top_k, hidden), x.copy()
    dispatch.forward(x, ids, offsets, positions, rows, threads)
    assert (rows == dispatch.reference(x, ids, EXPERTS)[2]).all()
    combine.forward(rows, positions, weights, out, threads)
    assert_close(out, combine.reference(rows.astype(float), positions, weights.astype(float), x.astype(float)))


@pytest.mark.parametrize("top_k", range(1, 9))
@pytest.mark.parametrize("tokens", [1, 6])
def test_combine(tokens: int, top_k: int) -> None:
    ids = chosen(tokens, EXPERTS, top_k, "random")
    rows, hidden, weights = floats(RNG, tokens * top_k, 33), floats(RNG, tokens, 33), floats(RNG, tokens, top_k)
    positions = dispatch.reference(hidden, ids, EXPERTS)[1]
    wanted = combine.reference(rows.astype(float), positions, weights.astype(float), hidden.astype(float))
    combine.forward(rows, positions, weights, hidden)
    assert_close(hidden, wanted)


def reference_layer(x: np.ndarray, ids: np.ndarray, weights: np.ndarray, flat: np.ndarray, ffn: int) -> np.ndarray:
    """Each token through each of its experts, in float64, no permutation."""
    hidden = x.shape[1]
    out = np.zeros(x.shape)
    matrices = flat.astype(float).reshape(EXPERTS, 3, ffn * hidden)
    for t, row in enumerate(x.astype(float)):
        for e, weight in zip(ids[t], weights[t], strict=True):
            gate, up, down = matrices[e]
            y = expert_ffn.reference(row[None], gate.reshape(ffn, hidden), up.reshape(ffn, hidden), down.reshape(hidden, ffn))
            out[t] += weight * y[0]
    return out


@settings(max_examples=25)
@given(
    st.integers(1, 24), st.integers(1, 8), st.sampled_from([(4, 4), (33, 50), (64, 96)]), st.sampled_from(["random", "one"]),
    st.integers(1, 3), st.integers(0, EXPERTS),
)  # fmt: skip
def test_dispatch_experts_combine(tokens: int, top_k: int, sizes: tuple[int, int], spread: str, threads: int, split: int) -> None:
    hidden, ffn = sizes
    x, ids, weights = floats(RNG, tokens, hidden), chosen(tokens, EXPERTS, top_k, spread), floats(RNG, tokens, top_k)
    flat = floats(RNG, EXPERTS * 3 * ffn * hidden) * np.float32(hidden**-0.5)
    offsets, positions = poisoned(EXPERTS + 1, dtype=np.int32), poisoned(tokens, top_k, dtype=np.int32)
    rows, gate_up, act = poisoned(tokens * top_k, hidden), poisoned(tokens * top_k, 2 * ffn), poisoned(tokens * top_k, ffn)
    dispatch.forward(x, ids, offsets, positions, rows)
    cut = split * 3 * ffn * hidden
    expert_ffn.grouped(rows, offsets, flat[:cut], 0, gate_up, act, rows, threads)
    expert_ffn.grouped(rows, offsets, flat[cut:], split, gate_up, act, rows, threads)
    out = np.zeros_like(x)
    combine.forward(rows, positions, weights, out)
    assert_close(out, reference_layer(x, ids, weights, flat, ffn), 5e-6)


def test_swiglu() -> None:
    gate_up, out = 5 * floats(RNG, 7, 66), poisoned(7, 33)
    expert_ffn.swiglu(gate_up, out)
    gate, up = np.split(gate_up.astype(float), 2, axis=1)
    assert_close(out, gate / (1 + np.exp(-gate)) * up)
