"""FlashDMoE's figures: the quick ones held to their acceptance, scores by hand, the page."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from sim.cli.app import main
from sim.reproduce.flashdmoe import cells, low_latency, page, profile, published, score
from sim.reproduce.flashdmoe.calibration import CONSTANTS, EXCHANGE_S, PAPER
from sim.reproduce.flashdmoe.reproduction import Reproduction

ROW = {"tensor_busy": 0.1, "hbm_busy": 0.2, "comm_hidden": 0.3, "launches": 1, "tasks": 10}


def bar(count: int, system: str, tokens: int, ms: float) -> cells.Bar:
    return cells.Bar(count, system, tokens, published.BARS_MS[count][system][tokens], {**ROW, "latency_s": {"median": ms / 1e3}})


@pytest.mark.parametrize("count", [4, 8])
@pytest.mark.parametrize("system", ["Comet", "FasterMoE", "Megatron-CUTLASS", "Megatron-TE"])
def test_baselines_lie_within_15_percent_of_the_bars(count: int, system: str) -> None:
    for tokens, ms in published.BARS_MS[count].get(system, {}).items():
        found = cells.bar_row(PAPER[system], count, cells.LAYER, tokens)["latency_s"]["median"] * 1e3
        if (count, system, tokens) != published.OUTLIER:
            assert found == pytest.approx(ms, rel=0.15)


def test_flashmoe_at_4k_tokens() -> None:
    for count in (4, 8):
        found = cells.bar_row(PAPER["FlashMoE"], count, cells.LAYER, 4096)["latency_s"]["median"] * 1e3
        assert found == pytest.approx(2.1, rel=0.15)


@pytest.mark.parametrize("count", [4, 8])
def test_weak_scaling_within_5_points(count: int) -> None:
    for system in ("FasterMoE", "Megatron-TE"):
        two, many = (cells.bar_row(PAPER[system], n, cells.LAYER, 8192)["latency_s"]["median"] for n in (2, count))
        assert two / many == pytest.approx(published.WEAK_SCALING[system][count], abs=0.05)


def test_exchanges_grow_with_the_experts_of_a_rank() -> None:
    few, many = (cells.bar_row(PAPER["FasterMoE"], 8, replace(cells.LAYER, experts=e), 4096)["latency_s"]["median"] for e in (8, 128))
    # 15 more experts of a rank, two chunks, dispatch and combine.
    assert many - few == pytest.approx(15 * 4 * EXCHANGE_S, rel=0.05)


def test_not_more_is_fitted_than_allowed() -> None:
    scopes = [c.scope for c in CONSTANTS]
    assert scopes.count("shared") <= 3
    assert len({c.name.partition(":")[0] for c in CONSTANTS if c.scope == "one system"}) == scopes.count("one system")


def test_the_rerun_with_nothing_fitted() -> None:
    assert all(abs(x.error) < 0.15 for x in cells.rerun())


@pytest.mark.parametrize("row", published.LOW_LATENCY[:4])
def test_low_latency_by_one_set_of_constants(row: published.LowLatency) -> None:
    costs = low_latency._costs(row.ranks)
    assert low_latency.exchange_us(costs, "dispatch") == pytest.approx(row.dispatch_us, rel=0.15)
    assert low_latency.exchange_us(costs, "combine") == pytest.approx(row.combine_us, rel=0.15)


def test_share_hidden_in_the_profile() -> None:
    assert profile.simulate().hidden == pytest.approx(published.HIDDEN_IN_PROFILE, abs=0.05)


def test_scores() -> None:
    bars = [bar(4, "FlashMoE", 8192, 3.4), bar(4, "Megatron-TE", 8192, 3.0), bar(4, "Megatron-CUTLASS", 8192, 1.0)]
    bars += [bar(2, "FlashMoE", 8192, 1.7), bar(8, "FlashMoE", 8192, 6.8)]
    assert score.within(bars)["not"] == ["4 GPUs Megatron-TE 8192", "4 GPUs Megatron-CUTLASS 8192", "8 GPUs FlashMoE 8192"]
    assert score.order(bars) == {"pairs": 1, "right": 0, "wrong": ["4 GPUs 8192: FlashMoE before Megatron-TE"]}
    assert [(w["gpus"], w["simulated"]) for w in score.weak_scaling(bars)] == [(4, pytest.approx(0.5)), (8, pytest.approx(0.25))]


def test_the_page_has_every_table(tmp_path: Path) -> None:
    bars = [bar(n, s, t, ms * 1.01) for n, by in published.BARS_MS.items() for s, sizes in by.items() for t, ms in sizes.items()]
    contests = [cells.Contest(128, "vm", dict.fromkeys(cells.CONTESTANTS, 1.0))]
    exchanged = [low_latency.Exchanged(r.ranks, w, 100.0, 99.0) for r in published.LOW_LATENCY for w in ("dispatch", "combine")]
    swept = {"FlashMoE": (7.0,) * 5, "FasterMoE": (35.0, 36.0, 37.0, 38.0, 42.0)}
    sweeps = [cells.Sweep(8, s, dict(zip(cells.SWEEP_EXPERTS, ms, strict=True))) for s, ms in swept.items()]
    rerun = [cells.Rerun("SGLang", "x", 4.9, 4.8)]
    found = Reproduction("paper", bars, sweeps, rerun, contests, exchanged, profile.Profile(129, 113, 0.96), 1.0)
    written = page.write(tmp_path, found)
    text = written[0].read_text()
    assert "27 of 27 bars" in text and "| 8 | Megatron-TE | 16K | 36.9 | 37.27 | +1.0 % |" in text and text.count("\n| :--") == 7
    assert "6.0 x, over FasterMoE" in text and "| 8 | FasterMoE | 35.00 | 36.00 | 37.00 | 38.00 | 42.00 | +20.0 % |" in text
    assert all(p.stat().st_size > 1000 for p in written)


def test_a_calibration_that_does_not_exist(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reproduce", "flashdmoe", "--calibration", "papers"]) == 2
    assert "--calibration: unknown name 'papers'; did you mean 'paper'" in capsys.readouterr().err
