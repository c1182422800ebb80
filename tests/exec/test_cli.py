"""python -m exec: what it prints, what it refuses, what it leaves behind."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from exec.cli.app import main
from exec.execute import spec_of
from sim import machines
from sim.costs import CostModel
from sim.drive import Log, replay
from sim.schedulers import registry
from sim.schedulers.policy import Policy
from tests.exec import profiles
from traces.routing import read_routing
from traces.timeline import read_timeline

RUN_KEYS = {
    "clock", "sources", "routing", "ttft_s", "tpot_s", "model", "machine", "workload", "scheduler", "policy", "makespan_s", "prefill_s",
    "decode_s", "generated_tokens", "tokens_per_s", "tasks", "lanes", "peak_bytes", "lower_bound_s", "wall_s",
}  # fmt: skip


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("home")
    profiles.write(folder)
    profiles.model(folder)
    (folder / "short.yaml").write_text(
        "name: short\nsource: chosen for a test\nprompt: {kind: uniform, min: 4, max: 12}\ngeneration: {kind: fixed, tokens: 5}\n"
    )
    return folder


def arguments(home: Path, **changes: str) -> list[str]:
    given = {
        "model": str(home / "model"), "machine": str(home / "profile.yaml"), "workload": str(home / "short.yaml"), "scheduler": "cgopipe",
        "batch": "6", "microbatch": "2", **changes,
    }  # fmt: skip
    return ["run", *(x for k, v in given.items() for x in (f"--{k}", v))]


def test_run_prints_the_same_object_as_the_simulator(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from sim.cli.app import main as sim_main

    assert main([*arguments(home), "--json"]) == 0
    measured = json.loads(capsys.readouterr().out)
    assert sim_main([*arguments(home), "--json"]) == 0
    simulated = json.loads(capsys.readouterr().out)
    assert set(measured) == set(simulated) == RUN_KEYS
    assert measured["clock"] == "emulated" and measured["routing"] == "model" and simulated["clock"] == "simulated"
    for key in ("tasks", "generated_tokens", "policy", "machine", "workload"):
        assert measured[key] == simulated[key], key
    assert measured["generated_tokens"] == 30
    assert measured["peak_bytes"].keys() == simulated["peak_bytes"].keys()


def test_run_leaves_timeline_routing_and_a_log_that_replays(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    outputs = {"timeline": tmp_path / "t.parquet", "record-routing": tmp_path / "r.parquet", "log": tmp_path / "log.jsonl"}
    assert main([*arguments(home), *(x for k, v in outputs.items() for x in (f"--{k}", str(v)))]) == 0
    assert "tokens/s" in capsys.readouterr().out
    timeline, routing = read_timeline(outputs["timeline"]), read_routing(outputs["record-routing"])
    assert timeline.clock == "emulated" and len(timeline.task_id) > 100
    assert len(routing) == 2 * (sum(_prompts(home)) + 6 * 4)
    spec = spec_of(str(home / "model"))
    log = Log.read(outputs["log"], CostModel(machines.load(home / "profile.yaml"), spec))
    policy = Policy(batch=6, microbatch=2, cache_tokens=2 * (12 + 5))
    fresh = registry.load("cgopipe")(spec, policy)
    replay(log, fresh)


def _prompts(home: Path) -> list[int]:
    from sim import workloads

    return [r.prompt_tokens for r in workloads.load(home / "short.yaml").requests(6, 0)[0]]


def test_a_recorded_trace_forces_the_same_routing(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = tmp_path / "a.parquet", tmp_path / "b.parquet"
    assert main([*arguments(home), "--record-routing", str(first)]) == 0
    assert main([*arguments(home, scheduler="resident"), "--trace", str(first), "--record-routing", str(second), "--json"]) == 0
    assert '"routing": "trace"' in capsys.readouterr().out
    a, b = (read_routing(path) for path in (first, second))
    key = lambda r: sorted(zip(r.request_id.tolist(), r.position.tolist(), r.layer.tolist(), map(tuple, r.experts.tolist()), strict=True))  # noqa: E731
    assert key(a) == key(b)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"scheduler": "cgopip"}, "did you mean 'cgopipe'"),
        ({"machine": "laptop-rig"}, "python -m exec calibrate --rig laptop-rig"),
        ({"machine": "l4"}, "describes a machine to simulate"),
        ({"model": "deepseek-v2-lite"}, "MLA"),
        ({"model": "tiny-mixtrol"}, "did you mean 'tiny-mixtral'"),
        ({"workload": "mtbenhc"}, "did you mean 'mtbench'"),
        ({"timeline": "/nowhere/t.parquet"}, "there is no directory"),
        ({"timeline": "t.csv"}, ".parquet or .json"),
        ({"trace": "/nowhere/r.parquet"}, "/nowhere/r.parquet"),
        ({"microbatch": "9"}, "microbatch"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(home: Path, changes: dict[str, str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments(home, **changes)) == 2
    captured = capsys.readouterr()
    assert says in captured.err and captured.err.count("\n") == 1 and not captured.out


def test_a_batch_that_fits_nowhere_names_the_bytes_and_the_knob(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = profiles.machine()
    small = {k: m.model_copy(update={"bytes": 100_000}) for k, m in made.memories.items()}
    path = profiles.write(tmp_path, made.model_copy(update={"memories": small}))
    assert main(arguments(home, machine=str(path))) == 2
    assert "bytes are missing" in capsys.readouterr().err


def test_a_machine_without_the_lane(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = profiles.machine()
    ops = tuple(op for op in made.ops if op.lane != "cpu")
    path = profiles.write(tmp_path, made.model_copy(update={"lanes": tuple(x for x in made.lanes if x.name != "cpu"), "ops": ops}))
    assert main(arguments(home, machine=str(path))) == 2
    assert "no lane 'cpu'" in capsys.readouterr().err


@pytest.mark.parametrize("keep", [0, 10, 5000])
def test_truncated_weights(home: Path, tmp_path: Path, keep: int, capsys: pytest.CaptureFixture[str]) -> None:
    where = profiles.model(tmp_path)
    (file,) = where.glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:keep])
    assert main(arguments(home, model=str(where))) == 2
    assert file.name in capsys.readouterr().err


def test_generate_goes_on_from_text(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "--model", str(home / "model"), "--prompt", "def f(", "--gen", "6", "--json"]) == 0
    resident = json.loads(capsys.readouterr().out)
    assert main(["generate", "--model", str(home / "model"), "--prompt", "def f(", "--gen", "6", "--scheduler", "cgopipe", "--json"]) == 0
    streamed = json.loads(capsys.readouterr().out)
    assert resident["tokens"] == streamed["tokens"] and 1 <= len(resident["tokens"]) <= 6
    assert main(["generate", "--model", str(home / "nothing"), "--prompt", "x"]) == 2
    assert main(["generate", "--model", str(home / "model"), "--prompt", ""]) in (0, 2)


def test_demo_makes_a_report_from_a_profile(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from exec.cli import demonstrating

    monkeypatch.setattr(demonstrating, "MODEL", str(home / "model"))
    monkeypatch.setattr(demonstrating, "BATCH", 6)
    monkeypatch.setattr(demonstrating, "MICROBATCH", 2)
    monkeypatch.setattr(demonstrating, "GEN", 8)
    monkeypatch.setattr(demonstrating, "PROBES", ((4, 2, 20, 6),))
    assert main(["demo", "-o", str(tmp_path / "demo"), "--machine", str(home / "profile.yaml")]) == 0
    out = capsys.readouterr().out
    assert "makespan" in out and "report.html" in out and out.count("«") == 4, out
    page = (tmp_path / "demo" / "report.html").read_text()
    assert "<html" in page and "http://" not in page.split("<script")[0]
    made = {p.name for p in (tmp_path / "demo").iterdir()}
    assert made >= {"routing.parquet", "simulated.parquet", "measured.parquet", "log.jsonl", "picture.png", "picture.svg", "rig.yaml"}


@pytest.mark.parametrize(("flags", "message"), [
    ("--skew 2 --machine l4 --workload mtbench", "--skew: does not go with a run without --ranks or --ram-budget"),
    ("--workload mtbench", "missing option --machine"),
    ("--ranks 2 --microbatch 4", "--microbatch: does not go with --ranks"),
    ("--ranks 2 --placement joint --device cuda", "--device cuda: does not go with --placement"),
    ("--ranks 2 --placement eplp", "--placement: unknown name 'eplp'; did you mean 'eplb'"),
    ("--ranks 2 --placement joint --scheduler overlapped", "--scheduler: does not go with --placement"),
    ("--ranks 2 --tokens 4 --scheduler overlapped --on-rank-loss recover", "--on-rank-loss recover: needs --placement"),
    ("--ram-budget 1MB --device-budget 1MB --device cuda", "--device cuda: does not go with --ram-budget"),
])  # fmt: skip
def test_options_of_another_way_to_run_are_refused(flags: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--model", "tiny-mixtral", *flags.split()]) == 2
    assert message in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(("rig", "says"), [
    ("laptop-rik", "--rig: unknown name 'laptop-rik'; did you mean 'laptop-rig'?"), ("mine.yaml", "--rig mine.yaml: no such file"),
])  # fmt: skip
def test_a_rig_that_is_not_there_is_told_before_anything_is_measured(
    rig: str, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["calibrate", "--rig", rig, "-o", str(tmp_path / "p.yaml")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert says in line and not (tmp_path / "p.yaml").exists()
