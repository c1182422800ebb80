"""A fused layer on the wall clock: one task, whose tiles are the same on both clocks."""

from __future__ import annotations

import json

import numpy as np
import pytest

from exec.cli.app import main
from exec.fused import LayerBackend, tiles_in
from exec.fused_twin import twin
from exec.runtime import ThreadEngine
from sim.benchmark import Given
from sim.drive import Log, drive, replay
from sim.engines.run import SKIPPED
from sim.machines.schema import Lane
from sim.schedulers.ticket import body_of, layer_plan, tiles_of
from tests.exec.runtime.support import Profile, machine
from tests.kernels.moe import case, model_of

MODEL = model_of(32, 48, 6, 2)


@pytest.mark.parametrize("tokens", [3, 40])
def test_one_plan_on_both_clocks(tokens: int) -> None:
    """The simulated twin has the measured task's tiles, statuses included, and none of its times."""
    found = twin(MODEL, tokens, 2)
    measured, simulated = found.measured.inside, found.simulated.inside
    assert np.array_equal(measured.status, simulated.status) and measured.body.digest() == simulated.body.digest()
    assert not np.array_equal(measured.end_ps, simulated.end_ps) and found.simulated.span_ps > 0
    assert found.measured.start_ps <= measured.start_ps.min() and measured.end_ps.max() <= found.measured.end_ps
    summary = found.summary()
    assert summary["skipped"] == (measured.status == SKIPPED).sum() and summary["tasks"] == len(measured.body)
    assert sum(row["tiles"] for row in summary["tiles"]) + summary["skipped"] == (measured.body.lane >= 0).sum()
    for row in summary["tiles"]:
        assert row["measured_busy_s"] > 0 and row["simulated_busy_s"] > 0


def test_stamps_lie_within_their_task_and_the_log_replays() -> None:
    made = case(5, 32, 48, 6, 2)
    plan, log = layer_plan(MODEL, 5, 2), Log()
    lanes = machine("gpu", Lane(name="blocks", kind="compute", servers=900))
    with ThreadEngine(lanes, LayerBackend([made.layer], 1), Profile(), ()) as engine:
        drive(Given(plan), engine, log)
    run = engine.run()
    assert run.lanes == ("gpu",) and [i.task for i in run.inside] == run.number.tolist() == [0, 1]
    for i, start, end in zip(run.inside, run.start_ps, run.end_ps, strict=True):
        assert start <= i.start_ps.min() and i.end_ps.max() <= end
    replay(log, Given(plan))
    np.testing.assert_allclose(made.layer.out, made.wanted, atol=1e-5)


@pytest.mark.parametrize("tokens", [1, 3, 16, 17, 40, 70, 200])
def test_a_body_tells_how_it_cuts_the_layer(tokens: int) -> None:
    """In number and size of tiles: sizes larger than the layer are the layer's."""
    made = tiles_of(MODEL, tokens)
    found = tiles_in(body_of(made), made.shape)
    assert body_of(found).digest() == body_of(made).digest() and found.decode == made.decode and found.slots == made.slots


def test_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fused", "--tokens", "2", "--threads", "1", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["model"] == "tiny-mixtral" and found["measured_s"] > 0
    assert main(["fused", "--tokens", "2", "--threads", "1"]) == 0
    assert "makespan" in capsys.readouterr().out


def test_command_refuses_what_is_no_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fused", "--model", "mixtrl"]) == 2
    assert "mixtrl" in capsys.readouterr().err
