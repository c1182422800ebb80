"""`python -m sim moe-layer` as a user sees it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sim.cli.app import main
from traces.timeline import read_timeline, strings

SIZES = ["--model", "mixtral-8x7b", "--machine", "4xh100", "--tokens-per-gpu", "256", "--experts", "16", "--hidden", "512", "--ffn", "256",
         "--top-k", "2", "--no-gated"]  # fmt: skip


def run(*arguments: str) -> int:
    return main(["moe-layer", *SIZES, *arguments])


def results(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert run(*arguments, "--json") == 0
    out = capsys.readouterr()
    found: dict[str, Any] = json.loads(out.out)
    return found


def test_json_holds_what_was_asked_and_a_row_for_each_system(capsys: pytest.CaptureFixture[str]) -> None:
    names = ("bulk-sync", "bulk-sync:te", "graph-replayed", "chunked:tutel", "overlapped", "comet", "flashdmoe", "static-wave")
    found = results(capsys, "--schedulers", ",".join(names))
    assert (found["ranks"], found["routing"], found["clock"], found["jitter"]) == (4, "synthetic", "simulated", "none")
    assert found["layer"] == {"hidden": 512, "ffn": 256, "experts": 16, "top_k": 2, "gated": False, "dtype": "bf16"}
    rows = {r["scheduler"]: r for r in found["results"]}
    assert list(rows) == ["bulk-sync:cutlass", *names[1:]]
    for row in rows.values():
        assert 0 < row["latency_s"]["median"] == row["latency_s"]["p95"] == row["latency_s"]["p99"]
        assert 0 < row["tensor_busy"] < 1 and 0 < row["hbm_busy"] < 1 and 0 <= row["comm_hidden"] <= 1
        assert row["wire_bytes"] > 0 and row["tasks"] > 0 and row["wall_s"] == row["build_s"] + row["run_s"]
    launches = [rows[n]["launches"] for n in ("bulk-sync:cutlass", "bulk-sync:te", "graph-replayed", "comet", "flashdmoe")]
    assert launches == [85, 261, 1, 33, 1]
    assert {"gpu", "gpu* - nvswitch", "ops.host.*"} <= set(found["sources"])
    assert set(found["systems"]) == set(rows) and all(s["source"] for s in found["systems"].values())


def test_jitter_gives_a_distribution_that_the_seed_repeats(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("--schedulers", "bulk-sync,flashdmoe", "--jitter", "vm", "--steps", "30")
    bulk, flash = results(capsys, *arguments)["results"]
    assert bulk["latency_s"]["samples"] == 30
    assert bulk["latency_s"]["median"] < bulk["latency_s"]["p95"] <= bulk["latency_s"]["p99"]
    low, high = bulk["latency_s"]["confidence"]["median"]
    assert low <= bulk["latency_s"]["median"] <= high
    again = results(capsys, *arguments)["results"][0]
    assert again["latency_s"] == bulk["latency_s"]
    other = results(capsys, *arguments, "--seed", "1")["results"][0]
    assert other["latency_s"] != bulk["latency_s"]


def test_measured_ratios_come_from_a_file(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "ratios.txt"
    path.write_text("2.0\n")
    plain, late = (
        results(capsys, "--schedulers", "flashdmoe", "--jitter", how)["results"][0]["latency_s"]["median"] for how in ("none", str(path))
    )
    assert late - plain == pytest.approx(5e-6, rel=1e-6)  # every launch of 5 us takes twice as long


def test_the_table_is_for_people_and_progress_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--schedulers", "bulk-sync,overlapped") == 0
    out = capsys.readouterr()
    assert "one MoE layer (hidden 512, ffn 256 (not gated), 16 experts, top-2, bf16) on 4xh100, 256 tokens a GPU" in out.out
    assert "bulk-sync:cutlass" in out.out and "comm hidden" in out.out
    assert "tasks built in" in out.err and "tasks built in" not in out.out


def test_a_timeline_of_each_system_is_written(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert run("--schedulers", "bulk-sync,flashdmoe", "--timeline", str(tmp_path / "t.parquet")) == 0
    flash = read_timeline(tmp_path / "t-flashdmoe.parquet")
    assert {"doorbell", "gemm0", "combine"} <= set(flash.ops) and set(np.unique(flash.rank)) == {0, 1, 2, 3}
    bulk = read_timeline(tmp_path / "t-bulk-sync-cutlass.parquet")
    puts = strings(bulk, "op") == "put"
    assert bulk.bytes[puts].sum() > 0 and bulk.clock == "simulated"
    assert run("--schedulers", "overlapped", "--timeline", str(tmp_path / "one.json")) == 0
    assert (tmp_path / "one.json").exists()
    capsys.readouterr()


def test_a_capacity_drops_rows_and_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    skewed = ("--schedulers", "overlapped", "--skew", "1")
    free, tight = (results(capsys, *skewed, *more)["results"][0] for more in ((), ("--capacity-factor", "1")))
    assert tight["wire_bytes"] < free["wire_bytes"]
    assert run(*skewed, "--capacity-factor", "1") == 0
    assert "beyond the capacity and dropped" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--schedulers", "megatron"), "--schedulers: unknown name 'megatron'"),
        (("--schedulers", "bulk-sync", "--experts", "6"), "a multiple of the 4 ranks is needed"),
        (("--schedulers", "bulk-sync", "--top-k", "17"), "top_k: is 17, of 16 experts"),
        (("--schedulers", "bulk-sync", "--machine", "l4"), "machine l4: has no topology"),
        (("--schedulers", "bulk-sync", "--jitter", "vmm"), "--jitter: unknown name 'vmm'"),
        (("--schedulers", "bulk-sync", "--dtype", "int3"), "dtype: is 'int3'"),
        (("--schedulers", "flashdmoe", "--ffn", "100"), "divisor of ffn = 100"),
        (("--schedulers", "bulk-sync", "--trace", "none.parquet"), "none.parquet"),
        (("--schedulers", "bulk-sync", "--timeline", "x.txt"), "--timeline"),
        (("--schedulers", "bulk-sync", "--rate", "gpu:gate"), "--rate: 'gpu:gate'; LANE:OP:FIELD=VALUE is needed"),
        (("--schedulers", "bulk-sync", "--rate", "gpu:gate:speed=1"), "--rate: field: unknown name 'speed'"),
        (("--schedulers", "bulk-sync", "--rate", "gpu:gate:latency_s=-1"), "latency_s"),
    ],
)
def test_bad_input_is_told_in_one_line(capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], message: str) -> None:
    assert run(*arguments) == 2
    out = capsys.readouterr()
    assert message in out.err and out.out == ""
    assert out.err.strip().splitlines()[-1].startswith("error: ")


def test_a_figure_of_the_op_table_can_be_set(capsys: pytest.CaptureFixture[str]) -> None:
    fast, slow = (
        results(capsys, "--schedulers", "flashdmoe", "--rate", f"scheduler:doorbell:latency_s={s}")["results"][0]["latency_s"]["median"]
        for s in ("1e-7", "1e-6")
    )
    assert slow > 3 * fast


def test_a_scheduler_of_ones_own(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text("from sim.schedulers.ep.overlapped import Overlapped\nclass Mine(Overlapped): pass\nclass Other:\n"
                    "    lanes, pools, on, memory = (), {}, None, None\n")  # fmt: skip
    (row,) = results(capsys, "--schedulers", f"{path}:Mine")["results"]
    assert row["scheduler"] == f"{path}:Mine" and row["wire_bytes"] > 0
    assert run("--schedulers", f"{path}:Other") == 2
    assert "derive it from sim.schedulers.ep.base.ExpertParallel" in capsys.readouterr().err
