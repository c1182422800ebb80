"""The soak's judgement of its samples, and a short soak."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks import soak

HOUR = 3600


def samples(
    rss_per_hour: float = 0.0, threads_after: int = 8, slowdown: float = 0.0, slower_steps: float = 0.0, seed: int = 0
) -> list[dict[str, float]]:
    """An hour of samples with noise: 1 GB resident, 20 tokens/s."""
    rng = np.random.default_rng(seed)
    rows, tokens = [], 0.0
    for k in range(0, HOUR + 1, 10):
        tokens += 10 * 20 * (1 - slowdown * k / HOUR) + rng.normal(0, 20) * (k > 0)
        rows.append({
            "t_s": float(k), "tokens": tokens, "tasks": tokens * 3, "step_s": 1.5 * (1 + slower_steps * k / HOUR) + rng.normal(0, 0.01),
            "rss_bytes": 1e9 + rss_per_hour * k / HOUR + rng.normal(0, 2e5),
            "threads": 8 if k < HOUR / 2 else threads_after, "open_files": 7, "cpu_s": k / 10,
        })  # fmt: skip
    return rows


def test_an_even_hour_is_well() -> None:
    found = soak.verdict(samples(), 300, 300)
    assert all(found["well"].values())
    assert found["cores_busy"] == pytest.approx(0.1)
    assert len(found["windows"]) == 11


@pytest.mark.parametrize(("wrong", "what"), [
    ({"rss_per_hour": 2e7}, "memory"), ({"threads_after": 9}, "threads"), ({"slowdown": 0.3}, "throughput"),
    ({"slower_steps": 0.1}, "decode_step"),
])  # fmt: skip
def test_what_grows_or_slows_is_seen(wrong: dict, what: str) -> None:
    found = soak.verdict(samples(**wrong), 300, 300)
    assert [name for name, well in found["well"].items() if not well] == [what]


def test_a_slope_comes_with_its_interval() -> None:
    found = soak.slope(samples(rss_per_hour=5e7), "rss_bytes")
    assert found["low"] < 5e7 < found["high"]
    assert found["high"] - found["low"] < 1e7


def test_requests_keep_arriving_behind_a_full_batch() -> None:
    requests, lengths = soak.requests_for(600)
    at_once = [r for r in requests if r.arrival_ps == 0]
    assert len(at_once) == soak.POLICY.batch + 1
    assert requests[-1].arrival_ps > 590 * soak.PS_PER_S
    assert {r.output_tokens for r in requests} == {None}
    assert len(set(lengths)) > 10


def test_a_few_seconds(tmp_path: Path) -> None:
    """The engine hands out its timeline in pieces: every token is counted, and nothing is kept."""
    rows = soak.soak(7.0, 0.5, tmp_path / "samples.csv")
    assert rows[-1]["tasks"] > 0
    assert [r["tokens"] for r in rows] == sorted(r["tokens"] for r in rows)
    assert np.nanmedian([r["step_s"] for r in rows]) > 0
    assert len((tmp_path / "samples.csv").read_text().splitlines()) == len(rows) + 1
