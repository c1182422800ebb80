"""The command line: exit codes, one-line errors, one JSON object."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.traces import samples, sources
from traces.cli import main
from traces.load import write_load
from traces.requests import write_requests
from traces.routing_file import read_routing, write_routing
from traces.timeline import write_timeline


def placed(folder: Path) -> dict[str, Path]:
    """One file of each kind."""
    files = {kind: folder / f"{kind}.parquet" for kind in ("routing", "requests", "load", "timeline")}
    write_routing(files["routing"], samples.routing())
    write_requests(files["requests"], samples.requests())
    write_load(files["load"], samples.load())
    write_timeline(files["timeline"], samples.timeline(40))
    return files


def test_import_tells_what_it_wrote(tmp_path, capsys):
    source, out = tmp_path / "azure.csv", tmp_path / "a.parquet"
    source.write_bytes(sources.azure())
    assert main(["import", "azure", str(source), "-o", str(out), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["rows"] == 20 and told["kind"] == "requests" and told["made"] == "imported"
    assert told["metadata"]["source"] == "azure.csv"


def test_what_was_taken_for_granted_is_said_on_stderr(tmp_path, capsys):
    (tmp_path / "r.npz").write_bytes(sources.npz())
    assert main(["import", "npz", str(tmp_path / "r.npz"), "-o", str(tmp_path / "r.parquet")]) == 0
    assert "note: the source tells no prompt lengths" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["import", "azuer", "x", "-o", "y"], "format 'azuer': unknown; did you mean 'azure'"),
        (["import", "azure", "nowhere.csv", "-o", "y"], "nowhere.csv: no such file"),
        (["import", "azure", "nowhere.csv"], "Missing option '-o'"),
        ([], "missing command; --help lists them"),
        (["describe", "nowhere.parquet"], "nowhere.parquet: no such file"),
        (["describe", "nowhere.parquet", "--plot", "x.gif"], "--plot x.gif: must end in .png"),
        (["describe", "nowhere.parquet", "--gpus", "0"], "--gpus"),
        (["export", "nowhere.parquet", "--format", "xml", "-o", "y"], "--format"),
        (["export", "nowhere.parquet", "--format", "csv", "-o", "y"], "nowhere.parquet: no such file"),
        (["synthesize", "-o", "y", "--experts", "2", "--k", "3"], "k=3, experts=2"),
        (["synthesize", "-o", "y", "--skew", "-1"], "skew=-1"),
        (["frobnicate"], "No such command"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    told = capsys.readouterr()
    assert told.out == "" and told.err.count("\n") == 1 and told.err.startswith("error: ") and message in told.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["routing", "requests", "load", "timeline"])
def test_describe_prints_a_table_or_one_object_and_draws(tmp_path, capsys, kind):
    path = placed(tmp_path)[kind]
    assert main(["describe", str(path)]) == 0
    assert "a test" in capsys.readouterr().out
    for suffix in ("png", "html"):
        assert main(["describe", str(path), "--json", "--plot", str(tmp_path / f"x.{suffix}")]) == 0
        told = json.loads(capsys.readouterr().out)
        assert told["kind"] == kind and told["made"] == "recorded" and told["origin"] == "a test"
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")
    page = (tmp_path / "x.html").read_text()
    assert "a test" in page and "<svg" in page and "http" not in page.replace("http://www.w3.org", "")


@pytest.mark.parametrize("kind", ["routing", "requests", "load", "timeline"])
@pytest.mark.parametrize("format", ["csv", "jsonl"])
def test_export_holds_every_row(tmp_path, capsys, kind, format):
    path, out = placed(tmp_path)[kind], tmp_path / f"o.{format}"
    assert main(["export", str(path), "--format", format, "-o", str(out)]) == 0
    lines = out.read_text().splitlines()
    rows = json.loads(_json(capsys, ["export", str(path), "--format", format, "-o", str(out), "--json"]))["rows"]
    assert len(lines) == rows + (format == "csv")
    if kind == "routing":
        r = read_routing(path)
        first = lines[1].split(",")[4].split() if format == "csv" else json.loads(lines[0])["experts"]
        assert [int(e) for e in first] == r.experts[0].tolist()


def _json(capsys, arguments):
    capsys.readouterr()
    assert main(arguments) == 0
    return capsys.readouterr().out


def test_perfetto_takes_timelines_only(tmp_path, capsys):
    files = placed(tmp_path)
    assert main(["export", str(files["timeline"]), "--format", "perfetto", "-o", str(tmp_path / "t.json")]) == 0
    assert json.loads((tmp_path / "t.json").read_text())["traceEvents"]
    assert main(["export", str(files["load"]), "--format", "perfetto", "-o", str(tmp_path / "u.json")]) == 2
    assert "draws timelines" in capsys.readouterr().err and not (tmp_path / "u.json").exists()


def test_synthesize_draws_lengths_of_a_request_trace(tmp_path, capsys):
    files = placed(tmp_path)
    out = tmp_path / "s.parquet"
    shape = ["--layers", "2", "--experts", "4", "--k", "1"]
    assert main(["synthesize", "-o", str(out), "--like", str(files["requests"]), *shape]) == 0
    assert "SYNTHETIC" in capsys.readouterr().out
    assert len(read_routing(out)) == 5 * (77 + 31) * 2
    assert main(["describe", str(out)]) == 0
    assert "synthetic" in capsys.readouterr().out


def test_formats_are_listed(capsys):
    told = json.loads(_json(capsys, ["formats", "--json"]))
    assert {"azure", "sglang", "vllm"} <= {f["name"] for f in told["formats"]}


def test_starting_imports_nothing_heavy():
    code = "import sys, traces.cli, traces.importers, traces.describe; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    assert not {"torch", "numba", "matplotlib", "scipy", "sim", "exec", "kernels"} & set(done.stdout.split())
