from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.traces import samples
from traces import files
from traces.errors import TraceError
from traces.timeline import SCHEMA, Timeline, concatenate, read_timeline, strings, to_table, write_timeline, writing_timeline


def same(a: Timeline, b: Timeline) -> bool:
    numbers = [n for n in SCHEMA.names if n not in ("op", "lane", "phase", "status")]
    return all(np.array_equal(getattr(a, n), getattr(b, n)) for n in numbers) and all(
        np.array_equal(strings(a, n), strings(b, n)) for n in ("op", "lane", "phase", "status")
    )


def test_what_is_written_is_read_with_its_provenance(tmp_path):
    t = samples.timeline(50)
    write_timeline(tmp_path / "t.parquet", t)
    back = read_timeline(tmp_path / "t.parquet")
    assert same(t, back)
    assert back.provenance == t.provenance and back.clock == "measured"


def test_file_has_the_columns_of_the_design_and_says_how_it_was_made(tmp_path):
    write_timeline(tmp_path / "t.parquet", samples.timeline())
    f = pq.ParquetFile(tmp_path / "t.parquet")
    assert f.schema_arrow.names == [
        "task_id", "attempt", "op", "lane", "rank", "phase", "step", "layer", "microbatch",
        "start_ps", "end_ps", "bytes", "flops", "status",
    ]  # fmt: skip
    found = {k.decode(): v.decode() for k, v in f.schema_arrow.metadata.items()}
    assert found["tandem.kind"] == "timeline" and found["tandem.schema_version"] == "1" and found["tandem.made"] == "recorded"
    assert found["tandem.origin"] == "a test" and found["tandem.command"] == "pytest" and found["tandem.clock"] == "measured"
    assert found["tandem.version"]
    assert f.metadata.row_group(0).column(0).compression == "ZSTD"


def test_streamed_in_parts_equals_written_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "ROW_GROUP", 16)
    t = samples.timeline(50)
    with writing_timeline(tmp_path / "parts.parquet", t.provenance) as out:
        for at in (slice(0, 10), slice(10, 50)):
            out.append(t.take(np.arange(50)[at]))
    assert pq.ParquetFile(tmp_path / "parts.parquet").num_row_groups == 4
    assert same(read_timeline(tmp_path / "parts.parquet"), t)


def test_parts_may_bring_different_strings(tmp_path):
    a = samples.timeline(6)
    b = replace(samples.timeline(6, seed=1), ops=("embed", "post_attn"), lanes=("", "cpu", "gpu"))
    with writing_timeline(tmp_path / "t.parquet", a.provenance) as out:
        out.append(a)
        out.append(b)
    both = concatenate([a, b])
    assert same(read_timeline(tmp_path / "t.parquet"), both)
    assert strings(both, "op").tolist() == [*strings(a, "op"), *strings(b, "op")]


def test_empty_timeline_round_trips(tmp_path):
    write_timeline(tmp_path / "t.parquet", samples.timeline(0))
    assert len(read_timeline(tmp_path / "t.parquet")) == 0
    assert samples.timeline(0).makespan_ps == 0


def test_failure_while_writing_leaves_neither_file_nor_part_and_keeps_the_old_one(tmp_path):
    path = tmp_path / "t.parquet"
    write_timeline(path, samples.timeline(3))
    with pytest.raises(KeyError), writing_timeline(path, samples.SOURCE) as out:
        out.append(samples.timeline(5))
        raise KeyError("the run broke")
    assert len(read_timeline(path)) == 3
    assert [p.name for p in tmp_path.iterdir()] == ["t.parquet"]


@pytest.mark.parametrize(("column", "value"), [("step", -2), ("bytes", -1), ("task_id", -1), ("start_ps", -2), ("rank", -1)])
def test_value_out_of_range_is_refused_by_column(tmp_path, column, value):
    t = samples.timeline()
    values = getattr(t, column).copy()
    values[2] = value
    with pytest.raises(TraceError, match=f"column {column}: row 2 has {value}"):
        write_timeline(tmp_path / "t.parquet", replace(t, **{column: values}))
    assert not list(tmp_path.iterdir())


def test_end_before_start_is_refused(tmp_path):
    t = samples.timeline()
    with pytest.raises(TraceError, match="column end_ps: row 0 ends at .* before its start"):
        write_timeline(tmp_path / "t.parquet", replace(t, end_ps=t.start_ps - 1))


