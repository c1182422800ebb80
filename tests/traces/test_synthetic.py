from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tests.traces import samples
from tests.traces.shared_data import folder
from traces.describe import balance, drift, locality, prediction
from traces.describe.tokens import tokens_of
from traces.errors import TraceError
from traces.importers.base import request_rows
from traces.routing_file import Routing, Shape, read_routing, write_routing
from traces.synthetic import by_knobs, draw, fit

COLUMNS = ("decode", "step", "request_id", "position", "layer", "experts", "weights")
SHAPE = Shape("drawn", 4, 16, 2)


def figures(routing: Routing) -> dict[str, float]:
    t = tokens_of(routing)
    counts, sets = t.counts(), locality.working_sets(t, (8, 32, 64))
    return {
        "max_over_mean": balance.max_over_mean(counts).mean(), "gini": balance.gini(counts).mean(), "overlap": locality.overlap(t).mean(),
        "8": sets[0], "32": sets[1], "64": sets[2], "markov": prediction.next_layer_recall(t)[0].mean(),
        "drift": np.diag(drift.between(drift.in_parts(t)), 1).mean(),
    }  # fmt: skip


def test_fitted_router_resembles_held_out_sequences_of_gpt_oss():
    """Fitted to the even sequences; drawn with another seed and held against the odd ones, which it never saw."""
    raw, source = np.load(folder("gptoss20b_routing") / "routes.npz"), samples.SOURCE
    offsets, shape = raw["seq_offsets"], Shape("gpt-oss-20b", 24, 32, 4)
    parts = [
        request_rows(shape, source, i, 0, 0, raw["experts"][a:b]) for i, (a, b) in enumerate(zip(offsets[:-1], offsets[1:], strict=True))
    ]

    def together(some):
        return replace(some[0], **{c: np.concatenate([getattr(p, c) for p in some]) for c in COLUMNS})

    router = fit(together(parts[::2]))
    held_out = together(parts[1::2])
    lengths = np.diff(offsets)[1::2].tolist()
    found, wanted = figures(draw(router, [0] * len(lengths), lengths, seed=11)), figures(held_out)
    for name in ("max_over_mean", "gini", "overlap", "8", "32", "64", "markov"):
        assert found[name] == pytest.approx(wanted[name], rel=0.10), name


def test_a_seed_repeats_and_another_one_differs():
    router = by_knobs(SHAPE)
    a, b, c = (draw(router, [3, 5], [7, 2], seed=s) for s in (1, 1, 2))
    assert all(np.array_equal(getattr(a, n), getattr(b, n), equal_nan=n == "weights") for n in COLUMNS)
    assert not np.array_equal(a.experts, c.experts)


def test_adding_a_request_or_a_token_moves_no_other_draw():
    router = by_knobs(SHAPE, persistence=0.5)
    few = draw(router, [3, 5], [7, 2], seed=1)
    more = draw(router, [3, 5, 9], [7, 6, 1], seed=1)
    kept = more.take((more.request_id == 0) | (more.request_id == 1) & (more.position < 7))
    assert np.array_equal(few.experts, kept.experts)


def test_rows_are_a_valid_trace_that_says_synthetic(tmp_path):
    drawn = draw(by_knobs(SHAPE), [3, 1], [2, 4])
    write_routing(tmp_path / "s.parquet", drawn)
    back = read_routing(tmp_path / "s.parquet")
    assert back.provenance.made == "synthetic" and "synthetic" in back.provenance.origin
    one = back.take((back.request_id == 0) & (back.layer == 0))
    assert one.step.tolist() == [0, 0, 0, 1, 2] and one.position.tolist() == [0, 1, 2, 3, 4]
    assert np.isnan(back.weights).all()


def test_each_knob_moves_what_it_names():
    n = ([0] * 24, [80] * 24)
    plain = {"skew": 0.0, "overlap": 0.0, "predictability": 0.0, "topics": 0.0}
    base = figures(draw(by_knobs(SHAPE, **plain), *n))
    assert base["overlap"] == pytest.approx(2 * 2 / 16, abs=0.03) and base["gini"] < 0.06 and base["markov"] < 0.25
    assert figures(draw(by_knobs(SHAPE, **{**plain, "skew": 1.0}), *n))["gini"] > 0.3
    assert figures(draw(by_knobs(SHAPE, **{**plain, "overlap": 3.0}), *n))["overlap"] > 2 * base["overlap"]
    assert figures(draw(by_knobs(SHAPE, **{**plain, "predictability": 3.0}), *n))["markov"] > 2 * base["markov"]
    topical = figures(draw(by_knobs(SHAPE, **{**plain, "topics": 2.0}), *n))
    assert topical["32"] < 0.8 * base["32"]
    lasting = figures(draw(by_knobs(SHAPE, **{**plain, "topics": 2.0}, persistence=0.95), *n))
    assert lasting["drift"] > topical["drift"] + 0.2


def test_fit_finds_a_synthetic_router_again():
    made = by_knobs(SHAPE, skew=0.8, overlap=1.5, predictability=1.2, topics=1.0, seed=4)
    source = draw(made, [0] * 40, [120] * 40, seed=9)
    found = fit(source)
    assert found.stickiness == pytest.approx(made.stickiness, rel=0.15) and found.spread == pytest.approx(made.spread, rel=0.25)
    again, wanted = (figures(draw(r, [0] * 40, [120] * 40, seed=10)) for r in (found, made))
    for name in ("max_over_mean", "gini", "overlap", "8", "32", "64", "markov"):
        assert again[name] == pytest.approx(wanted[name], rel=0.10), name


def test_gate_weights_are_the_source_s_means_by_rank():
    source = draw(by_knobs(SHAPE), [0] * 4, [40] * 4)
    weighted = replace(source, weights=np.tile(np.array([0.75, 0.25], np.float32), (len(source), 1)))
    assert np.allclose(draw(fit(weighted), [2], [2]).weights, [0.75, 0.25])


@pytest.mark.parametrize(("knobs", "message"), [({"skew": -1}, "skew=-1: must be"), ({"persistence": 2}, "persistence=2: must be 0 to 1")])
def test_knobs_out_of_range_are_refused(knobs, message):
    with pytest.raises(TraceError, match=message):
        by_knobs(SHAPE, **knobs)


def test_too_little_to_fit_is_refused():
    with pytest.raises(TraceError, match="has 9 whole tokens; the fit needs 64"):
        fit(samples.routing(requests=(1, 2, 3)))
    with pytest.raises(TraceError, match="prompts, outputs: must be 0 or more"):
        draw(by_knobs(SHAPE), [-1], [3])


def test_one_layer_and_one_request_can_be_drawn_and_fitted():
    router = by_knobs(Shape("one", 1, 4, 1))
    source = draw(router, [10], [90])
    assert len(draw(fit(source), [5], [5])) == 10
    assert len(draw(router, [], [])) == 0
