"""When a shared computer counts as calm, and what is taken where it never is."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from exec.calibration import reference
from exec.calibration.reference import Reference


def test_a_run_waits_until_the_computer_is_as_quick_as_at_its_best(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([1.0] * 21 + [2.0, 2.0, 1.1, 1.1])
    monkeypatch.setattr(Reference, "_once", lambda _: next(times))
    monkeypatch.setattr(reference, "PATIENCE_S", 3600.0)
    assert Reference().calm_s() == 1.1
    assert next(times, None) is None


def test_a_computer_that_stays_slow_is_not_waited_for_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([1.0] * 21 + [2.0] * 2)
    monkeypatch.setattr(Reference, "_once", lambda _: next(times))
    monkeypatch.setattr(reference, "PATIENCE_S", 0.0)
    assert Reference().calm_s() == 2.0


@pytest.mark.parametrize(("after", "taken"), [((1.1,), 0), ((2.0, 1.1), 1), ((2.0, 3.0), 0), ((3.0, 2.0), 1)])
def test_of_disturbed_runs_the_calmest_is_taken_and_a_calm_one_at_once(
    monkeypatch: pytest.MonkeyPatch, after: tuple[float, ...], taken: int
) -> None:
    """after: what the reference takes after each run; before each all is calm."""

    def times() -> Iterator[float]:
        yield from [1.0] * 21
        for seconds in after:
            yield from (1.0, 1.0, seconds, seconds)

    left, runs = times(), iter(range(9))
    monkeypatch.setattr(Reference, "_once", lambda _: next(left))
    assert Reference().calmly(lambda: next(runs)) == taken
    assert next(runs) == len(after) and next(left, None) is None