def rewrite(path, table, metadata=None):
    t = samples.timeline()
    metadata = t.provenance.metadata("timeline", 1) if metadata is None else metadata
    pq.write_table(table.replace_schema_metadata(metadata), path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.drop_columns(["step"]), "column step: missing"),
        (lambda t: t.append_column("colour", pa.array(["red"] * len(t))), "column colour: not in the schema"),
        (lambda t: t.set_column(9, "start_ps", t["start_ps"].cast(pa.float64())), "column start_ps: has type double; must be int64"),
        (lambda t: t.set_column(13, "status", pa.array(["lost"] * len(t))), "column status: has 'lost'; must be one of 'done'"),
        (lambda t: t.set_column(5, "phase", pa.array(["warmup"] * len(t))), "column phase: has 'warmup'"),
        (lambda t: t.set_column(6, "step", pa.array([None] * len(t), pa.int32())), "column step: has 6 empty values"),
        (lambda t: t.set_column(2, "op", pa.array([None] * len(t), pa.string())), "column op: has 6 empty values"),
    ],
)
def test_foreign_files_are_refused_with_file_and_column(tmp_path, change, message):
    path = tmp_path / "foreign.parquet"
    rewrite(path, change(to_table(samples.timeline())))
    with pytest.raises(TraceError) as e:
        read_timeline(path)
    assert message in str(e.value) and str(path) in str(e.value) and "\n" not in str(e.value)


def test_plain_strings_instead_of_dictionaries_are_read(tmp_path):
    t = samples.timeline()
    table = to_table(t)
    plain = pa.table({n: table[n].cast(pa.string()) if pa.types.is_dictionary(table[n].type) else table[n] for n in table.column_names})
    rewrite(tmp_path / "t.parquet", plain)
    assert same(read_timeline(tmp_path / "t.parquet"), t)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tandem.kind": "load"}, "kind: is 'load'; a 'timeline' trace is needed"),
        ({"tandem.schema_version": "9"}, "schema_version: is 9; this version reads 1"),
        ({"tandem.made": "guessed"}, "made='guessed': must be one of recorded, imported, synthetic"),
        ({"tandem.clock": "sundial"}, "clock='sundial'"),
    ],
)
def test_metadata_that_says_otherwise_is_refused(tmp_path, change, message):
    path = tmp_path / "t.parquet"
    rewrite(path, to_table(samples.timeline()), {**samples.SOURCE.metadata("timeline", 1), **change})
    with pytest.raises(TraceError, match=message):
        read_timeline(path)


def test_file_without_our_metadata_is_refused(tmp_path):
    rewrite(tmp_path / "t.parquet", to_table(samples.timeline()), {})
    with pytest.raises(TraceError, match="this is no Tandem timeline trace"):
        read_timeline(tmp_path / "t.parquet")


@pytest.mark.parametrize("keep", [0, 3, 200, -100, -9])
def test_truncated_file_is_refused(tmp_path, keep):
    path = tmp_path / "t.parquet"
    write_timeline(path, samples.timeline(200))
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(TraceError, match="not a readable Parquet file") as e:
        read_timeline(path)
    assert str(path) in str(e.value) and "\n" not in str(e.value)


def test_damaged_pages_are_refused_with_their_row_group(tmp_path):
    path = tmp_path / "t.parquet"
    write_timeline(path, samples.timeline(5000))
    raw = bytearray(path.read_bytes())
    raw[4:2000] = bytes(1996)
    path.write_bytes(raw)
    with pytest.raises(TraceError, match="row group 0: not readable"):
        read_timeline(path)


def test_missing_file_directory_and_unwritable_target_say_so(tmp_path):
    with pytest.raises(TraceError, match="no such file"):
        read_timeline(tmp_path / "none.parquet")
    with pytest.raises(TraceError, match="is a directory"):
        read_timeline(tmp_path)
    with pytest.raises(TraceError, match="cannot be written: is a directory"):
        write_timeline(tmp_path, samples.timeline())
    with pytest.raises(TraceError, match="cannot be written: No such file or directory"):
        write_timeline(tmp_path / "no" / "t.parquet", samples.timeline())


def test_provenance_must_name_an_origin():
    with pytest.raises(ValueError, match="origin=''"):
        replace(samples.SOURCE, origin="")
