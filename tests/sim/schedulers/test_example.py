"""The worked example of docs/write-a-scheduler.md."""

from __future__ import annotations

from pathlib import Path

from sim.schedulers import registry
from sim.testing import check

ROOT = Path(__file__).parents[3]
EXAMPLE = ROOT / "examples" / "half_layers.py"


def test_the_example_passes_the_battery() -> None:
    assert [v for v in check(registry.load(f"{EXAMPLE}:HalfLayers")) if not v.passed] == []


def test_the_example_is_short() -> None:
    assert len(EXAMPLE.read_text().splitlines()) < 60


def test_the_page_shows_what_the_example_says() -> None:
    page = (ROOT / "docs" / "write-a-scheduler.md").read_text()
    code = EXAMPLE.read_text()
    shown = page.split("```python")[1].split("```")[0]
    for line in shown.splitlines():
        assert line.split("#")[0].strip() in code or line.strip() == "..."
