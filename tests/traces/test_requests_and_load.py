from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.traces import samples
from traces.errors import TraceError
from traces.load import Load, read_load, write_load
from traces.requests import read_requests, to_table, write_requests


def test_requests_round_trip_sorted_by_arrival(tmp_path):
    r = samples.requests()
    write_requests(tmp_path / "q.parquet", replace(r, arrival_ns=r.arrival_ns[::-1].copy()))
    back = read_requests(tmp_path / "q.parquet")
    assert back.request_id.tolist() == [4, 3, 2, 1, 0] and back.arrival_ns.tolist() == r.arrival_ns.tolist()
    assert back.region is None and back.prefix_hashes is None
    assert pq.read_schema(tmp_path / "q.parquet").names == ["request_id", "arrival_ns", "prompt_tokens", "output_tokens"]


def test_optional_columns_follow_their_requests(tmp_path):
    r = replace(samples.requests(3), arrival_ns=np.array([5, 1, 3]), region=("eu", None, "us"), prefix_hashes=((1, 2), None, ()))
    write_requests(tmp_path / "q.parquet", r)
    back = read_requests(tmp_path / "q.parquet")
    assert back.request_id.tolist() == [1, 2, 0] and back.region == (None, "us", "eu") and back.prefix_hashes == (None, (), (1, 2))


@pytest.mark.parametrize(("column", "value"), [("prompt_tokens", 0), ("output_tokens", 0), ("arrival_ns", -1), ("request_id", -1)])
def test_bad_requests_are_refused(tmp_path, column, value):
    r = samples.requests()
    values = getattr(r, column).copy()
    values[1] = value
    bad = replace(r, **{column: values})
    with pytest.raises(TraceError, match=f"column {column}: row 1 has {value}"):
        write_requests(tmp_path / "q.parquet", bad)
    pq.write_table(to_table(bad).replace_schema_metadata(samples.SOURCE.metadata("requests", 1)), tmp_path / "q.parquet")
    with pytest.raises(TraceError, match=f"row group 0: column {column}"):
        read_requests(tmp_path / "q.parquet")


def test_request_ids_are_unique(tmp_path):
    r = samples.requests(3)
    with pytest.raises(TraceError, match="column request_id: 7 stands there twice"):
        write_requests(tmp_path / "q.parquet", replace(r, request_id=np.array([7, 1, 7])))


def test_load_keeps_windows_and_experts_that_saw_nothing(tmp_path):
    counts = np.zeros((3, 1, 4), np.int64)
    counts[1, 0, 2] = 9
    write_load(tmp_path / "l.parquet", Load(counts, samples.SOURCE))
    assert np.array_equal(read_load(tmp_path / "l.parquet").counts, counts)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([(0, 0, 4, 1)], "row group 0: column expert: row 0 has 4; must be 0 to 3"),
        ([(3, 0, 0, 1)], "column window: row 0 has 3"),
        ([(0, 0, 0, -1)], "column count: row 0 has -1"),
        ([(0, 0, 1, 1), (0, 0, 1, 2)], "stands there twice"),
    ],
)
def test_bad_load_is_refused(tmp_path, rows, message):
    facts = {"windows": "3", "layers": "1", "experts": "4"}
    types = [pa.int32(), pa.int16(), pa.int16(), pa.int64()]
    columns = [pa.array(c, t) for c, t in zip(zip(*rows, strict=True), types, strict=True)]
    table = pa.table(columns, names=["window", "layer", "expert", "count"])
    path = tmp_path / "l.parquet"
    pq.write_table(table.replace_schema_metadata(replace(samples.SOURCE, facts=facts).metadata("load", 1)), path)
    with pytest.raises(TraceError, match=message):
        read_load(path)


def test_load_without_its_sizes_is_refused(tmp_path):
    write_load(tmp_path / "l.parquet", Load(np.ones((1, 1, 2), np.int64), samples.SOURCE))
    table = pq.read_table(tmp_path / "l.parquet")
    pq.write_table(table.replace_schema_metadata(samples.SOURCE.metadata("load", 1)), tmp_path / "l.parquet")
    with pytest.raises(TraceError, match="windows, layers, experts: missing"):
        read_load(tmp_path / "l.parquet")


def test_negative_count_is_not_written(tmp_path):
    with pytest.raises(TraceError, match="column count: has -1"):
        write_load(tmp_path / "l.parquet", Load(np.full((1, 1, 2), -1, np.int64), samples.SOURCE))
