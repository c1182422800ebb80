"""The bench: samples in turn, rows, formats, grids; every case's results agree with torch's."""

from __future__ import annotations

import csv
import io
import itertools
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from exec.bench import cpu, cuda, report, serving
from exec.bench.case import Case, Ceilings, Measured
from exec.bench.run import kernels_on_cpu
from exec.bench.timing import measure, with_threads
from exec.cli.app import main
from exec.cli.benching import numbers
from exec.fused import program_of, tiles_in
from exec.weights import random_weights, save_hf
from kernels.cost import Cost
from kernels.fused_moe import gpu_decode, gpu_grouped
from sim import models
from sim.errors import UserError
from sim.schedulers.ticket import body_of, tiles_of
from tests.exec.backends.support import SPEC


def test_variants_take_turns_and_each_begins_a_round() -> None:
    calls: list[str] = []
    case = Case("op", "any", "fp32", 1, Cost(1, 1), {name: lambda name=name: calls.append(name) for name in "abc"})

    def clock(work, count: int) -> float:
        work()
        return 1.0  # longer than a sample: one call each

    found = measure(case, 6, clock)
    assert {name: len(s) for name, s in found.samples.items()} == {"a": 6, "b": 6, "c": 6}
    rounds = "".join(calls)[-18:]
    assert [rounds[i : i + 3] for i in range(0, 18, 3)] == ["abc", "bca", "cab", "abc", "bca", "cab"]


def test_a_short_call_is_repeated_within_a_sample() -> None:
    counts: list[int] = []

    def clock(work, count: int) -> float:
        counts.append(count)
        return count * 1e-6

    case = Case("op", "any", "fp32", 1, Cost(1, 1), {"kernel": lambda: None}, calls=10)
    found = measure(case, 5, clock)
    assert counts[-1] == 2000
    assert found.samples["kernel"] == pytest.approx([1e-7] * 5)


def test_disagreeing_results_are_no_benchmark() -> None:
    def check() -> None:
        raise AssertionError("results differ")

    with pytest.raises(AssertionError, match="differ"):
        measure(Case("op", "any", "fp32", 1, Cost(1, 1), {"kernel": lambda: None}, check), 5)


def rows() -> list[dict]:
    case = Case("op", "any", "fp32", 2, Cost(3_000_000, 2_000_000), {"kernel": lambda: None, "torch": lambda: None})
    measured = Measured(case, {"kernel": [1e-3, 1e-3, 2e-3], "torch": [3e-3, 2e-3, 4e-3]})
    return measured.rows(Ceilings({"fp32/2": 6e9}, {2: 4e9}))


def test_rates_are_shares_of_the_measured_ceilings() -> None:
    ours, theirs = rows()
    assert ours["median_s"] == 1e-3 and theirs["median_s"] == 3e-3
    assert ours["flops_per_s"] == 3e9 and ours["of_flops_ceiling"] == 0.5
    assert ours["bytes_per_s"] == 2e9 and ours["of_bytes_ceiling"] == 0.5
    assert theirs["ours_faster"] == 3.0 and ours["ours_faster"] == 1.0
    assert ours["samples_s"] == [1e-3, 1e-3, 2e-3]


@pytest.fixture
def found() -> dict:
    test = {"model": "m", "test": "pp8", "n_prompt": 8, "n_gen": 0, "batch": 1, "scheduler": "s", "device": "cpu", "graphs": False,
            "tokens_per_s": 12.5, "stddev_tokens_per_s": 0.25, "samples_tokens_per_s": [12.25, 12.75]}  # fmt: skip
    return {"made": {"command": "bench"}, "ceilings": {}, "kernels": rows(), "tests": [test]}


