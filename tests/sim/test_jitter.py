"""Delay ratios: the published medians and 95th percentiles, and draws that nothing else moves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sim.errors import UserError
from sim.jitter import Jitter, uniform


@pytest.mark.parametrize(("name", "median", "p95"), [("supercomputer", 1.09, 1.32), ("vm", 3.1, 11.4)])
def test_published_quantiles(name: str, median: float, p95: float) -> None:
    """FlashDMoE, Table 2."""
    drawn = Jitter.named(name).ratio(0, np.arange(8)[:, None, None], np.arange(500)[:, None], np.arange(25))
    assert drawn.shape == (8, 500, 25) and drawn.min() > 1.0
    assert np.median(drawn) == pytest.approx(median, rel=0.01)
    assert np.quantile(drawn, 0.95) == pytest.approx(p95, rel=0.02)


def test_a_draw_depends_on_its_coordinates_alone() -> None:
    jitter = Jitter.named("vm")
    few = jitter.ratio(7, np.arange(4)[:, None], 3, np.arange(10))
    many = jitter.ratio(7, np.arange(9)[:, None], 3, np.arange(30))
    assert np.array_equal(few, many[:4, :10])
    assert float(jitter.ratio(7, 2, 3, 5)) == few[2, 5]
    for other in ((8, 2, 3, 5), (7, 3, 3, 5), (7, 2, 4, 5), (7, 2, 3, 6), (7, 3, 2, 5)):
        assert float(jitter.ratio(*other)) != few[2, 5]


def test_uniform_is_even_and_neighbours_do_not_correlate() -> None:
    u = uniform(0, np.arange(200)[:, None], np.arange(500))
    counts = np.histogram(u, bins=50, range=(0, 1))[0]
    assert np.all(np.abs(counts - 2000) < 5 * np.sqrt(2000))
    for axis in (0, 1):
        a, b = np.delete(u, -1, axis).ravel(), np.delete(u, 0, axis).ravel()
        assert abs(np.corrcoef(a, b)[0, 1]) < 0.02


def test_a_golden_draw() -> None:
    """A change of the hash would change every published distribution."""
    assert uniform(1, 2, 3, 4).item() == pytest.approx(GOLDEN, abs=1e-15)


GOLDEN = 0.004961322848166805


def test_none() -> None:
    assert np.all(Jitter.named("none").ratio(0, np.arange(3), 0, 0) == 1.0)


def test_an_empirical_file(tmp_path: Path) -> None:
    path = tmp_path / "ratios.txt"
    path.write_text("# all-to-all\n1.5\n1.0  # fastest\n\n3.0\n")
    drawn = Jitter.named(str(path)).ratio(0, np.arange(2000), 0, 0)
    assert drawn.min() >= 1.0 and drawn.max() <= 3.0
    assert np.median(drawn) == pytest.approx(1.5, abs=0.05)


@pytest.mark.parametrize(
    ("text", "message"),
    [("0.9\n", "line 1: is '0.9'; a delay ratio"), ("1.0\nx\n", "line 2: is 'x'"), ("#\n", "holds no ratio"), ("inf\n", "line 1")],
)
def test_bad_files(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "ratios.txt"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        Jitter.named(str(path))


def test_bad_names() -> None:
    with pytest.raises(UserError, match="--jitter: unknown name 'vms'; did you mean 'vm'"):
        Jitter.named("vms")
    with pytest.raises(UserError, match=r"nowhere\.txt: cannot be read"):
        Jitter.named("nowhere.txt")
