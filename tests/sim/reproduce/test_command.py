"""`reproduce moe-lightning`: the page, the JSON, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sim.cli.app import main
from sim.reproduce import pages
from sim.reproduce.moe_lightning import published, refined, reproduction
from sim.reproduce.moe_lightning.cells import cells, run


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two cells and one row of Table 5 in place of all; no search."""
    wanted = {(published.DEEPSPEED, "S1", 32), (published.PADDED, "S1", 32)}
    chosen = [c for c in cells() if (c.system, c.setting, c.gen) in wanted]
    rows = [(name, c) for name, c in reproduction.ablation.table_5() if c.system == published.PADDED]
    monkeypatch.setattr(reproduction, "cells", lambda: iter(chosen))
    monkeypatch.setattr(reproduction.ablation, "table_5", lambda: iter(rows))
    monkeypatch.setattr(reproduction, "refine", lambda s: refined.Refined(s, s.cell.job().policy, 20.0, 21.0, "decode: lane pin"))


@pytest.mark.usefixtures("few")
def test_json_and_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reproduce", "moe-lightning", "--json", "-o", str(tmp_path / "new")]) == 0
    captured = capsys.readouterr()
    found: dict[str, Any] = json.loads(captured.out)
    assert "Fig. 7: S1, DeepSpeed, gen 32" in captured.err
    assert [c["system"] for c in found["cells"]] == [published.DEEPSPEED, published.PADDED]
    for cell in found["cells"]:
        assert cell["error"] == pytest.approx(cell["simulated_tokens_per_s"] / cell["published_tokens_per_s"] - 1)
        assert (cell["setting"], cell["workload"], cell["gen"], cell["fitted"]) == ("S1", "mtbench", 32, False)
    assert found["fitted"]["cells"] == 0 and found["fitted"]["of"] == 2
    assert found["table_5"][0]["published_tokens_per_s"] == 30.12
    assert len(found["fig_9"]["points"]) == 44 and len(found["fig_10"]["128"]["points"]) == 50
    assert found["refined"][0]["gain"] == pytest.approx(20.0 / found["cells"][1]["simulated_tokens_per_s"] - 1)
    written = sorted(p.name for p in (tmp_path / "new").iterdir())
    assert written == sorted(["moe-lightning.md", *(f"moe-lightning-{n}.png" for n in ("throughput", "parity", "fig-9", "fig-10"))])
    page = (tmp_path / "new" / "moe-lightning.md").read_text()
    assert all(f"]({name})" in page for name in written if name.endswith(".png"))
    assert "| S1 | DeepSpeed | 32 |" in page and "0 of 2 cells" in page


@pytest.mark.usefixtures("few")
def test_tables_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reproduce", "moe-lightning"]) == 0
    out = capsys.readouterr().out
    assert "Fig. 7: tokens/s" in out and "mean absolute error" in out and "predicted" in out


def test_a_file_in_place_of_the_directory_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "page"
    target.write_text("mine")
    assert main(["reproduce", "moe-lightning", "-o", str(target)]) == 2
    assert "is a file; a directory" in capsys.readouterr().err
    assert target.read_text() == "mine"


def test_a_row_of_table_5_that_is_a_cell_is_run_once(few: None, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = [c for c in cells() if (c.system, c.setting, c.gen) == (published.PADDED, "S1", 128)]
    ran = []
    monkeypatch.setattr(reproduction, "cells", lambda: iter(chosen))
    monkeypatch.setattr(reproduction, "run", lambda c: ran.append(c) or run(c))
    found = reproduction.reproduce()
    assert ran == chosen
    assert found.table_5[0][1].tokens_per_s == found.cells[0].tokens_per_s
    assert found.table_5[0][1].cell.tokens_per_s == 30.12


def test_the_refined_policy_beats_the_published_one() -> None:
    (cell,) = (c for c in cells() if (c.system, c.setting, c.gen) == (published.PADDED, "S1", 32))
    best = refined.refine(run(cell))
    assert best.gain > 0.1
    assert best.tokens_per_s <= best.bound * (1 + 1e-9)
    assert best.policy.padded


def test_tables() -> None:
    assert pages.table(("a", "b"), [("x", 1)]) == "| a | b |\n| :-- | --: |\n| x | 1 |\n"
    assert (pages.signed(0.0421), pages.percent(0.5), pages.percent(None)) == ("+4.2 %", "50.0 %", "–")
