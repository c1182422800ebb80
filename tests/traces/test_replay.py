from __future__ import annotations

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.traces import samples
from tests.traces.shared_data import folder
from traces.files import Provenance
from traces.importers.base import request_rows
from traces.replay import NEVER, Event, events, quantile, recorded, replay
from traces.routing import Routing, Shape, write_routing

COLUMNS = ("decode", "step", "request_id", "position", "layer", "experts", "weights")


def event(step, layer, *experts):
    return Event(step, layer, np.array(experts, np.int64))


def plain(e):
    return e.step, e.layer, e.tokens, e.experts.tolist()


def vector():
    """The conformance vector's rows: (step, layer, experts, misses, hits)."""
    with (folder("moe_cache_eval_conformance") / "events.csv").open() as f:
        return [
            (int(r["scheduler_step"]), int(r["layer"]), [int(e) for e in r["requested_experts"].split()], int(r["misses"]), int(r["hits"]))
            for r in csv.DictReader(f)
        ]


def as_routing(rows):
    """The vector as a batched trace: each expert asked for by a request of its own."""
    flat = [(step + 1, layer, n, e) for step, layer, experts, _, _ in rows for n, e in enumerate(experts)]
    step, layer, request, expert = np.array(flat).T
    n = len(flat)
    return Routing(
        decode=np.ones(n, bool), step=step.astype(np.int32), request_id=request.astype(np.int32), position=step.astype(np.int32),
        layer=layer.astype(np.int16), experts=expert[:, None].astype(np.int16), weights=np.full((n, 1), np.nan, np.float32),
        shape=Shape("toy", 3, 4, 1), provenance=Provenance("synthetic", "conformance vector", command="pytest"),
    )  # fmt: skip


@pytest.mark.parametrize("way", ["events", "routing", "file"])
def test_conformance_vector_passes_exactly(tmp_path, way):
    rows = vector()
    manifest = json.loads((folder("moe_cache_eval_conformance") / "manifest.json").read_text())
    if way == "events":
        source = [event(s, layer, *experts) for s, layer, experts, _, _ in rows]
    elif way == "routing":
        source = list(events(as_routing(rows)))
    else:
        write_routing(tmp_path / "r.parquet", as_routing(rows))
        source = list(recorded(tmp_path / "r.parquet"))
    want = manifest["expected"]
    r = replay(source, policy="lru", capacity=manifest["capacity_blocks_per_layer"], layers=3, experts=4, seed=manifest["tie_seed"])
    assert list(r.event_misses) == want["event_misses"] == [misses for *_, misses, _ in rows]
    assert [len(e.experts) - m for e, m in zip(source, r.event_misses, strict=True)] == [hits for *_, hits in rows]
    assert (r.accesses, r.hits, r.misses) == (want["total_accesses"], want["hits"], want["misses"])
    assert (r.compulsory_misses, r.misses - r.compulsory_misses) == (want["compulsory_misses"], want["capacity_misses"])
    assert (r.evictions, r.insertions) == (want["evictions"], want["cache_insertions"])
    assert r.hit_ratio == want["hit_ratio"]
    for q in (50, 95, 99):
        assert quantile(r.event_misses, q / 100) == want[f"event_miss_p{q}"]
        assert quantile(r.step_misses, q / 100) == want[f"step_miss_p{q}"]
    assert max(r.step_misses) == want["max_step_misses"]
    if way == "events":
        assert r.misses / r.tokens == want["blocks_per_model_token"]


def one_by_one(source):
    """The same events with each expert asked for alone, in ascending order: how *not* to replay a batch."""
    return [Event(e.step, e.layer, np.array([expert]), e.tokens) for e in source for expert in e.experts]


def test_experts_of_one_event_do_not_evict_each_other():
    """With room for two, {0, 1} then {1, 2} then {0, 1}: served one by one, 2 evicts what the event still needs."""
    source = [event(0, 0, 0, 1), event(1, 0, 1, 2), event(2, 0, 0, 1)]
    at_once = replay(source, policy="lru", capacity=2, layers=1, experts=3)
    assert at_once.event_misses == (2, 1, 1)
    single = replay(one_by_one(source), policy="lru", capacity=2, layers=1, experts=3)
    assert single.misses == 5


def decoded(sequences):
    """Decode tokens [tokens, layers, k] of a sequence each as one trace."""
    source = Provenance("imported", "gpt-oss-20b", command="pytest")
    shape = Shape("gpt-oss-20b", 24, 32, 4)
    parts = [request_rows(shape, source, i, 0, 0, s) for i, s in enumerate(sequences)]
    return replace(parts[0], **{c: np.concatenate([getattr(p, c) for p in parts]) for c in COLUMNS})


