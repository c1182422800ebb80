"""The command line: what it prints, and its exit codes."""

import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from sim import models
from sim.cli import compiling
from sim.cli.app import main
from tests.sim.cli_calls import RUN, SMALL, Capture, prompts_of_small_run, run_json, skewed_trace, with_flags
from traces.timeline import read_timeline

FIELDS = [
    "clock", "sources", "routing", "ttft_s", "tpot_s", "model", "machine", "workload", "scheduler", "policy", "makespan_s", "prefill_s",
    "decode_s", "generated_tokens", "tokens_per_s", "tasks", "lanes", "peak_bytes", "lower_bound_s", "wall_s",
]  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "some"),
    [
        ("models", "olmoe"), ("machines", "laptop-rig"), ("workloads", "mixed"), ("schedulers", "flexgen-c"), ("clusters", "five-regions"),
        ("systems", "comet"), ("policies", "joint"),
    ],
)  # fmt: skip
def test_list(capsys: Capture, kind: str, some: str) -> None:
    rows = run_json(capsys, ["list", kind])[kind]
    assert some in [r["name"] for r in rows]
    assert main(["list", kind]) == 0
    assert some in capsys.readouterr().out


def test_list_says_what_is_simulated_only(capsys: Capture) -> None:
    rows = {r["name"]: r for r in run_json(capsys, ["list", "models"])["models"]}
    assert not rows["deepseek-v2-lite"]["executable"]
    assert "MLA" in rows["deepseek-v2-lite"]["not_executable_because"]


@pytest.mark.parametrize("engine", ["simpy", "compiled"])
def test_run_json(capsys: Capture, engine: str) -> None:
    found = run_json(capsys, [*RUN, "--engine", engine])
    assert list(found) == FIELDS
    assert (found["clock"], found["routing"], found["machine"]) == ("simulated", "synthetic", "l4")
    assert (found["policy"]["batch"], found["policy"]["microbatch"]) == (8, 4)
    assert found["generated_tokens"] == 32
    assert found["tokens_per_s"] == pytest.approx(32 / found["makespan_s"])
    assert found["prefill_s"] + found["decode_s"] == pytest.approx(found["makespan_s"])
    assert 0 < found["lower_bound_s"] <= found["makespan_s"]
    assert set(found["lanes"]) == {"gpu", "cpu", "h2d", "d2h", "pin"}
    assert set(found["peak_bytes"]) == {"gpu", "cpu", "pinned"}


def test_both_engines_print_the_same(capsys: Capture) -> None:
    simpy, compiled = (run_json(capsys, [*RUN, "--engine", e]) for e in ("simpy", "compiled"))
    assert {**simpy, "wall_s": 0} == {**compiled, "wall_s": 0}


def test_run_table_names_the_run(capsys: Capture) -> None:
    assert main(RUN) == 0
    out = capsys.readouterr().out
    assert out.startswith("cgopipe: tiny-mixtral on l4, mtbench, batch 8, micro-batch 4\n")
    assert "tokens/s" in out and "\x1b" not in out


def test_mixed_reacts_and_serves_every_token(capsys: Capture) -> None:
    from sim import workloads

    found = run_json(capsys, with_flags(RUN, workload="mixed", gen="6", seed="3"))
    lengths = workloads.load("mixed").with_generation(6).requests(16, seed=3)[1]
    assert found["generated_tokens"] == sum(lengths)


def test_compare(capsys: Capture) -> None:
    found = run_json(capsys, ["compare", *SMALL, "--schedulers", "cgopipe,flexgen, resident"])
    assert list(found) == ["results", "refused"] and not found["refused"]
    assert [r["scheduler"] for r in found["results"]] == ["cgopipe", "flexgen", "resident"]
    assert all(list(r) == FIELDS for r in found["results"])
    assert main(["compare", *SMALL, "--schedulers", "cgopipe,resident"]) == 0
    assert "of the best" in capsys.readouterr().out


def test_compare_leaves_out_what_does_not_fit_and_says_so(capsys: Capture) -> None:
    large = with_flags(SMALL, model="mixtral-8x7b", machine="l4", batch="4", microbatch="4", gen="2")
    found = run_json(capsys, ["compare", *large, "--schedulers", "resident,cgopipe"])
    assert [r["scheduler"] for r in found["results"]] == ["cgopipe"]
    (refused,) = found["refused"]
    assert refused["scheduler"] == "resident" and "bytes are missing" in refused["why"]
    assert main(["compare", *large, "--schedulers", "resident,cgopipe"]) == 0
    shown = capsys.readouterr()
    assert "cgopipe" in shown.out and "resident is left out: " in shown.err
    assert main(["compare", *large, "--schedulers", "resident"]) == 2  # nothing to compare with


def test_padding_and_default_batch(capsys: Capture) -> None:
    plain, padded = run_json(capsys, RUN), run_json(capsys, [*RUN, "--padded"])
    assert padded["lanes"]["gpu"]["busy_s"] > plain["lanes"]["gpu"]["busy_s"]
    chosen = run_json(capsys, ["run", *SMALL[:8], "--scheduler", "resident"])["policy"]
    assert (chosen["batch"], chosen["microbatch"]) == (1024, 64)


