from __future__ import annotations

import pytest

from sim.report.__main__ import main
from tests.sim.report_runs import cgopipe_like
from traces.timeline import write_timeline


@pytest.fixture
def kept(tmp_path):
    for name, seed in (("sim", None), ("exec", 1)):
        write_timeline(tmp_path / f"{name}.parquet", cgopipe_like(3, 2, 2, seed=seed)[0])
    return tmp_path


def test_page_and_picture_of_kept_timelines(kept):
    both = [str(kept / "exec.parquet"), str(kept / "sim.parquet")]
    assert main([*both, "-o", str(kept / "r.html"), "--title", "Mine"]) == 0
    assert "<h1>Mine</h1>" in (kept / "r.html").read_text()
    assert main([*both, "-o", str(kept / "p.svg"), "--step", "2"]) == 0
    assert (kept / "p.svg").read_text().index("Simulated: ") < (kept / "p.svg").read_text().index("Measured: ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sim.parquet", "sim.parquet", "-o", "r.html"], "is a second simulated timeline"),
        (["sim.parquet", "-o", "r.docx"], "must end in one of .html, .svg, .png"),
        (["sim.parquet", "-o", "p.svg", "--step", "77"], "step=77: the Simulated timeline has no such step"),
        (["none.parquet", "-o", "r.html"], "none.parquet: no such file"),
    ],
)
def test_bad_input_ends_with_2_and_one_line(kept, capsys, monkeypatch, arguments, message):
    monkeypatch.chdir(kept)
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1
    assert not list(kept.glob("[rp].*"))
