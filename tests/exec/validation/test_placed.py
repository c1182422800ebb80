"""validate --placement: a case that shifts and one that loses a rank, on two real processes and on both clocks."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from exec.calibration import reference
from exec.cli.app import main
from exec.cluster.calibrate import OPS, WORDS
from exec.cluster.machine import Place, of_ranks
from exec.cluster.phases import BEFORE, MOVING, REBALANCED, Phase
from exec.cluster.recovering import Kill
from exec.cluster.traffic import Traffic
from exec.validation import placed
from sim.errors import UserError
from sim.machines.schema import Machine, OpRate, Resource
from tests.exec import profiles


def profile() -> Machine:
    """Invented."""

    def row(op: str, lane: str) -> OpRate:
        return OpRate(op=op, lane=lane, curve=((1.0, 1e-6), (1e6, 1e-3)), source="test")

    kernels = [row(op, "gpu") for op in ("rms_norm", "router", "dispatch", "combine", "expert_ffn", "expert_columns")]
    tasks = [OpRate(op=f"task.{op}", lane="gpu", source="test") for op in OPS]
    passing = [row("*", "host"), row("*", "comm"), row("load", "host"), row("put", "put.local"), *(row(op, lane) for op, lane in WORDS)]
    cores = Resource(kind="cores", capacity=2, source="test")
    return of_ranks("test", [Place(0, 0)] * 2, 1, cores, {}, [*kernels, *tasks, *passing])


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(profiles.model(tmp_path_factory.mktemp("model")))


def test_every_run_is_answered_on_both_clocks_and_what_was_disturbed_is_told(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference, "PATIENCE_S", 0.0)  # however busy the computer is
    sizes = dict(model=model, batch=8, gen=4, plan_steps=1, skew=1.5, hysteresis=0.0)
    cases = [Traffic(requests=24, shift=8, **sizes), Traffic(requests=16, kill="1@3", **sizes)]
    found = placed.validate(2, "eplb", cases, 2, profile())
    shifted, drill = found["cases"]
    assert (shifted["runs"], drill["runs"]) == (2, 1)
    assert (shifted["answered"], drill["answered"]) == (48, 16)
    assert all(c["lost"] == c["duplicated"] == 0 and c["max_relative_difference"] < 1e-5 for c in found["cases"])
    assert drill["lost_ranks"] == drill["joined_ranks"] == [1]
    phases = {p["phase"]: p for p in shifted["phases"]}
    for name in (BEFORE, MOVING, REBALANCED):
        row = phases[name]
        assert row["error"] == pytest.approx(row["simulated_rows_per_s"] / row["measured_rows_per_s"] - 1)
    plans = shifted["plans"] - 2  # the first of each run finds caches cold
    assert sum(p["plans"] + (p["disturbed"] or 0) for p in shifted["phases"]) <= plans
    everything = [p for c in found["cases"] for p in c["phases"]]
    assert found["runs"] == sum(p["plans"] + (p["disturbed"] or 0) for p in everything)
    assert found["disturbed"] == sum(p["disturbed"] or 0 for p in everything)


@dataclass
class Named:
    """Stands for a serving, and has no requests."""

    name: str
    lengths: tuple[int, ...] = ()


@pytest.mark.parametrize(("spread", "turns"), [(0.001, 2), (0.3, 5)])
def test_rounds_go_on_until_throughput_is_steady_and_ranks_are_lost_after_the_last(
    spread: float, turns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng, order = np.random.default_rng(3), list[str]()

    def serve(cluster: object, serving: Named, profile: object, kill: object, watch: object) -> None:
        order.append(serving.name)

    def rates(serving: object, runs: list[object], at_best_s: float) -> dict[str, Phase]:
        some = [tuple(1000 * (1 + spread * rng.standard_normal(6 * len(runs)))) for _ in range(2)]
        return {BEFORE: Phase(some[0]), REBALANCED: Phase(some[1]), MOVING: Phase((1.0, 9.0))}

    monkeypatch.setattr(placed, "serve", serve)
    monkeypatch.setattr(placed, "phases", rates)
    jobs: list[Any] = [(Named("shifts"), None), (Named("loses"), Kill(1, 1)), (Named("shifts too"), None)]
    served, probed, took = placed._rounds(None, jobs, 5, False, reference.Reference(), lambda text: None)  # type: ignore[arg-type]
    assert took == turns and not probed
    assert [len(runs) for runs in served] == [turns, 1, turns]
    assert order == ["shifts", "shifts too"] * turns + ["loses"]


def test_the_default_grid_shifts_moves_and_loses_a_rank_and_never_ends_in_the_middle_of_a_phase() -> None:
    rounds, cases = placed.load_grid(None)
    assert rounds >= 2 and [bool(case.kill) for case in cases] == [False, True]
    for case in cases:
        serving = case.serving(4, "eplb")
        assert serving.shift < len(serving.lengths) and serving.shift % (4 * serving.settings.seats) == 0
        assert case.gen % serving.settings.steps == 0 and math.isfinite(serving.rebalancer.hysteresis)


@pytest.mark.parametrize(("text", "says"), [
    ("cases: [{batch: 0}]", "batch"),
    ("cases: [{requests: 8, colour: red}]", "colour"),
    ("cases: [{}, {kill: 7@1}]", "--grid: case 2: --kill: is '7@1'"),
    ("cases: [{kill: 1@64}]", "--grid: case 1: --kill: is '1@64', and the run has 64 steps"),
    ("cases: [{model: no-such-model}]", "--grid: case 1: --model"),
])  # fmt: skip
def test_bad_grids(text: str, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "grid.yaml").write_text(text)
    assert main(["validate", "--ranks", "2", "--placement", "eplb", "--grid", str(tmp_path / "grid.yaml")]) == 2
    assert says in " ".join(capsys.readouterr().err.split())


def test_without_a_number_of_ranks_nothing_is_served(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", "--placement", "eplb"]) == 2
    assert "--placement: needs ranks that this command starts" in capsys.readouterr().err
    with pytest.raises(UserError, match="unknown name 'eplp'"):
        Traffic().serving(2, "eplp")