def test_sequential_replay_of_a_batch_inflates_misses_on_recorded_routing():
    experts, offsets = (np.load(folder("gptoss20b_routing") / "routes.npz")[n] for n in ("experts", "seq_offsets"))
    routing = decoded([experts[a : min(b, a + 100)] for a, b in zip(offsets[:8], offsets[1:9], strict=True)])
    routing = routing.take(routing.layer < 6)
    source = list(events(routing, batch=8))
    ratio = {}
    for capacity in (12, 16):
        at_once, single = (
            replay(s, policy="lru", capacity=capacity, layers=6, experts=32).misses for s in (source, one_by_one(source))
        )
        ratio[capacity] = single / at_once
    assert ratio[12] > 1.15 and ratio[16] > 1.05


def test_policies_differ_where_they_should():
    """0 is used often and long ago, 1 once and lately: LRU keeps 1, LFU keeps 0, Belady what comes next."""
    past = [event(0, 0, 0), event(1, 0, 0), event(2, 0, 1), event(3, 0, 2)]
    then = event(4, 0, 0)

    def last_miss(policy, capacity):
        return replay([*past, then], policy=policy, capacity=capacity, layers=1, experts=3).event_misses[-1]

    assert last_miss("lru", 2) == 1
    assert last_miss("lfu", 2) == 0
    assert last_miss("belady", 1) == 0


def test_a_cache_of_nothing_misses_always_and_a_large_one_only_at_first():
    source = [event(s, s % 2, 0, s % 5) for s in range(1, 40)]
    nothing = replay(source, policy="lru", capacity=0, layers=2, experts=5)
    assert nothing.hits == 0 and nothing.insertions == 0
    all_of_it = replay(source, policy="lru", capacity=5, layers=2, experts=5)
    assert all_of_it.misses == all_of_it.compulsory_misses == 10 and all_of_it.evictions == 0


histories = st.lists(st.tuples(st.integers(0, 1), st.sets(st.integers(0, 5), min_size=1, max_size=4)), min_size=1, max_size=40)


@given(histories, st.integers(1, 5), st.sampled_from(["lru", "lfu", "lfru"]))
def test_no_policy_beats_knowing_the_future(history, capacity, policy):
    source = [event(i, layer, *sorted(experts)) for i, (layer, experts) in enumerate(history)]
    r, bound = (replay(source, policy=p, capacity=capacity, layers=2, experts=6) for p in (policy, "belady"))
    assert bound.misses <= r.misses
    assert r.compulsory_misses == len({(layer, e) for layer, experts in history for e in experts})
    assert r.insertions - r.evictions <= 2 * capacity


@given(histories, st.integers(0, 5))
def test_lru_equals_a_list_moved_to_the_front(history, capacity):
    """The plain model: hits by residency at the event's start, then the most recent events' experts stay (ties aside)."""
    source = [event(i, layer, *sorted(experts)) for i, (layer, experts) in enumerate(history)]
    ages = [{}, {}]
    resident = [set(), set()]
    ties = np.random.default_rng(3).random(12).reshape(2, 6)
    misses = []
    for now, (layer, experts) in enumerate(history):
        misses.append(len(experts - resident[layer]))
        ages[layer].update(dict.fromkeys(experts, now))
        ranked = sorted(resident[layer] | experts, key=lambda e: (-ages[layer][e], -ties[layer][e]))
        resident[layer] = set(ranked[:capacity])
    assert list(replay(source, policy="lru", capacity=capacity, layers=2, experts=6, seed=3).event_misses) == misses


def test_batches_are_unions_over_the_requests_that_run_together():
    r = samples.routing(requests=(3, 5, 8), prompt=4, steps=3)
    alone = list(events(r, batch=1))
    pairs = list(events(r, batch=2))
    everyone = list(events(r))
    assert len(alone) == 3 * 4 * 2 and len(pairs) == 2 * 4 * 2 and len(everyone) == 4 * 2
    for e in everyone:
        rows = (r.step == e.step) & (r.layer == e.layer)
        assert e.experts.tolist() == sorted(set(r.experts[rows].ravel().tolist())) and e.tokens == rows.sum()
    second = [e for e in pairs if e.step >= 4]
    assert {e.step for e in second} == {4, 5, 6, 7}
    assert all(e.tokens == (4 if e.step == 4 else 1) for e in second)


def test_recorded_batches_cross_row_groups(tmp_path, monkeypatch):
    from traces import files

    r = samples.routing()
    r = r.take(np.lexsort((r.request_id, r.layer, r.step)))
    monkeypatch.setattr(files, "ROW_GROUP", 7)
    write_routing(tmp_path / "r.parquet", r)
    found = list(recorded(tmp_path / "r.parquet"))
    want = list(events(r))
    assert [plain(e) for e in found] == [plain(e) for e in want]


def test_empty_trace_has_no_events(tmp_path):
    r = samples.routing()
    r = replace(r.take(np.zeros(len(r), bool)))
    write_routing(tmp_path / "r.parquet", r)
    assert list(events(r)) == [] and list(recorded(tmp_path / "r.parquet")) == []
    nothing = replay([], policy="belady", capacity=1, layers=1, experts=1)
    assert nothing.hit_ratio == 0 and quantile(nothing.event_misses, 0.5) == 0 and NEVER > 2**62
