"""Figures on traces that are small enough to work out by hand, and against slow references."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from tests.traces import samples
from traces.describe import arrivals, balance, drift, lanes, locality, prediction
from traces.describe.tokens import Tokens, tokens_of


def tokens(experts, request=None, most=6):
    """Tokens [tokens, layers, k] of one request, or of these, at consecutive positions."""
    experts = np.asarray(experts, np.int16)
    n = len(experts)
    request = np.zeros(n, np.int32) if request is None else np.asarray(request, np.int32)
    position = np.concatenate([np.arange(c) for c in np.bincount(request)]).astype(np.int32)
    return Tokens(experts, np.arange(experts.shape[1], dtype=np.int16), request, position, np.ones(n, bool), most)


def test_even_load_and_all_on_one():
    even, one = np.full((1, 4), 5), np.array([[20, 0, 0, 0]])
    assert balance.max_over_mean(even) == 1 and balance.max_over_mean(one) == 4
    assert balance.gini(even) == 0 and balance.gini(one) == 0.75
    assert balance.entropy(even) == pytest.approx(1) and balance.entropy(one) == 0
    assert balance.balancedness(even, 2) == 1 and balance.balancedness(one, 4) == 0.25
    assert balance.log_spread(even) == 0


def test_balancedness_is_mean_over_max_of_contiguous_blocks():
    assert balance.on_gpus(np.array([1, 2, 3, 4, 5]), 2).tolist() == [6, 9]
    assert balance.balancedness(np.array([[1, 2, 3, 4, 5]]), 2)[0] == pytest.approx(7.5 / 9)
    assert np.isnan(balance.balancedness(np.zeros((1, 4), int), 2)).all()


def test_log_spread_is_that_of_a_log_normal():
    counts = np.exp(0.7 * np.random.default_rng(0).standard_normal(300)) * 1e4
    assert balance.log_spread(counts.astype(int)) == pytest.approx(0.7, rel=0.1)


@given(arrays(np.int64, st.integers(2, 9), elements=st.integers(0, 50)))
def test_gini_is_half_the_relative_mean_difference(counts):
    found = balance.gini(counts)
    if counts.sum() == 0:
        assert np.isnan(found)
        return
    want = np.abs(counts[:, None] - counts[None, :]).mean() / (2 * counts.mean())
    assert found == pytest.approx(want)
    assert 0 <= found <= 1 - 1 / len(counts) + 1e-12


def test_overlap_counts_shared_experts_of_neighbours_of_one_request():
    t = tokens([[[0, 1]], [[1, 0]], [[2, 0]], [[2, 0]]], request=[0, 0, 0, 1])
    assert locality.overlap(t).tolist() == [(2 + 1) / 2]
    apart = replace(t, position=np.array([0, 2, 3, 0], np.int32))
    assert locality.overlap(apart).tolist() == [1]
    assert np.isnan(locality.overlap(t.take(np.array([True, False, False, False])))).all()


def test_independent_overlap_is_what_shuffled_tokens_share():
    r = np.random.default_rng(3)
    e = np.argsort(r.gumbel(size=(40_000, 1, 6)) - 0.7 * np.arange(6), axis=2)[:, :, -2:]
    t = tokens(e)
    assert locality.independent_overlap(t)[0] == pytest.approx(locality.overlap(t)[0], rel=0.02)
    assert locality.independent_working_sets(t, (4, 16)) == pytest.approx(locality.working_sets(t, (4, 16)), rel=0.02)


def test_working_set_by_a_slow_reference():
    r = np.random.default_rng(1)
    e = np.argsort(r.random((23, 2, 6)), axis=2)[:, :, :2]
    t = tokens(e, request=np.repeat([0, 1, 2], [10, 3, 10]))
    for i, w in enumerate(locality.WINDOWS):
        sizes = [
            len(set(e[s : s + w, layer].ravel().tolist()))
            for a, b in ((0, 10), (10, 13), (13, 23)) for s in range(a, b - w + 1, w) for layer in range(2)
        ]  # fmt: skip
        found = locality.working_sets(t)[i]
        assert found == pytest.approx(np.mean(sizes)) if sizes else np.isnan(found)


def test_next_layer_is_predicted_where_it_follows():
    """Expert e of layer 0 is always followed by e + 1; popularity alone gets its share only."""
    first = np.arange(60) % 6
    t = tokens(np.stack([first, (first + 1) % 6], axis=1)[:, :, None], request=np.arange(60) // 10)
    markov, popular = prediction.next_layer_recall(t)
    assert markov.tolist() == [1] and popular[0] == pytest.approx(1 / 6, abs=0.05)
    chance = tokens(np.random.default_rng(0).integers(0, 6, (6000, 2, 1)), request=np.arange(6000) // 10)
    assert prediction.next_layer_recall(chance)[0][0] == pytest.approx(1 / 6, abs=0.03)


def test_prediction_never_sees_what_it_is_scored_on():
    """Requests with even and odd numbers map layers differently: nothing learned on one half helps on the other."""
    request = np.arange(120) // 10
    first = np.arange(120) % 6
    second = np.where(request % 2 == 0, (first + 1) % 6, (first + 3) % 6)
    t = tokens(np.stack([first, second], axis=1)[:, :, None], request=request)
    assert prediction.next_layer_recall(t)[0].tolist() == [0]


def test_coactivation_finds_the_pairs_that_go_together():
    pairs = np.array([[0, 1], [2, 3], [4, 5]])
    grouped = tokens(pairs[np.arange(300) % 3][:, None, :])
    strength, found = prediction.coactivation(grouped)
    assert {tuple(p["experts"]) for p in found} == {(0, 1), (2, 3), (4, 5)} and strength[0] == pytest.approx(0.8)
    everyone = np.array(list(combinations(range(6), 2)))
    apart, _ = prediction.coactivation(tokens(everyone[np.arange(1500) % 15][:, None, :]))
    assert apart[0] == pytest.approx(0, abs=1e-6)


def test_drift_is_correlation_of_the_parts_loads():
    a = np.array([[[4, 2, 0]], [[2, 1, 0]], [[0, 2, 4]]])
    assert drift.between(a)[0].tolist() == pytest.approx([1, 1, -1])
    t = tokens(np.repeat([0, 0, 3, 3], 5)[:, None, None], request=np.repeat([0, 1, 2, 3], 5))
    assert drift.in_parts(t, 2).tolist() == [[[10, 0, 0, 0, 0, 0]], [[0, 0, 0, 10, 0, 0]]]
    one = tokens(np.repeat([0, 3], 5)[:, None, None])
    assert drift.in_parts(one, 2)[:, 0].argmax(axis=1).tolist() == [0, 3]


def test_whole_tokens_come_out_in_order_and_broken_ones_are_counted():
    r = samples.routing()
    t = tokens_of(r)
    assert len(t) == len(r) // 2 and t.left_out == 0
    for i in range(len(t)):
        for layer in range(2):
            row = (r.request_id == t.request[i]) & (r.position == t.position[i]) & (r.layer == layer)
            assert np.array_equal(t.experts[i, layer], r.experts[row][0])
    assert np.array_equal(np.sort(t.counts()), np.sort(counted(r)))
    cut = tokens_of(r.take(np.arange(len(r)) != 5))
    assert len(cut) == len(t) - 1 and cut.left_out == 1
    doubled = tokens_of(r.take(np.concatenate([np.arange(len(r)), [5]])))
    assert len(doubled) == len(t) - 1 and doubled.left_out == 1


def counted(r):
    found = np.zeros((2, 6), int)
    np.add.at(found, (r.layer[:, None].astype(int), r.experts.astype(int)), 1)
    return found


def test_poisson_arrivals_have_ones_and_bursts_have_more():
    r = np.random.default_rng(0)
    poisson = np.cumsum(r.exponential(0.05, 50_000) * 1e9).astype(np.int64)
    found = arrivals.burstiness(poisson)
    assert found["rate_per_s"] == pytest.approx(20, rel=0.02) and found["gap_cv"] == pytest.approx(1, rel=0.03)
    assert found["dispersion"]["1s"] == pytest.approx(1, rel=0.1)
    bursts = np.cumsum(r.gamma(1 / 9, 0.45, 50_000) * 1e9).astype(np.int64)
    assert arrivals.burstiness(bursts)["gap_cv"] == pytest.approx(3, rel=0.06)
    assert arrivals.burstiness(bursts)["dispersion"]["10s"] == pytest.approx(9, rel=0.3)
    assert arrivals.burstiness(np.zeros(5, np.int64)) == {"span_s": 0.0}


def test_shared_prefixes_count_blocks_seen_before():
    found = arrivals.shared_prefixes(((0, 1), (0, 2), None, (0, 2, 3)))
    assert found == {"blocks": 7, "distinct": 4, "seen_before": 3 / 7}


intervals = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 30)), min_size=1, max_size=12)


@given(intervals)
def test_busy_time_is_the_union_of_intervals(found):
    starts = np.array([s for s, _ in found])
    ends = starts + [d for _, d in found]
    want = len({t for s, e in zip(starts, ends, strict=True) for t in range(s, e)})
    assert lanes.busy_ps(starts, ends) == want
    at = np.arange(0, 95.0, 5)
    running = lanes._running(starts.astype(np.int64), ends.astype(np.int64), at)
    moments = [len({t for s, e in zip(starts, ends, strict=True) for t in range(s, min(e, int(x)))}) for x in at]
    assert running.tolist() == pytest.approx(moments)
