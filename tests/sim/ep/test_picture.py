"""The picture of a step: its curves, and that it can be written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sim.ep.picture import computing, sending, write_picture
from sim.ep.study import Outcome, study
from sim.jitter import Jitter
from sim.tasks import PS_PER_S
from tests.sim.ep.test_study import op_of, prepared


@pytest.fixture(scope="module")
def outcomes() -> list[Outcome]:
    return [study(prepared(name, (512, 512)), Jitter.named("none")) for name in ("graph-replayed", "flashdmoe")]


def test_the_areas_are_the_work(outcomes: list[Outcome]) -> None:
    """Over the whole step: seconds in which all blocks compute, and bytes over the link's 450 GB/s."""
    for outcome in outcomes:
        plan, run = outcome.priced.plan, outcome.run
        edges = np.linspace(0, run.makespan_ps, 51)
        width = run.makespan_ps / 50
        spans, op = run.end_ps - run.start_ps, op_of(plan)
        tiles = (plan.rank == 0) & np.isin(op, ("gate_tile", "gemm0", "gemm1", "combine"))
        kernels = (plan.rank == 0) & np.isin(op, ("gate", "permute", "experts", "unpermute"))
        busy = spans[kernels].sum() + spans[tiles].sum() / 264
        assert computing(outcome, 0, edges).sum() * width == pytest.approx(busy)
        moved = np.array([w.bytes for w in plan.works])[plan.work]
        sent = sum(moved[i] for i in np.flatnonzero(moved) if _from_rank_0(plan.lanes[plan.lane[i]], plan.works[plan.work[i]].variant))
        assert sending(outcome, 0, edges).sum() * width / PS_PER_S * 450e9 == pytest.approx(sent)


def _from_rank_0(lane: str, variant: str) -> bool:
    return lane == "put.0.1" or variant == "0.1"


@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_a_picture_is_written(outcomes: list[Outcome], tmp_path: Path, suffix: str) -> None:
    write_picture(tmp_path / f"p{suffix}", outcomes)
    found = (tmp_path / f"p{suffix}").read_bytes()
    assert found.startswith(b"\x89PNG" if suffix == ".png" else b"<?xml")
