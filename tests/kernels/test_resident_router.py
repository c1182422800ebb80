"""The router that leans towards resident experts: its choice, its bound, its counts from many threads, its memory."""

from __future__ import annotations

from threading import Thread

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernels.jit import Lazy
from kernels.router import resident as kernel
from kernels.router.priced import reference as priced
from kernels.router.resident import ASKED, DISPLACED, HITS, METRICS, Lean, merged, reference, route, shards

SHAPES = [(8, 2), (16, 2), (32, 4), (128, 8), (5, 1)]


def drawn(tokens: int, experts: int, seed: int = 0, share: float = 0.25) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((tokens, experts)).astype(np.float32), (rng.random(experts) < share).astype(np.uint8)


def outputs(tokens: int, top_k: int) -> tuple[np.ndarray, np.ndarray]:
    return np.full((tokens, top_k), -1, np.int16), np.full((tokens, top_k), np.nan, np.float32)


def prices(experts: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).gamma(0.5, 0.1, (experts, experts)).astype(np.float32)


@pytest.mark.parametrize(("experts", "top_k"), SHAPES)
@pytest.mark.parametrize(("bonus", "relative"), [(0.0, False), (0.7, False), (0.3, True)])
def test_choice_weights_counts_and_requests(experts: int, top_k: int, bonus: float, relative: bool) -> None:
    logits, here = drawn(300, experts)
    logits[5] = logits[5, 0]  # all equal: lower numbers first, residents before them
    lean = Lean(bonus, 1.0, relative=relative)
    made, (ids, weights) = shards(1, experts, lean), outputs(300, top_k)
    metrics = np.zeros(METRICS, np.int64)
    route(logits, here, lean, made, ids, weights, metrics=metrics)
    expected_ids, expected_weights = reference(logits, here, bonus, top_k, relative)
    assert np.array_equal(ids, expected_ids)
    np.testing.assert_allclose(weights, expected_weights, rtol=1e-6)
    counts, requests, affinity = merged(made)
    uses = np.bincount(ids.ravel(), minlength=experts)
    assert np.array_equal(counts, uses) and np.array_equal(requests, uses * (1 - here))
    average = np.zeros(experts)
    for row, weight in zip(*reference(logits, here, 0.0, top_k), strict=True):
        average *= 0.96
        average[row] += (1 - 0.96) * weight
    np.testing.assert_allclose(affinity, average, rtol=1e-4)
    best = logits.argmax(axis=1)
    assert metrics.tolist() == [300 * top_k, int(here[ids].sum()), int((ids[:, 0] != best).sum())]
    assert (metrics[DISPLACED] > 0) == (bonus > 0) and metrics[ASKED] > metrics[HITS]


@pytest.mark.parametrize(("experts", "top_k"), SHAPES)
@pytest.mark.parametrize(("bonus", "margin"), [(0.0, 9.0), (0.02, 9.0), (0.2, 9.0), (0.2, 0.5), (5.0, 9.0)])
def test_choice_by_price(experts: int, top_k: int, bonus: float, margin: float) -> None:
    """The kernel's choice is the best of all numbers of swaps; a large bonus takes every resident, none takes nobody."""
    logits, here = drawn(300, experts)
    costs, lean = prices(experts), Lean(bonus, margin)
    made, (ids, weights) = shards(1, experts, lean._replace(most=bonus), priced=True), outputs(300, top_k)
    route(logits, here, lean, made, ids, weights, costs=costs)
    expected = [priced(row, here, costs, bonus, margin, top_k) for row in logits]
    assert np.array_equal(ids, [e for e, _ in expected])
    np.testing.assert_allclose(weights, [w for _, w in expected], rtol=1e-5)
    plain, _ = reference(logits, here, 0.0, top_k)
    if top_k > 1:  # of one expert all weight is lost at once
        assert (ids != plain).any() == (bonus > 0), "a bonus that changes nothing tests nothing"
    if bonus > 1 and here.sum() >= top_k:
        assert here[ids].all()


@pytest.mark.parametrize("residents", [0, 1])
def test_by_price_only_residents_take_a_place(residents: int) -> None:
    """Not even without a margin, where fewer are resident than could come in."""
    logits, here = drawn(300, 8)
    here[:] = np.arange(8) < residents
    costs, lean = prices(8), Lean(5.0, np.inf, most=5.0)
    made, (ids, weights) = shards(1, 8, lean, priced=True), outputs(300, 2)
    route(logits, here, lean, made, ids, weights, costs=costs)
    plain, _ = reference(logits, here, 0.0, 2)
    assert all(set(now) <= set(before) | set(range(residents)) for now, before in zip(ids.tolist(), plain.tolist(), strict=True))


