"""python -m sim policy."""

from __future__ import annotations

import json

import pytest
import yaml

from sim.cli.app import main
from sim.policy import stored
from sim.schedulers import policy as policies

COMMON = ["policy", "--model", "tiny-mixtral", "--machine", "t4", "--workload", "mtbench", "--gen", "4"]
PAPER = ["policy", "--model", "mixtral-8x7b", "--machine", "l4", "--workload", "mtbench", "--paper-mode"]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv(stored.DIRECTORY, str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_policy_is_written_that_run_accepts(tmp_path, capsys) -> None:
    out = tmp_path / "policy.yaml"
    assert main([*COMMON, "--refine", "1", "-o", str(out), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert policies.load(out).model_dump(exclude_none=True) == found["policy"]
    arguments = ["run", "--model", "tiny-mixtral", "--machine", "t4", "--workload", "mtbench", "--gen", "4", "--policy", str(out), "--json"]
    assert main(arguments) == 0
    run = json.loads(capsys.readouterr().out)
    assert run["scheduler"] == found["policy"]["scheduler"]
    assert run["tokens_per_s"] == pytest.approx(found["predicted_tokens_per_s"], rel=1e-9)
    assert main([*arguments[:-1], "--scheduler", "resident", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["scheduler"] == "resident"


def test_answers_are_kept_until_told_otherwise(cache, capsys) -> None:
    asked = [*PAPER, "--padded", "--json"]
    assert main(asked) == 0
    first = capsys.readouterr()
    (entry,) = cache.iterdir()
    assert main(asked) == 0
    second = capsys.readouterr()
    assert "kept from an earlier search" in second.err and "kept" not in first.err
    assert json.loads(first.out)["policy"] == json.loads(second.out)["policy"]
    entry.unlink()
    assert main([*asked, "--no-cache"]) == 0
    assert not list(cache.iterdir())


def test_paper_mode_takes_its_inputs_from_its_flags(capsys) -> None:
    flags = ["--gen", "32", "--cpu-memory", "182", "--cpu-bandwidth", "76", "--memory-form", "l4-padding", "--json"]
    assert main([*PAPER, *flags]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["policy"]["microbatch"], found["policy"]["batch"]) == (324, 324 * 14)
    assert found["searched"]["memory_form"] == "l4-padding"


@pytest.mark.parametrize(
    ("more", "named"),
    [
        (["--cpu-memory", "100"], "--cpu-memory"), (["--memory-form", "t4"], "--memory-form"), (["--objective", "cost"], "price"),
        (["--objective", "speed"], "--objective"), (["--refine", "-1"], "--refine"), (["-o", "p.json"], "-o"),
        (["--gen", "9999"], "positions"),
        (["--paper-mode", "--cpu-bandwidth", "0"], "--cpu-bandwidth"), (["--paper-mode", "--objective", "latency"], "--objective"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line(more: list[str], named: str, capsys) -> None:
    assert main([*COMMON, *more]) == 2
    said = capsys.readouterr()
    assert named in said.err and said.err.count("\n") == 1
    assert said.out == ""


def test_the_table_is_for_people(capsys) -> None:
    assert main([*PAPER, "--padded", "--no-cache"]) == 0
    said = capsys.readouterr().out
    assert "micro-batches of" in said and "static experts a layer" in said


def test_a_run_needs_a_scheduler_from_somewhere(tmp_path, capsys) -> None:
    sizes = tmp_path / "p.yaml"
    sizes.write_text(yaml.safe_dump({"batch": 4, "microbatch": 2}))
    assert main(["run", "--model", "tiny-mixtral", "--machine", "t4", "--workload", "mtbench", "--policy", str(sizes)]) == 2
    assert "--scheduler: missing" in capsys.readouterr().err