def test_policy_file(capsys: Capture, tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text("batch: 12\nmicrobatch: 3\nstatic_experts: 2\n")
    found = run_json(capsys, ["run", *SMALL[:8], "--scheduler", "cgopipe", "--policy", str(path), "--microbatch", "6"])["policy"]
    assert (found["batch"], found["microbatch"], found["static_experts"]) == (12, 6, 2)


def test_timelines(capsys: Capture, tmp_path: Path) -> None:
    parquet, chrome = tmp_path / "t.parquet", tmp_path / "t.json"
    tasks = run_json(capsys, [*RUN, "--timeline", str(parquet)])["tasks"]
    timeline = read_timeline(parquet)
    assert len(timeline) == tasks
    assert timeline.clock == "simulated"
    run_json(capsys, [*RUN, "--timeline", str(chrome)])
    assert len(json.loads(chrome.read_text())["traceEvents"]) > tasks / 2
    assert sorted(p.name for p in tmp_path.iterdir()) == ["t.json", "t.parquet"]


def test_check_passes_and_fails(capsys: Capture, tmp_path: Path) -> None:
    found = run_json(capsys, ["check", "resident"])
    assert found["passed"] and all(r["passed"] for r in found["rules"])
    lazy = tmp_path / "lazy.py"
    base = "from sim.schedulers.resident import Resident\n\n\n"
    lazy.write_text(base + "class Lazy(Resident):\n    def on(self, now, event):\n        return ()\n")
    assert main(["check", f"{lazy}:Lazy", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert not found["passed"] and any("token" in r["name"] and not r["passed"] for r in found["rules"])


# A routing trace --------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["simpy", "compiled"])
def test_a_trace_drives_the_experts(capsys: Capture, tmp_path: Path, engine: str) -> None:
    """All tokens on two experts: six experts' weights need not be read by the GPU."""
    trace = skewed_trace(tmp_path / "r.parquet", prompts_of_small_run(), steps=3)
    plain = run_json(capsys, [*RUN, "--engine", engine])
    driven = run_json(capsys, [*RUN, "--engine", engine, "--trace", str(trace)])
    assert driven["routing"] == "trace"
    assert driven["lanes"]["gpu"]["busy_s"] < 0.8 * plain["lanes"]["gpu"]["busy_s"]


def test_a_trace_that_ends_early_is_noted(capsys: Capture, tmp_path: Path) -> None:
    trace = skewed_trace(tmp_path / "r.parquet", prompts_of_small_run(), steps=1)
    assert main([*RUN, "--trace", str(trace), "--json"]) == 0
    assert "of the router calls are not in" in capsys.readouterr().err


# How it behaves ---------------------------------------------------------------------------------


def test_compiling_is_told_once_with_where_it_is_kept(capsys: Capture, tmp_path: Path) -> None:
    path = tmp_path / "compiled.py"
    path.write_text("import numba\n\n@numba.njit(cache=True)\ndef next_to(x):\n    return x + 1\n")
    note = f"note: compiling, which only the first run does and takes half a minute or more; kept in {tmp_path / '__pycache__'}"
    for told in ([note], []):
        module = runpy.run_path(str(path))
        with compiling.told():
            assert module["next_to"](1) == 2 and module["next_to"](1.5) == 2.5
        assert capsys.readouterr().err.splitlines() == told


def test_as_a_process(tmp_path: Path) -> None:
    """`python -m sim`: exit code and streams of a real call."""
    command = [sys.executable, "-m", "sim"]
    good = subprocess.run([*command, "list", "models", "--json"], capture_output=True, text=True, check=True)
    assert len(json.loads(good.stdout)["models"]) == len(models.names())
    bad = subprocess.run([*command, *with_flags(RUN, machine="l5")], capture_output=True, text=True)
    assert (bad.returncode, bad.stdout) == (2, "")
    assert bad.stderr == "error: --machine: unknown name 'l5'; did you mean 'l4'?\n"


def test_bench(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    """The fixed plan, cut to three tokens: the figures are there, and both engines saw the same times."""
    from sim import benchmark

    short = benchmark.fixed_job(gen=3)
    monkeypatch.setattr(benchmark, "fixed_job", lambda: short)
    found = run_json(capsys, ["bench"])
    assert list(found)[:3] == ["simpy_tasks_per_s", "compiled_tasks_per_s", "ratio"]
    assert found["ratio"] == pytest.approx(found["compiled_tasks_per_s"] / found["simpy_tasks_per_s"])
    assert found["same_times"] and found["tasks"] > 5000 and 0 < found["bytes_per_task"] < 300
    assert main(["bench"]) == 0
    assert "tasks/s" in capsys.readouterr().out


def test_interrupted(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    from sim.cli import listing

    def interrupt(kind: str, as_json: bool) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(listing, "show", interrupt)
    assert main(["list", "models"]) == 1
    assert capsys.readouterr().err == "error: python -m sim: interrupted\n"
