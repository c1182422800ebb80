from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.traces import samples
from traces.errors import TraceError
from traces.routing import RoutingIndex, Shape, read_routing, write_routing, writing_routing
from traces.routing_file import to_table

COLUMNS = ("decode", "step", "request_id", "position", "layer", "experts", "weights")


def test_what_is_written_is_read_with_the_shape_in_the_metadata(tmp_path):
    r = samples.routing()
    write_routing(tmp_path / "r.parquet", r)
    back = read_routing(tmp_path / "r.parquet")
    assert all(np.array_equal(getattr(r, c), getattr(back, c)) for c in COLUMNS)
    assert back.shape == Shape("tiny-mixtral", 2, 6, 2)
    schema = pq.ParquetFile(tmp_path / "r.parquet").schema_arrow
    assert schema.names == ["step", "request_id", "position", "layer", "experts", "weights", "phase"]
    assert schema.field("experts").type == pa.list_(pa.field("element", pa.int16(), nullable=False), 2)
    assert schema.metadata[b"tandem.k"] == b"2" and schema.metadata[b"tandem.model"] == b"tiny-mixtral"


def test_recorder_writes_call_by_call_and_weights_may_be_lacking(tmp_path):
    path = tmp_path / "r.parquet"
    with writing_routing(path, Shape("m", 2, 4, 2), samples.SOURCE) as out:
        out.record("prefill", 0, 1, np.array([7, 7]), np.array([0, 1]), np.array([[0, 1], [2, 3]]), np.array([[0.6, 0.4], [0.5, 0.5]]))
        out.record("decode", 1, 1, np.array([7]), np.array([2]), np.array([[3, 0]]))
    back = read_routing(path)
    assert back.decode.tolist() == [False, False, True] and back.step.tolist() == [0, 0, 1] and back.layer.tolist() == [1, 1, 1]
    assert back.experts.tolist() == [[0, 1], [2, 3], [3, 0]]
    assert np.isnan(back.weights[2]).all() and back.weights[0].tolist() == pytest.approx([0.6, 0.4])
    assert pq.read_table(path)["weights"].null_count == 1


def test_recorder_copies_what_it_is_given(tmp_path):
    experts = np.array([[0, 1]])
    with writing_routing(tmp_path / "r.parquet", Shape("m", 1, 4, 2), samples.SOURCE) as out:
        out.record("decode", 1, 0, np.array([7]), np.array([2]), experts)
        experts[:] = 3
    assert read_routing(tmp_path / "r.parquet").experts.tolist() == [[0, 1]]


def counted(r, requests, step, layer):
    """Slow reference: one row at a time."""
    counts = [0] * r.shape.experts
    for i in range(len(r)):
        if r.step[i] == step and r.layer[i] == layer and r.request_id[i] in requests:
            for e in r.experts[i]:
                counts[e] += 1
    return tuple(counts)


@pytest.mark.parametrize("requests", [(3, 5, 8), (8, 3), (5,)])
@pytest.mark.parametrize(("phase", "step"), [("prefill", 0), ("decode", 1), ("decode", 3)])
def test_index_counts_like_a_slow_reference(requests, phase, step):
    r = samples.routing()
    index = RoutingIndex(r)
    for layer in range(2):
        found = index.expert_tokens(requests, phase, step, layer)
        assert found == counted(r, requests, step, layer)
        assert sum(found) == 2 * len(requests) * (4 if phase == "prefill" else 1)


def test_index_does_not_know_what_was_not_recorded():
    index = RoutingIndex(samples.routing())
    for missing in ((3, 4), (2,), (9,)):
        assert index.expert_tokens(missing, "decode", 1, 0) is None
        assert index.expert_tokens(missing, "prefill", 0, 0) is None
        assert index.rows(missing, "decode", 1, 0) is None
    assert index.expert_tokens((3,), "decode", 4, 0) is None
    assert index.expert_tokens((3,), "decode", 1, 2) is None
    assert index.expert_tokens((), "decode", 1, 0) is None


