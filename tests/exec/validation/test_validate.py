"""validate: its figures, and that what is finished stays finished."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from exec.cli.app import main
from exec.validation import run as validation
from exec.validation.grid import Case, load_grid
from exec.validation.score import busy_errors, rank_agreement, stratum, summarize
from tests.exec import profiles

GRID = """
repeats: 2
cases:
  - {model: MODEL, scheduler: [cgopipe, flexgen], prompt: 10, gen: 4, batch: 4, microbatch: 2}
  - {model: MODEL, scheduler: resident, prompt: 8, gen: 4, batch: 4, microbatch: 4, h2d: 0}
"""


@pytest.fixture
def home(tmp_path: Path) -> Path:
    profiles.write(tmp_path)
    (tmp_path / "grid.yaml").write_text(GRID.replace("MODEL", str(profiles.model(tmp_path))))
    return tmp_path


def command(home: Path) -> list[str]:
    return ["validate", "--machine", str(home / "profile.yaml"), "--grid", str(home / "grid.yaml"), "--json"]


def test_every_case_has_both_clocks_and_the_errors_follow(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command(home)) == 0
    result = json.loads(capsys.readouterr().out)
    assert [c["scheduler"] for c in result["cases"]] == ["cgopipe", "flexgen", "resident"]
    for c in result["cases"]:
        assert c["error"] == pytest.approx(c["simulated_s"] / c["measured_s"] - 1)
        assert c["naive_error"] == pytest.approx(c["naive_s"] / c["measured_s"] - 1)
        assert c["repeat_spread"] >= 0 and c["stratum"] in {"link", "compute", "two-lanes"}
    errors = sorted(abs(c["error"]) for c in result["cases"])
    assert result["median_abs_error"]["overall"] == pytest.approx(errors[1])
    assert [c["clock"] for c in result["cases"]] == ["emulated", "emulated", "measured"]  # resident uses no link at all
    assert not list(home.glob("*.jsonl"))


def test_an_interrupted_validation_goes_on_where_it_stopped(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    really, ran = validation._one, []

    def interrupted(case, *args):
        ran.append(case.scheduler)
        if len(ran) == 2:
            raise KeyboardInterrupt
        return really(case, *args)

    monkeypatch.setattr(validation, "_one", interrupted)
    assert main(command(home)) == 1
    assert "1 of 3 cases are kept" in capsys.readouterr().err
    (kept,) = home.glob("*.jsonl")
    kept.write_text(kept.read_text() + '{"machine": "cut o')  # a line that was being written
    assert main(command(home)) == 0
    assert ran == ["cgopipe", "flexgen", "flexgen", "resident"]
    assert len(json.loads(capsys.readouterr().out)["cases"]) == 3


def test_results_of_another_profile_are_not_taken(home: Path) -> None:
    machine = profiles.machine()
    finished = validation.Finished(home / "kept.jsonl", machine)
    case = Case(scheduler="cgopipe", prompt=8, gen=4, batch=4, microbatch=2)
    finished.add(case, 3, {"error": 0.5})
    assert validation.Finished(home / "kept.jsonl", machine).get(case, 3) == {"error": 0.5}
    assert validation.Finished(home / "kept.jsonl", machine).get(case, 2) is None
    other = machine.model_copy(update={"description": "elsewhere"})
    assert validation.Finished(home / "kept.jsonl", other).get(case, 3) is None


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("cases: []", "cases"),
        ("cases: [{scheduler: cgopipe, prompt: 8, gen: 4, batch: 4, microbatch: 2, colour: red}]", "colour"),
        ("cases: [{scheduler: cgopipe, prompt: -8, gen: 4, batch: 4, microbatch: 2}]", "prompt"),
        ("cases: [{scheduler: cgopype, prompt: 8, gen: 4, batch: 4, microbatch: 2}]", "did you mean 'cgopipe'"),
        ("cases: [{scheduler: cgopipe, prompt: 8, gen: 4, batch: 100000, microbatch: 2}]", "bytes are missing"),
        ("cases: [unclosed", "grid.yaml"),
    ],
)
def test_bad_grids(home: Path, text: str, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    (home / "grid.yaml").write_text(text)
    assert main(command(home)) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert says in error and "grid" in error


def test_the_default_grid_has_every_stratum_in_view() -> None:
    repeats, cases = load_grid(None)
    assert repeats >= 2 and len(cases) >= 24
    assert any(c.h2d == 0 for c in cases) and len({c.scheduler for c in cases}) == 6
    assert len(set(cases)) == len(cases)


def test_what_binds() -> None:
    assert stratum({"gpu": 0.9, "h2d": 0.61}) == "two-lanes"
    assert stratum({"gpu": 0.5, "h2d": 0.95}) == "link"
    assert stratum({"gpu": 0.7, "h2d": 0.3, "cpu": 0.59}) == "compute"


def test_lanes_that_do_next_to_nothing_have_no_busy_error() -> None:
    assert busy_errors({"gpu": 1.1, "d2h": 0.5}, {"gpu": 1.0, "d2h": 0.01}, 1.0) == {"gpu": pytest.approx(0.1)}


def test_only_schedulers_of_one_configuration_that_differ_are_ranked() -> None:
    a, b, c = (Case(scheduler=s, prompt=8, gen=4, batch=4, microbatch=2) for s in ("cgopipe", "flexgen", "deepspeed"))
    elsewhere = Case(scheduler="flexgen", prompt=9, gen=4, batch=4, microbatch=2)
    found = rank_agreement([(a, 1.0, 1.0), (b, 0.9, 1.2), (c, 0.8, 1.03), (elsewhere, 9.0, 0.1)])
    assert (found["pairs"], found["agreed"]) == (2, 1) and found["wrong"] == ["cgopipe against flexgen"]


def test_summary_by_stratum() -> None:
    def row(error: float, where: str) -> dict:
        return {"error": error, "naive_error": -0.2, "stratum": where, "repeat_spread": 0.01, "lane_busy_error": {"gpu": error}}

    result = summarize([row(0.02, "link"), row(-0.04, "link"), row(0.10, "compute")])
    assert result["median_abs_error"] == {"overall": 0.04, "compute": 0.10, "link": pytest.approx(0.03)}
    assert result["median_naive_error"]["overall"] == 0.2 and result["count"] == {"overall": 3, "compute": 1, "link": 2}
