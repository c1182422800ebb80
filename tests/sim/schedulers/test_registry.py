"""Schedulers by name and by file; lanes that a machine lacks."""

from __future__ import annotations

from pathlib import Path

import pytest

from sim import machines
from sim.errors import UserError
from sim.schedulers import registry
from sim.schedulers.base import Scheduler


def test_every_name_loads() -> None:
    assert registry.names() == ("cgopipe", "fastdecode", "flexgen-c", "flexgen", "deepspeed", "resident", "ticket")
    assert all(issubclass(registry.load(name), Scheduler) for name in registry.names())


def test_an_unknown_name_gets_the_nearest() -> None:
    with pytest.raises(UserError, match="--scheduler: unknown name 'cgopip'; did you mean 'cgopipe'"):
        registry.load("cgopip")


def test_a_class_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "my.py"
    path.write_text("from sim.schedulers.resident import Resident\nclass Mine(Resident):\n    pass\n")
    assert registry.load(f"{path}:Mine").__name__ == "Mine"


@pytest.mark.parametrize(
    ("text", "name", "told"),
    [
        ("class Mine: pass", "Mine", "class Mine has no lanes, on, memory; derive it from"),
        ("class Mine: pass", "Mina", "unknown name 'Mina'; did you mean 'Mine'"),
        ("Mine = 3", "Mine", "Mine is no class"),
        ("import nowhere_at_all", "Mine", "cannot be imported: ModuleNotFoundError"),
        ("def (", "Mine", "cannot be imported: SyntaxError"),
    ],
)
def test_a_file_without_a_scheduler_is_refused(tmp_path: Path, text: str, name: str, told: str) -> None:
    path = tmp_path / "my.py"
    path.write_text(text)
    with pytest.raises(UserError) as e:
        registry.load(f"{path}:{name}")
    assert told in str(e.value) and "my.py" in str(e.value)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no file .*gone.py; give FILE.py:CLASS or one of cgopipe"):
        registry.load(f"{tmp_path}/gone.py:Mine")


def test_a_machine_without_a_lane_is_refused() -> None:
    whole = machines.load("l4")
    registry.check_lanes("cgopipe", registry.load("cgopipe").lanes, whole)
    without = whole.model_copy(update={"lanes": tuple(lane for lane in whole.lanes if lane.name != "cpu")})
    without.__dict__.pop("lane", None)
    with pytest.raises(UserError, match="machine l4 has no lane 'cpu' that scheduler cgopipe needs; it has gpu, h2d, d2h, pin"):
        registry.check_lanes("cgopipe", registry.load("cgopipe").lanes, without)
    registry.check_lanes("flexgen", registry.load("flexgen").lanes, without)


@pytest.mark.parametrize("change", [{"order": "ready"}, {"servers": 2}])
def test_a_lane_that_does_not_keep_the_launch_order_is_refused(change: dict[str, object]) -> None:
    whole = machines.load("l4")
    other = whole.model_copy(update={"lanes": tuple(lane.model_copy(update=change) for lane in whole.lanes)})
    other.__dict__.pop("lane", None)
    with pytest.raises(UserError, match="lane 'gpu' has order .* needs order 'submitted' and 1 server"):
        registry.check_lanes("resident", ("gpu",), other)
