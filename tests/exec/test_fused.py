"""A fused layer on the wall clock: the scheduler's tasks, all of them, on both clocks."""

from __future__ import annotations

import json

import numpy as np
import pytest

from exec.cli.app import main
from exec.fused import LaunchEngine, on_host
from exec.fused_twin import twin
from sim.body import TileCosts, with_blocks
from sim.drive import Log, drive, replay
from sim.engines.run import SKIPPED
from sim.events import Request
from sim.machines import load
from sim.schedulers.policy import Policy
from sim.schedulers.ticket import Ticket
from tests.kernels.moe import case, model_of

MODEL = model_of(32, 48, 6, 2)


@pytest.mark.parametrize("tokens", [3, 40])
def test_one_scheduler_on_both_clocks(tokens: int) -> None:
    """The simulated twin has the measured run's tasks, statuses included, and none of its times."""
    found = twin(MODEL, tokens, 2)
    measured, simulated = found.measured, found.simulated
    assert np.array_equal(measured.number, simulated.number) and np.array_equal(measured.status, simulated.status)
    assert measured.sources[0].digest() == simulated.sources[0].digest()
    assert not np.array_equal(measured.end_ps, simulated.end_ps) and simulated.makespan_ps > 0
    summary = found.summary()
    assert summary["skipped"] == (measured.status == SKIPPED).sum() and summary["tasks"] == len(measured)
    assert sum(row["tiles"] for row in summary["tiles"]) + summary["skipped"] == (measured.lane >= 0).sum()
    for row in summary["tiles"]:
        assert row["measured_busy_s"] > 0 and row["simulated_busy_s"] > 0


def test_the_log_replays() -> None:
    made = case(5, 32, 48, 6, 2)
    requests = [Request(i, 1, 1) for i in range(5)]
    costs, log = TileCosts(with_blocks(load("h200"), 4), made.tiles, 4), Log()
    drive(Ticket(MODEL, Policy(batch=1, microbatch=1)), LaunchEngine(on_host(made.tiles, made.layer, 1), requests, costs), log)
    replay(log, Ticket(MODEL, Policy(batch=1, microbatch=1)))
    assert [type(event).__name__ for _, event, _ in log.entries] == ["Started", *["Arrived"] * 5]
    np.testing.assert_allclose(made.layer.out, made.wanted, atol=1e-5)


def test_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fused", "--tokens", "2", "--threads", "1", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["model"] == "tiny-mixtral" and found["measured_s"] > 0
    assert main(["fused", "--tokens", "2", "--threads", "1"]) == 0
    assert "makespan" in capsys.readouterr().out


def test_command_refuses_what_is_no_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fused", "--model", "mixtrl"]) == 2
    assert "mixtrl" in capsys.readouterr().err