def test_rows_stand_in_the_order_asked_with_positions_ascending():
    r = samples.routing()
    experts, weights = RoutingIndex(r).rows((8, 3), "prefill", 0, 1)
    where = {(int(r.request_id[i]), int(r.position[i])): i for i in range(len(r)) if r.layer[i] == 1 and r.step[i] == 0}
    want = [where[q, p] for q in (8, 3) for p in range(4)]
    assert np.array_equal(experts, r.experts[want]) and np.array_equal(weights, r.weights[want])


def test_index_reads_a_file_and_refuses_a_token_recorded_twice(tmp_path):
    r = samples.routing()
    path = tmp_path / "r.parquet"
    write_routing(path, r)
    assert RoutingIndex(path).expert_tokens((3,), "decode", 2, 1) == counted(r, (3,), 2, 1)
    twice = r.take(np.array([*range(len(r)), 0]))
    write_routing(path, twice)
    with pytest.raises(TraceError, match=f"{path}: column position: request .* stands there twice"):
        RoutingIndex(path)


def test_empty_trace_knows_nothing():
    r = samples.routing()
    assert RoutingIndex(r.take(np.zeros(len(r), bool))).expert_tokens((3,), "decode", 1, 0) is None


def changed(r, column, row, value):
    values = getattr(r, column).copy()
    values[row] = value
    return replace(r, **{column: values})


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("experts", [0, 6], "column experts: row 4 has .*6.*; must be 0 to 5"),
        ("experts", [-1, 2], "column experts: row 4 has .*-1.*; must be 0 to 5"),
        ("experts", [3, 3], "column experts: row 4 has .*3, 3.*; a token goes to 2 different experts"),
        ("weights", [0.5, np.nan], "column weights: row 4 has .*nan.*; must be finite"),
        ("weights", [-0.5, 1.5], "column weights: row 4 has .*-0.5"),
        ("weights", [np.inf, 0.5], "column weights: row 4 has .*inf"),
        ("layer", 2, "column layer: row 4 has 2; must be 0 to 1"),
        ("position", -1, "column position: row 4 has -1"),
    ],
)
def test_bad_rows_are_refused_when_written_and_when_read(tmp_path, column, value, message):
    bad = changed(samples.routing(), column, 4, value)
    path = tmp_path / "r.parquet"
    with pytest.raises(TraceError, match=message):
        write_routing(path, bad)
    facts = {"model": "m", "layers": "2", "experts": "6", "k": "2"}
    metadata = replace(bad.provenance, facts=facts).metadata("routing", 1)
    pq.write_table(to_table(bad).replace_schema_metadata(metadata), path)
    with pytest.raises(TraceError, match=f"{path}: row group 0: {message}"):
        read_routing(path)


def test_step_must_fit_the_phase(tmp_path):
    r = samples.routing()
    with pytest.raises(TraceError, match="column step: row 0 has .* in the phase"):
        write_routing(tmp_path / "r.parquet", replace(r, decode=~r.decode))


@pytest.mark.parametrize(("name", "value"), [("k", "two"), ("k", "3"), ("experts", "1"), ("layers", "0"), ("model", None)])
def test_metadata_of_the_router_is_checked(tmp_path, name, value):
    r = samples.routing()
    facts = {"model": "m", "layers": "2", "experts": "6", "k": "2", name: value}
    metadata = replace(r.provenance, facts={k: v for k, v in facts.items() if v is not None}).metadata("routing", 1)
    path = tmp_path / "r.parquet"
    pq.write_table(to_table(r).replace_schema_metadata(metadata), path)
    with pytest.raises(TraceError, match=str(path)):
        read_routing(path)


def test_truncated_routing_is_refused(tmp_path):
    path = tmp_path / "r.parquet"
    write_routing(path, samples.routing())
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(TraceError, match="not a readable Parquet file"):
        RoutingIndex(path)
