from __future__ import annotations

import json
from dataclasses import replace
from decimal import Decimal

import numpy as np
import pytest

from tests.traces import samples
from traces.chrome import write_chrome
from traces.errors import TraceError


def load(path):
    return json.loads(path.read_text(), parse_float=Decimal)


def test_lanes_are_threads_and_ranks_processes(tmp_path):
    t = samples.timeline(8)
    t = replace(t, rank=np.array([0, 1] * 4, np.int16), lane=np.array([0, 1] * 4, np.int32), status=np.zeros(8, np.int32))
    write_chrome(tmp_path / "t.json", t)
    events = load(tmp_path / "t.json")["traceEvents"]
    threads = {(e["pid"], e["tid"]): e["args"]["name"] for e in events if e["name"] == "thread_name"}
    assert threads == {(0, 1): "gpu", (0, 2): "h2d", (1, 1): "gpu", (1, 2): "h2d"}
    assert [e["args"]["name"] for e in events if e["name"] == "process_name"] == ["measured, rank 0", "measured, rank 1"]
    bars = {e["args"]["task"]: e for e in events if e["ph"] == "X"}
    assert sorted(bars) == list(range(8))
    assert (bars[3]["pid"], bars[3]["tid"], bars[3]["name"]) == (1, 2, t.ops[t.op[3]])
    assert bars[3]["args"]["bytes"] == t.bytes[3] and bars[3]["args"]["step"] == 4


def test_times_keep_their_nanoseconds_in_a_long_run(tmp_path):
    t = samples.timeline(1)
    day = 86_400 * 10**12
    t = replace(t, lane=np.zeros(1, np.int32), status=np.zeros(1, np.int32))
    t = replace(t, start_ps=np.array([day + 1_234_567]), end_ps=np.array([day + 3_000_999]))
    write_chrome(tmp_path / "t.json", t)
    (bar,) = [e for e in load(tmp_path / "t.json")["traceEvents"] if e["ph"] == "X"]
    assert bar["ts"] == Decimal("86400000001.234") and bar["ts"] + bar["dur"] == Decimal("86400000003.000")


def test_joins_have_no_bar_and_two_clocks_stand_side_by_side(tmp_path):
    t = replace(samples.timeline(6), lane=np.full(6, 2, np.int32), status=np.zeros(6, np.int32))
    other = replace(t, lane=np.zeros(6, np.int32), provenance=replace(t.provenance, clock="simulated"))
    write_chrome(tmp_path / "t.json", [t, other])
    found = load(tmp_path / "t.json")
    assert {e["pid"] for e in found["traceEvents"] if e["ph"] == "X"} == {1}
    assert found["otherData"]["0.clock"] == "measured" and found["otherData"]["1.clock"] == "simulated"


def test_flows_and_counters(tmp_path):
    t = replace(samples.timeline(3), lane=np.zeros(3, np.int32), status=np.zeros(3, np.int32))
    t = replace(t, start_ps=np.array([0, 10**6, 10**7]), end_ps=np.array([10**6, 10**7, 2 * 10**7]))
    write_chrome(tmp_path / "t.json", t, flows=[(0, 2)], counters={"gpu_pages": (np.array([0, 5 * 10**6]), np.array([2, 4]))})
    events = load(tmp_path / "t.json")["traceEvents"]
    assert [(e["ph"], e["ts"]) for e in events if e["ph"] in "sf"] == [("s", Decimal("0.999")), ("f", Decimal("10.000"))]
    assert [(e["ts"], e["args"]["units"]) for e in events if e["ph"] == "C"] == [(Decimal("0.000"), 2), (Decimal("5.000"), 4)]


def test_unwritable_target_is_a_trace_error(tmp_path):
    with pytest.raises(TraceError, match="cannot be written"):
        write_chrome(tmp_path / "no" / "t.json", samples.timeline())
