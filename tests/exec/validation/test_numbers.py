"""validate --ranks N,M: what is wrong for any number is told before the first measurement, and what was found is not lost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from exec.calibration.profile import write as write_profile
from exec.cli.app import main
from exec.cluster.losses import RankLost
from exec.validation import placed, ranks
from tests.exec.validation.test_placed import profile

LAYERS = "cases: [{scheduler: bulk-sync, tokens: 8, hidden: 64, ffn: 64, experts: 4, top_k: 2}]"
SERVED = "cases: [{gen: 2, kill: 2@0}]"
KINDS = [(ranks, (), LAYERS), (placed, ("--placement", "eplb"), SERVED)]


def validate(tmp_path: Path, grid: str, numbers: str, *options: str) -> int:
    (tmp_path / "grid.yaml").write_text(grid)
    return main(["validate", "--ranks", numbers, "--grid", str(tmp_path / "grid.yaml"), *options])


@pytest.fixture(params=KINDS, ids=["layers", "placed"])
def kind(request: pytest.FixtureRequest) -> Any:
    return request.param


def test_a_case_that_the_last_number_cannot_run_is_told_at_once(
    kind: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """3 ranks cannot share 4 experts; 2 ranks have no rank 2."""
    where, options, grid = kind
    measured: list[int] = []
    monkeypatch.setattr(where, "validate", lambda number, *_: measured.append(number))
    assert validate(tmp_path, grid, "4,3" if where is ranks else "4,2", *options) == 2
    assert measured == []
    assert "--grid: case 1" in capsys.readouterr().err


def test_a_profile_is_for_all_numbers_before_the_first_measurement(
    kind: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    where, options, grid = kind
    measured: list[int] = []
    monkeypatch.setattr(where, "validate", lambda number, *_: measured.append(number))
    write_profile(profile(), tmp_path / "two.yaml")
    assert validate(tmp_path, grid.replace("2@0", "1@0"), "2,4", *options, "--machine", str(tmp_path / "two.yaml")) == 2
    assert measured == []
    assert "is no profile of 4 ranks" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("lost", [4, 2])
def test_what_was_found_before_a_loss_is_printed(
    lost: int, kind: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    where, options, grid = kind

    def measured(number: int, *_: Any) -> dict[str, Any]:
        if number == lost:
            raise RankLost(1, "was killed by SIGKILL")
        return {"ranks": number}

    monkeypatch.setattr(where, "validate", measured)
    grid = grid.replace("2@0", "1@0")
    assert validate(tmp_path, grid, "4,2", *options, "--json") == 1
    out, err = capsys.readouterr()
    assert err.splitlines()[-1].startswith("error: rank 1 was lost: was killed by SIGKILL")
    assert [one["ranks"] for one in (json.loads(out)["ranks"] if out else [])] == ([4] if lost == 2 else [])
