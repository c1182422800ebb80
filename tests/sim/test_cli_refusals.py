"""Bad input on the command line: exit 2, and one line that says what would be right."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from sim import machines
from sim.cli.app import main
from tests.sim.cli_calls import RUN, SMALL, Capture, lines, prompts_of_small_run, skewed_trace, with_flags
from traces.routing import read_routing, write_routing

MOE_LAYER = ["moe-layer", "--model", "tiny-mixtral", "--machine", "8xh100", "--tokens-per-gpu", "8", "--schedulers", "bulk-sync"]


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
        ("scheduler", "mine.py", "--scheduler: mine.py names no class; FILE.py:CLASS is needed"),
        ("machine", "nowhere.yaml", "--machine nowhere.yaml: no such file; a YAML file or one of"),
        ("workload", "no/where", "--workload no/where: no such file; a YAML file or one of"),
        ("policy", "nowhere.yaml", "'--policy'"), ("trace", "nowhere.parquet", "'--trace'"), ("trace", ".", "'--trace'"),
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
        ([], "missing command; --help lists them"), (["reproduce"], "missing command; --help lists them"),
        (["rnu"], "No such command 'rnu'"), (["run"], "Missing option '--model'"), (["list", "model"], "'models'"),
        ([*RUN, "--fast"], "No such option: --fast"), (["compare", *SMALL, "--schedulers", "cgopipe,,flexgen"], "has an empty name"),
        (["compare", *SMALL, "--schedulers", "cgopipe,flexen"], "--schedulers: unknown name 'flexen'; did you mean 'flexgen'"),
        (["check", "cgopipi"], "error: scheduler: unknown name 'cgopipi'; did you mean 'cgopipe'"),
    ],
)  # fmt: skip
def test_bad_calls(capsys: Capture, arguments: list[str], message: str) -> None:
    assert message in refused(capsys, arguments)


def test_an_uncalibrated_rig_says_what_to_run(capsys: Capture) -> None:
    assert refused(capsys, with_flags(RUN, machine="laptop-rig")) == (
        "error: machine laptop-rig is a rig without measured op times; "
        "run: python -m exec calibrate --rig laptop-rig -o PROFILE.yaml\n"
    )


def test_a_cluster_is_no_machine(capsys: Capture) -> None:
    told = refused(capsys, with_flags(RUN, machine="five-regions"))
    assert told.startswith("error: --machine: five-regions is a cluster, for `swarm` and `place`; a machine is needed: ")


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
    empty = tmp_path / "empty.parquet"
    write_routing(empty, read_routing(other).take(np.zeros(0, np.intp)))
    for command in (RUN, MOE_LAYER):
        assert f"--trace {empty}: holds no rows; a trace of a whole run is needed" in refused(capsys, [*command, "--trace", str(empty)])
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
    (line,) = lines(captured.err)
    assert line.startswith("error: the run failed, nothing was saved: ") and "one" in line


def test_nowhere_to_keep_compiled_code(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    """Numba's error, word for word."""

    def loaded(name: str) -> None:
        raise RuntimeError("cannot cache function 'run_7fb85f6b': no locator available for file '/x/loop.py'")

    monkeypatch.setattr(machines, "load", loaded)
    assert refused(capsys, RUN).startswith("error: NUMBA_CACHE_DIR: is not set")
