"""Damaged files: a few hundred of the 50,000 that `benchmarks/fuzz_traces.py` reads, and the writer killed at any moment."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.traces import mutations, samples
from traces.errors import TraceError
from traces.files import replacing
from traces.importers import import_trace
from traces.requests import read_requests
from traces.routing_file import read_routing, write_routing
from traces.scan import expert_load, scan

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("block", range(6))
def test_damaged_files_are_refused_by_name_or_read_right(tmp_path, block):
    verdicts = [mutations.judge(mutations.case(number), tmp_path) for number in range(100 * block, 100 * block + 100)]
    assert verdicts.count("refused") > 50


def test_the_judge_sees_other_data():
    """The fuzz itself can fail: a trace that differs in one expert is not the same."""
    r = samples.routing()
    other = r.take(np.arange(len(r)))
    other.experts[3, 0] = next(e for e in range(6) if e not in other.experts[3])
    assert mutations.same(r, samples.routing()) and not mutations.same(r, other)


def test_every_flipped_bit_of_a_column_is_seen(tmp_path):
    """Page checksums cover the columns: each byte of the first row group damaged in turn."""
    path = tmp_path / "r.parquet"
    write_routing(path, samples.routing())
    data = path.read_bytes()
    for column in range(7):
        chunk = pq.read_metadata(path).row_group(0).column(column)
        at = (chunk.dictionary_page_offset or chunk.data_page_offset) + chunk.total_compressed_size - 1
        damaged = bytearray(data)
        damaged[at] ^= 4
        bad = tmp_path / "bad.parquet"
        bad.write_bytes(damaged)
        with pytest.raises(TraceError, match=f"{bad}: row group 0: not readable"):
            read_routing(bad)


def test_a_reader_of_two_columns_reads_only_these(tmp_path):
    """Damage in the other columns stays unseen, damage in one of the two does not."""
    path = tmp_path / "r.parquet"
    r = samples.routing()
    write_routing(path, r)
    wanted = np.zeros((2, 6), np.int64)
    np.add.at(wanted, (r.layer[:, None].astype(int), r.experts.astype(int)), 1)
    data = bytearray(path.read_bytes())
    group = pq.read_metadata(path).row_group(0)
    for column in range(group.num_columns):
        chunk = group.column(column)
        start = chunk.dictionary_page_offset or chunk.data_page_offset
        if chunk.path_in_schema.split(".")[0] not in ("layer", "experts"):
            data[start : start + chunk.total_compressed_size] = b"\0" * chunk.total_compressed_size
    path.write_bytes(data)
    assert np.array_equal(expert_load(path), wanted)
    assert [t.column_names for t in scan(path, ("layer", "experts"))] == [["layer", "experts"]]
    with pytest.raises(TraceError, match="row group 0"):
        list(scan(path, ("step",)))


def test_scan_refuses_a_column_that_is_not_there(tmp_path):
    write_routing(tmp_path / "r.parquet", samples.routing())
    with pytest.raises(TraceError, match="column loss: missing"):
        list(scan(tmp_path / "r.parquet", ("loss",)))


def test_row_groups_that_were_taken_out_are_missed(tmp_path):
    """A footer that lists fewer rows than were written is no shorter trace."""
    path = tmp_path / "r.parquet"
    write_routing(path, samples.routing())
    table = pq.read_table(path)
    kept = {k: v for k, v in pq.read_metadata(path).metadata.items() if k.startswith(b"tandem.")}
    pq.write_table(table.slice(0, 10).replace_schema_metadata(kept), path)
    with pytest.raises(TraceError, match=r"metadata tandem.rows: says \d+, the row groups hold 10"):
        read_routing(path)


def test_numbers_too_large_for_the_schema_are_not_wrapped(tmp_path):
    path = tmp_path / "big.csv"
    path.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:17:03,4294967301,8\n")
    with pytest.raises(TraceError, match="line 2, column ContextTokens: has 4294967301; must be 1 to 2147483647"):
        import_trace("azure", path, tmp_path / "o.parquet")
    from dataclasses import replace

    from traces.requests import write_requests

    with pytest.raises(TraceError, match="column prompt_tokens: row 0 has 4294967301"):
        write_requests(tmp_path / "o.parquet", replace(samples.requests(1), prompt_tokens=np.array([4294967301])))


WRITER = """
import sys
import numpy as np
from traces.files import Provenance
from traces.requests import Requests, write_requests

def write(n, path):
    size = 2000 + n % 7
    source = Provenance("recorded", "kill test", command=str(n))
    write_requests(path, Requests(
        np.arange(size), np.arange(size) * n, np.full(size, n, np.int32), np.full(size, n, np.int32), source))

write(1, sys.argv[1] + ".warm")
print("ready", flush=True)
for n in range(1, 100_000):
    write(n, sys.argv[1])
"""


def test_a_writer_killed_at_any_moment_leaves_the_old_file_or_none(tmp_path):
    """What stands under the name after a SIGKILL is whole: every row of one write."""
    path = tmp_path / "q.parquet"
    moments = random.Random(7)
    states = set()
    for trial in range(9):
        if trial % 3 == 0:
            path.unlink(missing_ok=True)
        command = [sys.executable, "-c", WRITER, str(path)]
        child = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT)})
        child.stdout.readline()
        time.sleep(moments.random() * (0.004 if trial % 3 == 0 else 0.1))
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
        if not path.exists():
            states.add("none")
            continue
        found = read_requests(path)
        n = int(found.provenance.command)
        assert len(found) == 2000 + n % 7 and (found.prompt_tokens == n).all()
        states.add("whole")
    assert "whole" in states


def test_a_writer_that_fails_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "r.parquet"
    path.write_text("old")
    with pytest.raises(RuntimeError), replacing(path) as part:
        part.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_no_rows_are_no_crash(tmp_path):
    from traces.describe import describe
    from traces.describe.plots import draw

    r = samples.routing()
    write_routing(tmp_path / "r.parquet", r.take(np.zeros(len(r), bool)))
    found = describe(tmp_path / "r.parquet")
    assert found.as_json()["rows"] == 0
    draw(found)
    for name, header in (("azure", "TIMESTAMP,ContextTokens,GeneratedTokens"), ("activations", "layer,expert")):
        (tmp_path / "e.csv").write_text(header + "\n")
        with pytest.raises(TraceError, match="e.csv.*(there are none|no rows|Empty)"):
            import_trace(name, tmp_path / "e.csv", tmp_path / "o.parquet")
