"""Explanations of whole runs, as data and in words, and the command."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from sim import machines, models, workloads
from sim.cli.app import main
from sim.explain import Explanation, as_data, explain, sentence
from sim.explain.elasticity import Elasticity
from sim.explain.plot import write_plot
from sim.explain.upgrades import upgrades, with_capacity
from sim.job import prepare
from sim.schedulers.policy import Policy

T4 = machines.load("t4")
SMALL = ["--model", "tiny-mixtral", "--machine", "t4", "--workload", "mtbench", "--gen", "6"]
RUN = [*SMALL, "--scheduler", "cgopipe", "--batch", "16", "--microbatch", "4"]


@cache
def explained(link: float = 1.0, scheduler: str = "cgopipe") -> Explanation:
    load = workloads.load("mtbench").with_generation(6)
    machine = with_capacity(T4, "link.h2d", link)
    return explain(prepare(models.load("tiny-mixtral"), machine, load, scheduler, Policy(batch=16, microbatch=4)))


def by_name(e: Explanation) -> dict[str, Elasticity]:
    return {x.upgrade.name: x for x in e.elasticities}


@pytest.mark.parametrize("scheduler", ["cgopipe", "flexgen"])
def test_elasticities_are_the_shares_of_the_critical_path(scheduler: str) -> None:
    """Envelope theorem: where little is shared, a capacity is worth what of the critical path it binds."""
    e = explained(link=0.01, scheduler=scheduler)
    link = by_name(e)["link.h2d"]
    share = sum(x.share for x in e.by_limit if x.resource == "link.h2d")
    assert link.elasticity == pytest.approx(share, abs=0.03)
    assert share > 0.5
    assert e.elasticities[0].upgrade.name == "link.h2d"
    assert link.gain == pytest.approx(1.1**link.elasticity - 1)


def test_the_bottleneck_moves_when_the_link_costs_nothing() -> None:
    e = explained(link=0.01)
    link = by_name(e)["link.h2d"]
    assert link.then is not None and link.most_then is not None and link.most is not None
    assert (link.then.lane, link.then.resource) == ("h2d", "link.h2d") == (e.by_limit[0].lane, e.by_limit[0].resource)
    assert link.most_then.resource != "link.h2d"
    assert link.most > 10 * link.gain


def test_what_does_not_matter_gains_nothing() -> None:
    idle = by_name(explained(link=0.01))["gpu.flops"]
    assert idle.gain < 0.005
    assert (idle.then, idle.most, idle.most_then) == (None, None, None)


def test_a_run_is_between_its_bound_and_its_lanes_add_up() -> None:
    e = explained()
    assert 0 < e.bounds.seconds <= e.makespan_s
    for t in e.lanes.values():
        assert t.busy_s + t.blocked_s + t.bubble_s == pytest.approx(e.makespan_s)
    assert sum(s.seconds for s in e.by_op) == pytest.approx(e.makespan_s)
    busy = e.outcome.summary["lanes"]
    assert all(t.busy_s + t.sharing_s == pytest.approx(busy[name]["busy_s"]) for name, t in e.lanes.items())


def test_one_sentence_says_what_limits_and_what_to_buy() -> None:
    said = sentence(explained(link=0.01))
    assert said.startswith("Limited by lane h2d (page_to_gpu, layer_to_gpu): 100% of the critical path is its time on link.h2d; ")
    assert said.endswith("buy link.h2d (+10% gives +10.0% throughput).")


def test_where_nothing_pays_it_says_so() -> None:
    e = explained()
    dull = [replace(x, gain=0.0) for x in e.elasticities]
    assert sentence(replace(e, elasticities=dull)).endswith("no single upgrade pays: change the batch or the scheduler.")
    software = [x for x in e.elasticities if x.upgrade.kind == "software"]
    better = replace(e, elasticities=[replace(software[0], gain=0.5), *dull])
    assert "no part pays, but make" in sentence(better)


def test_what_limits_and_is_not_worth_buying_says_why() -> None:
    e = explained(link=0.01)
    other = [replace(x, gain=0.0 if x.upgrade.name == "link.h2d" else 0.05) for x in e.elasticities]
    said = sentence(replace(e, elasticities=other))
    assert said.endswith("; +10% of link.h2d alone gives +0.0%: other lanes' work takes nearly as long.")


def test_a_low_reach_speaks_for_better_code() -> None:
    e = explained(link=0.01)
    low = [replace(e.by_limit[0], reach=0.2), *e.by_limit[1:]]
    gains = [replace(x, gain=0.05 if x.upgrade.name in ("link.h2d", "ops on h2d") else 0.0) for x in e.elasticities]
    assert "or make ops on h2d faster, which reach 20% of it (+5.0%)" in sentence(replace(e, by_limit=low, elasticities=gains))


def test_data_is_json_and_complete() -> None:
    found = json.loads(json.dumps(as_data(explained()), allow_nan=False))
    assert set(found) >= {"sentence", "roofline", "critical_path", "lanes", "lower_bound", "elasticities", "makespan_s", "tokens_per_s"}
    assert set(found["lanes"]["h2d"]) == {"busy_s", "sharing_s", "pool_s", "order_s", "bubble_s", "blocked_s"}
    assert found["lower_bound"]["gap"] == pytest.approx(1 - found["lower_bound"]["seconds"] / found["makespan_s"])
    assert {x["name"] for x in found["elasticities"]} == {u.name for u in upgrades(T4, set(T4.resources), set(T4.lane), 1.1)}
    assert [op["op"] for op in found["roofline"]["ops"]] == ["attention", "expert FFN"]
    assert all(op["verdict"] for op in found["roofline"]["ops"])


def test_the_picture(tmp_path: Path) -> None:
    write_plot(tmp_path / "roof.png", explained())
    assert (tmp_path / "roof.png").read_bytes().startswith(b"\x89PNG")
    write_plot(tmp_path / "roof.svg", explained())
    drawn = (tmp_path / "roof.svg").read_text()
    assert all(text in drawn for text in ("P1 = ", "P2 = ", "balance: N = ", "this run: ", "expert FFN"))


# The command ------------------------------------------------------------------------------------


def test_command_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", *RUN]) == 0
    first, second, third, *rest = capsys.readouterr().out.splitlines()
    assert first.startswith("cgopipe: tiny-mixtral on t4, mtbench, batch 16, micro-batch 4: ")
    assert second == sentence(explained())
    assert "no schedule of these tasks takes less than" in third
    for title in ("What upgrades give", "Lanes: busy", "Critical path by op", "Lower bounds of any", "Hierarchical roofline"):
        assert any(line.startswith(title) for line in rest)


def test_command_json_and_files(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    plot, timeline = tmp_path / "roof.svg", tmp_path / "t.parquet"
    assert main(["explain", *RUN, "--json", "--plot", str(plot), "--timeline", str(timeline)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["sentence"] == sentence(explained())
    assert plot.exists() and timeline.exists()


def test_without_a_policy_it_explains_the_best_one(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    small = written(tmp_path, memories={**T4.memories, "cpu": T4.memories["cpu"].model_copy(update={"bytes": 600_000_000})})
    asked = ["--model", "tiny-mixtral", "--machine", small, "--workload", "mtbench", "--gen", "2", "--padded"]
    asked += ["--refine", "0", "--no-cache", "--json"]
    assert main(["policy", *asked]) == 0
    best = json.loads(capsys.readouterr().out)["policy"]
    assert main(["explain", *asked]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["scheduler"] == best["scheduler"]
    assert {k: v for k, v in found["policy"].items() if k in best} == best


def written(directory: Path, **changed: Any) -> str:
    """A machine file like t4's, with other parts."""
    values = T4.model_copy(update=changed).model_dump(mode="json", exclude_defaults=True)
    (directory / "machine.yaml").write_text(yaml.safe_dump(values))
    return str(directory / "machine.yaml")


def refusal(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main(["explain", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    return err


def test_bad_input_is_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert "--plot" in refusal([*RUN, "--plot", str(tmp_path / "roof.pdf")], capsys)
    assert "--scheduler" in refusal([*SMALL, "--batch", "4"], capsys)
    assert "--memory-form" in refusal([*SMALL, "--memory-form", "t4"], capsys)


def test_no_plot_where_there_is_no_host(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    without = [lane for lane in T4.lanes if lane.name != "h2d"]
    file = written(tmp_path, lanes=tuple(without), ops=tuple(op for op in T4.ops if op.lane != "h2d"))
    small = ["--model", "tiny-mixtral", "--machine", file, "--workload", "mtbench", "--gen", "3"]
    run = [*small, "--scheduler", "resident", "--batch", "4", "--microbatch", "2"]
    assert "--plot" in refusal([*run, "--plot", str(tmp_path / "roof.svg")], capsys)
    assert not (tmp_path / "roof.svg").exists()
    assert main(["explain", *run, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["roofline"] is None


def test_matplotlib_is_imported_for_pictures_only() -> None:
    code = "import sys, sim.explain, sim.cli.explaining; assert not {'matplotlib', 'numba', 'scipy'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
