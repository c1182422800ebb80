"""`sim swarm` as a user calls it: what it prints and writes, and what it says of flags and files that are wrong."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from sim.cli.app import app
from sim.errors import UserError
from tests.sim.swarm.campaign import recorded, small
from traces.files import Provenance
from traces.load import Load, write_load


@pytest.fixture
def small_study(tmp_path: Path) -> list[str]:
    """Flags of a study of `small`, all but how long."""
    cluster, load = tmp_path / "small.yaml", tmp_path / "load.parquet"
    cluster.write_text(yaml.safe_dump(json.loads(small().model_dump_json(exclude_none=True))))
    write_load(load, Load(recorded().windows.astype(np.int64), Provenance("synthetic", "test", command="")))
    return ["--machine", str(cluster), "--model", "tiny-mixtral", "--trace", str(load)]


def test_the_command_prints_one_object_with_floor_and_baselines(tmp_path: Path, small_study: list[str]) -> None:
    events = tmp_path / "events.yaml"
    events.write_text("events: [{at_s: 3, what: crash, node: a-0}, {at_s: 20, what: rejoin, node: a-0}]")
    flags = [*small_study, "--events", str(events), "--duration", "30", "--first", "20"]
    timeline, page = tmp_path / "out.parquet", tmp_path / "out.html"
    result = CliRunner().invoke(app, ["swarm", *flags, "--timeline", str(timeline), "--html", str(page), "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert [r["design"] for r in found["results"]] == ["spread", "replicas", "edge"]
    assert found["lost"] == found["duplicated"] == 0 and found["floor_s_per_token"] > 0
    assert {"tokens_per_s", "ttft_s", "tpot_s", "wire_bytes", "cost_usd", "availability", "rebalances", "moves"} <= set(found)
    assert timeline.stat().st_size > 1000
    html = page.read_text()
    assert all(f">{r}</text>" in html for r in "HABC") and "activations to experts elsewhere: <b>" in html
    assert html.count('class="heat"') == 2 and "given up or off</title>" in html and "<b>1</b> 3 s: crash a-0" in html
    assert all(f'id="flow-{k}"' in html and f'<g class="layer {k}"><g' in html for k in ("all", "activations", "gossip"))
    assert "<script" not in html and "H to A: " in html
    shown = CliRunner().invoke(app, ["swarm", *flags])
    assert "floor a token" in shown.stdout and "a full replica per region" in shown.stdout and "replicas, edge redirection" in shown.stdout


def test_rare_gossip_is_no_death(small_study: list[str]) -> None:
    flags = ["--duration", "200", "--design", "replicas", "--gossip-period", "20", "--json"]
    result = CliRunner().invoke(app, ["swarm", *small_study, *flags])
    assert result.exit_code == 0, result.output
    assert [r["suspected"] for r in json.loads(result.stdout)["results"]] == [0, 0]


@pytest.mark.parametrize(
    ("flags", "note"),
    [
        ([], ""), (["--design", "nodes", "--autoscale", "fixed:min=3"], ""),
        (["--tolerate", "3"], "bears 2 faulty, not 3: that takes 10 members, and 7 can be members\n"),
        (["--design", "nodes", "--autoscale", "fixed:min=2"], "bears 0 faulty, not 1: that takes 4 members, and 3 can be members: the"),
        (["--silent", "2"], "--silent: 2 of the control plane's 4 members are silent and it bears 1"),
    ],
)
def test_what_the_control_plane_does_not_bear_is_said(small_study: list[str], flags: list[str], note: str) -> None:
    result = CliRunner().invoke(app, ["swarm", *small_study, "--first", "1", "--duration", "1", *flags])
    assert result.exit_code == 0, result.output
    assert note in result.stderr and ("note: " in result.stderr) == bool(note)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--placement", "petals"], "places whole layers"), (["--replica-routing", "near"], "did you mean 'nearest'"),
        (["--design", "x"], "have spread, replicas, edge"), (["--requests", "none.parquet"], "--requests: none.parquet: no such file"),
        (["--events", "none.yaml"], "--events: none.yaml: no such file"), (["--trace", "none.npz"], "--trace: none.npz: no such file"),
        (["--requests", __file__], "--requests: .*not a readable Parquet file"),
        (["--placement", "x", "--trace", __file__], "--placement: unknown name"),
        (["--machine", "8xh100"], "--machine: 8xh100 is a machine, .*a cluster is needed: five-regions, home-swarm, or a YAML file"),
        (["--events", __file__], "--events: .*test_command.py: .*YAML"),
        (["--prices", __file__], "--prices: .*test_command.py: column time: missing"),
        (["--silent", "4"], "--silent: is 4; must be 3 or less"), (["--model", "olmoe"], "has 4 layers of 8 experts; olmoe has 16 of 64"),
    ],
)
def test_bad_flags_are_named(small_study: list[str], flags: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        CliRunner().invoke(app, ["swarm", *small_study, *flags], catch_exceptions=False, standalone_mode=False)
