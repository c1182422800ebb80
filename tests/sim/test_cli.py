"""The command line: what it prints, its exit codes, and one line for each kind of bad input."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from sim import machines, models
from sim.cli.app import main
from traces.files import Provenance
from traces.routing import Routing, Shape, write_routing
from traces.timeline import read_timeline

Capture = pytest.CaptureFixture[str]
SMALL = ["--model", "tiny-mixtral", "--machine", "l4", "--workload", "mtbench", "--gen", "4", "--batch", "8", "--microbatch", "4"]
RUN = ["run", *SMALL, "--scheduler", "cgopipe"]

FIELDS = [
    "clock", "sources", "routing", "ttft_s", "tpot_s", "model", "machine", "workload", "scheduler", "policy", "makespan_s", "prefill_s",
    "decode_s", "generated_tokens", "tokens_per_s", "tasks", "lanes", "peak_bytes", "lower_bound_s", "wall_s",
]  # fmt: skip


def with_flags(base: list[str], **flags: str) -> list[str]:
    """`base` with some flags replaced or added."""
    out = list(base)
    for name, value in flags.items():
        flag = "--" + name
        if flag in out:
            out[out.index(flag) + 1] = value
        else:
            out += [flag, value]
    return out


def run_json(capsys: Capture, arguments: list[str]) -> Any:
    assert main([*arguments, "--json"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    return json.loads(captured.out)


# What it prints ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "some"), [("models", "olmoe"), ("machines", "laptop-rig"), ("workloads", "mixed"), ("schedulers", "flexgen-c")]
)
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
    assert found["policy"]["batch"], found["policy"]["microbatch"] == (8, 4)
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
    assert list(found) == ["results"]
    assert [r["scheduler"] for r in found["results"]] == ["cgopipe", "flexgen", "resident"]
    assert all(list(r) == FIELDS for r in found["results"])
    assert main(["compare", *SMALL, "--schedulers", "cgopipe,resident"]) == 0
    assert "of the best" in capsys.readouterr().out


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


def skewed_trace(path: Path, prompts: list[int], steps: int, *, experts: int = 8, k: int = 2, layers: int = 4) -> Path:
    """Every token of every request goes to experts 0 and 1."""
    rows = [(max(0, p - n + 1), i, p, layer) for i, n in enumerate(prompts) for p in range(n + steps) for layer in range(layers)]
    step, request, position, layer = np.array(rows, np.int32).T
    chosen = np.tile(np.arange(k, dtype=np.int16), (len(rows), 1))
    write_routing(path, Routing(
        decode=step > 0, step=step.copy(), request_id=request.copy(), position=position.copy(), layer=layer.astype(np.int16),
        experts=chosen, weights=np.full((len(rows), k), 0.5, np.float32), shape=Shape("tiny-mixtral", layers, experts, k),
        provenance=Provenance("synthetic", "every token to the same experts"),
    ))  # fmt: skip
    return path


def prompts_of_small_run() -> list[int]:
    from sim import workloads

    return [r.prompt_tokens for r in workloads.load("mtbench").requests(8)[0]]


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


# Bad input --------------------------------------------------------------------------------------


def refused(capsys: Capture, arguments: list[str]) -> str:
    """The one line on stderr of a call that exits with 2 and prints nothing else."""
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1 and captured.err.endswith("\n")
    return captured.err


@pytest.mark.parametrize(
    ("flag", "value", "message"),
    [
        ("model", "mixtral-8x7", "--model: unknown name 'mixtral-8x7'; did you mean 'mixtral-8x7b'?"),
        ("machine", "h1000", "--machine: unknown name 'h1000'; did you mean 'h100'?"),
        ("workload", "mtbenhc", "--workload: unknown name 'mtbenhc'; did you mean 'mtbench'?"),
        ("scheduler", "cgopip", "--scheduler: unknown name 'cgopip'; did you mean 'cgopipe'?"),
        ("scheduler", "nowhere.py:Mine", "--scheduler: no file nowhere.py"),
        ("machine", "nowhere.yaml", "nowhere.yaml: cannot be read"),
        ("policy", "nowhere.yaml", "nowhere.yaml: cannot be read"),
        ("trace", "nowhere.parquet", "nowhere.parquet: no such file"),
        ("batch", "0", "'--batch'"), ("gen", "many", "'--gen'"), ("engine", "fast", "'--engine'"), ("seed", "-1", "'--seed'"),
        ("microbatch", "9", "microbatch: is 9, more than the batch of 8"),
        ("timeline", "out.csv", "--timeline: out.csv ends in .csv; .parquet or .json is needed"),
        ("timeline", "no/such/dir/t.json", "--timeline: no/such/dir/t.json cannot be written: there is no directory"),
        ("gen", "4000", "workload mtbench: prompt and generation reach 4418 positions, tiny-mixtral has 4096"),
    ],
)  # fmt: skip
def test_bad_flags(capsys: Capture, flag: str, value: str, message: str) -> None:
    assert message in refused(capsys, with_flags(RUN, **{flag: value}))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Missing command"), (["rnu"], "No such command 'rnu'"), (["run"], "Missing option '--model'"), (["list", "model"], "'models'"),
        ([*RUN, "--fast"], "No such option: --fast"), (["compare", *SMALL, "--schedulers", "cgopipe,,flexgen"], "has an empty name"),
        (["compare", *SMALL, "--schedulers", "cgopipe,flexen"], "did you mean 'flexgen'"), (["check", "cgopipi"], "did you mean 'cgopipe'"),
    ],
)  # fmt: skip
def test_bad_calls(capsys: Capture, arguments: list[str], message: str) -> None:
    assert message in refused(capsys, arguments)


def test_an_uncalibrated_rig_says_what_to_run(capsys: Capture) -> None:
    assert refused(capsys, with_flags(RUN, machine="laptop-rig")) == (
        "error: machine laptop-rig is a rig without measured op times; "
        "run: python -m exec calibrate --rig laptop-rig -o PROFILE.yaml\n"
    )


def changed_l4(tmp_path: Path, change: Callable[[dict[str, Any]], None]) -> str:
    values = machines.load("l4").model_dump(mode="json", exclude_defaults=True)
    change(values)
    path = tmp_path / "machine.yaml"
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    return str(path)


def no_pin(values: dict[str, Any]) -> None:
    values["lanes"] = [lane for lane in values["lanes"] if lane["name"] != "pin"]
    values["ops"] = [op for op in values["ops"] if op["lane"] != "pin"]


def negative_capacity(values: dict[str, Any]) -> None:
    values["resources"]["link.h2d"]["capacity"] = -1.0


def zero_memory(values: dict[str, Any]) -> None:
    values["memories"]["gpu"]["bytes"] = 0


def little_memory(values: dict[str, Any]) -> None:
    values["memories"]["gpu"]["bytes"] = 10**8


def no_gpu_times(values: dict[str, Any]) -> None:
    values["ops"] = [op for op in values["ops"] if op["lane"] != "gpu"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (no_pin, "machine l4 has no lane 'pin' that scheduler cgopipe needs; it has gpu, cpu, h2d, d2h"),
        (negative_capacity, "machine.yaml: resources.link.h2d.capacity: Input should be greater than 0 (is -1.0)"),
        (zero_memory, "machine.yaml: memories.gpu.bytes: Input should be greater than 0 (is 0)"),
        (little_memory, "bytes are missing"),
        (no_gpu_times, "machine l4: ops has no row for 'embed' on lane 'gpu'"),
    ],
)
def test_machines_that_cannot_do_it(capsys: Capture, tmp_path: Path, change: Callable[[dict[str, Any]], None], message: str) -> None:
    assert message in refused(capsys, with_flags(RUN, machine=changed_l4(tmp_path, change)))


def test_a_batch_that_fits_nowhere_names_bytes_and_knob(capsys: Capture) -> None:
    message = refused(capsys, with_flags(RUN, model="mixtral-8x22b", scheduler="resident"))
    assert "resident on l4, batch 8, microbatch 4: memory 'gpu': " in message
    assert "bytes are missing" in message


@pytest.mark.parametrize(
    ("name", "text", "flag", "message"),
    [
        ("config.json", '{"model_type": "mixtral", "hidden_size": 6', "model", "malformed or truncated JSON"),
        ("config.json", '{"model_type": "mixtral"}', "model", "hidden_size: missing"),
        ("m.yaml", "resources: {gpu.flops: {kind: flops, cap", "machine", "malformed or truncated YAML"),
        ("w.yaml", "name: [1, 2", "workload", "malformed or truncated YAML"),
        ("w.yaml", "name: mine\n", "workload", "source: missing; prompt: missing; generation: missing"),
        ("p.yaml", "batch: 8\nmicrobatch: -2\n", "policy", "microbatch: Input should be greater than 0 (is -2)"),
        ("t.parquet", "PAR1 and then nothing", "trace", "not a readable Parquet file"),
    ],
)
def test_broken_files(capsys: Capture, tmp_path: Path, name: str, text: str, flag: str, message: str) -> None:
    path = tmp_path / name
    path.write_text(text)
    given = str(tmp_path if name == "config.json" else path)
    found = refused(capsys, with_flags(RUN, **{flag: given}))
    assert message in found and name in found


def test_traces_of_something_else(capsys: Capture, tmp_path: Path) -> None:
    prompts = prompts_of_small_run()
    shape = skewed_trace(tmp_path / "shape.parquet", prompts, 1, experts=16)
    assert "metadata experts: is 16; a trace of tiny-mixtral has 8" in refused(capsys, [*RUN, "--trace", str(shape)])
    other = skewed_trace(tmp_path / "other.parquet", [n + 1 for n in prompts], 1)
    assert "request 0 has" in refused(capsys, [*RUN, "--trace", str(other)])
    whole = skewed_trace(tmp_path / "whole.parquet", prompts, 1).read_bytes()
    cut = tmp_path / "cut.parquet"
    cut.write_bytes(whole[: len(whole) // 2])
    assert "cut.parquet: not a readable Parquet file" in refused(capsys, [*RUN, "--trace", str(cut)])


def test_the_compiled_engine_refuses_what_reacts(capsys: Capture) -> None:
    assert "--engine simpy runs it" in refused(capsys, with_flags(RUN, workload="mixed", engine="compiled"))


@pytest.mark.parametrize("kind", ["directory", "parent"])
def test_unwritable_timeline(capsys: Capture, tmp_path: Path, kind: str) -> None:
    target = tmp_path / "t.parquet"
    if kind == "directory":
        target.mkdir()
    else:
        (tmp_path / "file").write_text("")
        target = tmp_path / "file" / "t.parquet"
    assert "cannot be written" in refused(capsys, with_flags(RUN, timeline=str(target)))


def test_a_deadlock_exits_with_1(capsys: Capture, tmp_path: Path) -> None:
    path = tmp_path / "stuck.py"
    path.write_text(
        "from sim.schedulers.resident import Resident\n"
        "from sim.tasks import Task, Work\n\n\n"
        "class Stuck(Resident):\n"
        "    pools = {'one': 1}\n\n"
        "    def __init__(self, *a, **k):\n"
        "        super().__init__(*a, **k)\n"
        "        self.pools = {'one': 1}\n\n"
        "    def on(self, now, event):\n"
        "        if now or type(event).__name__ != 'Started':\n"
        "            return ()\n"
        "        hold = (('one', 1),)\n"
        "        return [Task(i, Work('embed', tokens=1), 'gpu', takes=hold) for i in range(2)]\n"
    )
    assert main(with_flags(RUN, scheduler=f"{path}:Stuck")) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: the run failed, nothing was saved: ") and "one" in captured.err
    assert captured.err.count("\n") == 1


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