@given(st.integers(0, 10_000), st.floats(0, 3), st.floats(0, 2), st.floats(0, 1), st.sampled_from(SHAPES), st.booleans(), st.booleans())
def test_nobody_is_displaced_by_more_than_the_margin(
    seed: int, bonus: float, margin: float, target: float, shape: tuple[int, int], relative: bool, priced: bool
) -> None:
    """Whatever the bonus does: each expert that was left out is at most `margin` above each that was taken."""
    experts, top_k = shape
    logits, here = drawn(20, experts, seed)
    lean = Lean(bonus, margin, target, gain=5.0, relative=relative)
    made, (ids, weights) = shards(1, experts, lean), outputs(20, top_k)
    route(logits, here, lean, made, ids, weights, costs=prices(experts, seed) if priced else None)
    assert 0 <= made.bonus[0, 0] <= (1.0 if priced else margin)
    for row, chosen in zip(logits, ids, strict=True):
        out = np.setdiff1d(np.arange(experts), chosen)
        most = margin * (row.max() - row.mean() if relative else 1.0) + 1e-5
        assert row[out].max() - row[chosen].min() <= most and row.max() - row[chosen[0]] <= most


def test_the_bonus_follows_the_target() -> None:
    """A quarter of 32 experts is here and logits are random: without a bonus a quarter hits, with it 70 % do."""
    logits, here = drawn(20_000, 32, share=0.3)
    share = here.mean()
    for target in (share + 0.15, 0.7):
        lean = Lean(0.0, 10.0, target, gain=0.01)
        made, (ids, weights) = shards(1, 32, lean), outputs(20_000, 4)
        route(logits, here, lean, made, ids, weights)
        assert abs(here[ids[2_000:]].mean() - target) < 0.01


def test_threads_end_with_exactly_the_sequential_counts() -> None:
    """Four threads on two cores, small calls, residency changing under them: every choice is counted once."""
    experts, top_k, calls, tokens, threads = 128, 8, 60, 50, 4
    logits, here = drawn(calls * tokens, experts)
    lean = Lean(0.5, 0.5)
    alone, (ids, weights) = shards(1, experts, lean), outputs(len(logits), top_k)
    route(logits, here, lean, alone, ids, weights)
    together = shards(threads, experts, lean)
    found = [outputs(len(logits), top_k) for _ in range(threads)]

    def work(shard: int) -> None:
        for c in range(shard, calls, threads):
            rows = slice(c * tokens, (c + 1) * tokens)
            route(logits[rows], here, lean, together, found[shard][0][rows], found[shard][1][rows], shard)

    running = [Thread(target=work, args=(s,)) for s in range(threads)]
    for t in running:
        t.start()
    for t in running:
        t.join()
    assert np.array_equal(merged(together)[0], merged(alone)[0])
    assert np.array_equal(merged(together)[1], merged(alone)[1])
    for c in range(calls):
        rows = slice(c * tokens, (c + 1) * tokens)
        assert np.array_equal(found[c % threads][0][rows], ids[rows])


def test_shards_of_two_threads_share_no_cache_line() -> None:
    made = shards(3, 8, Lean(0, 0))
    for array in made:
        assert array.strides[0] - array.shape[1] * array.itemsize >= 128


@pytest.mark.parametrize("costs", [None, prices(8)])
@pytest.mark.parametrize("metrics", [None, np.zeros(METRICS, np.int64)])
def test_routing_allocates_nothing(metrics: np.ndarray | None, costs: np.ndarray | None) -> None:
    """A call from Python costs Numba one handle an array; the same call for 100 times the tokens costs no more."""
    from numba.core.runtime import _nrt_python, rtsys

    _nrt_python.memsys_enable_stats()
    made = shards(1, 8, Lean(0.1, 1.0))
    spent = []
    for tokens in (1, 1, 100):
        logits, here = drawn(tokens, 8)
        ids, weights = outputs(tokens, 2)
        before = rtsys.get_allocation_stats().alloc
        route(logits, here, Lean(0.1, 1.0), made, ids, weights, metrics=metrics, costs=costs)
        spent.append(rtsys.get_allocation_stats().alloc - before)
    assert spent[1] == spent[2] == 9 + (metrics is not None) + (costs is not None)


def test_metrics_that_are_off_are_not_compiled() -> None:
    """The machine code without them is smaller, by more than an argument. Compiled afresh: the cache keeps no code to look at."""
    dispatcher = Lazy(kernel.route_some.py_func).dispatcher
    made = shards(1, 8, Lean(0.1, 1.0))
    logits, here = drawn(4, 8)
    one = (made.counts[0], made.requests[0], made.affinity[0], made.bonus[0], made.scratch[:1], *outputs(4, 2), 0, 4)
    size = []
    for metrics in (None, np.zeros(METRICS, np.int64)):
        dispatcher(logits, here, None, Lean(0.1, 1.0), *one, metrics)
        size.append(len(dispatcher.inspect_asm(dispatcher.signatures[-1]).splitlines()))
    assert size[0] + 10 < size[1]