def test_formats_say_the_same(found: dict) -> None:
    assert json.loads(report.text(found, "json")) == found
    lines = [json.loads(line) for line in report.text(found, "jsonl").splitlines()]
    assert [line.get("variant") for line in lines] == ["kernel", "torch", None]
    assert all(line["made"] == found["made"] for line in lines)
    table = list(csv.DictReader(io.StringIO(report.text(found, "csv"))))
    assert [row["median_s"] for row in table] == ["0.001", "0.003", ""]
    assert json.loads(table[2]["samples_tokens_per_s"]) == [12.25, 12.75]
    text = report.text(found, "md")
    assert "| 3.00 x as fast |" in text and "12.50 ± 0.25" in text
    assert len({line.count("|") for line in text.splitlines()[:4]}) == 1


def test_lists_expand_to_a_grid() -> None:
    tests = serving.grid([128, 512], [16], [1, 8], ["resident", "cgopipe"])
    assert len(tests) == 3 * 2 * 2
    assert {t.name for t in tests} == {"pp128", "pp512", "tg16"}
    assert len(set(tests)) == len(tests)


@pytest.mark.parametrize(("text", "says"), [("128,x", "whole numbers with commas"), ("0", "1 or more is needed"), ("", "whole numbers")])
def test_wrong_lists_are_refused(text: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        numbers("-p", text)


def test_an_unknown_op_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--op", "rooter"]) == 2
    assert "--op" in capsys.readouterr().err


@pytest.mark.parametrize("op", cpu.cases(1))
def test_kernels_agree_with_torch(op: str) -> None:
    """The first shapes of each op, through the check that every benchmark makes."""

    def one() -> None:
        for case in itertools.islice(cpu.cases(1)[op](), 2 if op == "router" else 1):
            for work in case.variants.values():
                work()
            assert case.check is not None or "compiled" in case.shape
            if case.check is not None:
                case.check()

    with_threads(1, one)


def test_a_whole_row_from_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "ceilings", lambda threads: Ceilings({f"fp32/{threads}": 1e12}, {threads: 1e12}))
    made, _ = kernels_on_cpu(["sample"], [1], 5, lambda text: None)
    assert [r["variant"] for r in made] == ["kernel", "torch argmax"] * 2
    assert all(len(r["samples_s"]) == 5 and 0 < r["of_bytes_ceiling"] < 1 for r in made)


def test_pp_and_tg_of_the_executor(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = replace(SPEC, vocab=256)
    save_hf(random_weights(spec, 0), spec, tmp_path)
    assert main(["bench", "--model", str(tmp_path), "-p", "8", "-n", "3", "-r", "2", "-o", "jsonl"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["test"] for line in lines] == ["pp8", "tg3"]
    assert all(len(line["samples_tokens_per_s"]) == 2 and min(line["samples_tokens_per_s"]) > 0 for line in lines)
    assert all(line["made"]["torch"] == torch.__version__ for line in lines)


@pytest.mark.parametrize(("model", "expert_bytes", "top_k"), [("qwen3-30b-a3b", 9.44e6, 8), ("mixtral-8x7b", 352e6, 2)])
def test_fused_layers_of_large_models_are_cut_as_the_gpu_s_kernel_needs(model: str, expert_bytes: float, top_k: int) -> None:
    """Their shapes build without memory on the meta device; at batch 1 the bytes are those of the chosen experts."""
    spec = models.load(model)
    for batch in cuda.DECODE_BATCHES:
        found = cuda._moe_layer(spec, batch, torch.device("meta"))
        assert found.shape.startswith(f"{model}: {batch} tokens") and found.calls == cuda.TURNS
        if batch == 1:
            assert found.cost.bytes == pytest.approx(top_k * expert_bytes, rel=0.01)
        tiles = tiles_of(spec, batch)
        (gpu_decode if tiles.decode else gpu_grouped).check(tiles)
        body = body_of(tiles)
        assert tiles.decode == (batch <= 16) and tiles_in(body, tiles.shape) == tiles and len(program_of(body)) == (body.lane >= 0).sum()


def test_gpu_cases_compute_what_they_say_on_any_device() -> None:
    """Torch's forms run anywhere: shapes fit, and each op has its cases."""
    for op, make in cuda.cases(torch.device("cpu")).items():
        first = next(make())
        assert first.op == op and first.cost.bytes > 0
        for work in first.variants.values():
            work()
