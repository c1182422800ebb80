"""validate --ranks: how many rounds it takes, and whose medians it trusts."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from exec.cluster.observe import Observed
from exec.cluster.watch import Sample
from exec.validation import ranks
from exec.validation.score import STEADY, standard_error

ROUNDS = 6


def _session(monkeypatch: pytest.MonkeyPatch, deviation: float, setups: int = 3) -> list[Observed]:
    """What rounds of setups show whose runs vary by this deviation, three runs a turn, on a computer that nothing disturbs."""
    rng = np.random.default_rng(7)

    def observed(*_: Any) -> Observed:
        samples = (Sample(float(np.exp(deviation * rng.standard_normal())), np.zeros(0), 1.0, 0.0, 1.0) for _ in range(ranks.RUNS))
        return Observed(None, None, {}, tuple(samples))  # type: ignore[arg-type]

    setup = SimpleNamespace(scheduler="bulk-sync", order=SimpleNamespace(tokens=(8,), model=SimpleNamespace(name="moe")))
    monkeypatch.setattr(ranks, "observe", observed)
    monkeypatch.setattr(ranks, "Reference", lambda: SimpleNamespace(best_s=1.0))
    cases, probes = ranks._rounds(None, [setup] * setups, [setup], ROUNDS, lambda text: None)  # type: ignore[arg-type,list-item]
    assert len(probes) == 1
    return cases


def test_a_calm_session_ends_when_all_medians_are_steady(monkeypatch: pytest.MonkeyPatch) -> None:
    cases = _session(monkeypatch, deviation=0.01)
    assert {len(seen.samples) for seen in cases} == {2 * ranks.RUNS}  # one round alone does not tell the spread


def test_a_noisy_session_takes_all_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    cases = _session(monkeypatch, deviation=0.3)
    assert {len(seen.samples) for seen in cases} == {ROUNDS * ranks.RUNS}


def test_the_standard_error_is_that_of_medians_of_fresh_samples() -> None:
    rng = np.random.default_rng(3)
    samples = 1.0 + 0.05 * rng.standard_normal((4000, 15))
    told = np.median([standard_error(one) for one in samples])
    assert told == pytest.approx(np.median(samples, axis=1).std(), rel=0.1)
    assert standard_error(samples[0, :3]) > STEADY  # three do not tell
