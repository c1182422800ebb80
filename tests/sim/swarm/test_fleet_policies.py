"""Policies of the fleet one by one: what is asked for, forecast, moved; and price traces as they come."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from sim.cli.app import app
from sim.clusters.importers import spot_prices
from sim.errors import UserError
from sim.swarm import trouble
from sim.swarm.fleet import prices
from sim.swarm.fleet.arbitrage import Arbitrage, Offer
from sim.swarm.fleet.forecast import Holt
from sim.swarm.fleet.policy import Seen, load
from sim.swarm.fleet.predictive import Predictive
from sim.swarm.fleet.reactive import Reactive, settled
from tests.sim.swarm.campaign import poisson, recorded, small, study
from traces.files import Provenance
from traces.load import Load, write_load

RECORDED = Path(__file__).parents[4] / "shared" / "data" / "spot_prices_availability"


def seen(at_s: float, busy: float = 0.7, serving: float = 2.0, waiting: int = 0, arrived: int = 0, **more: float) -> Seen:
    base = Seen(at_s, serving, serving, round(serving), 5.0, busy, waiting, arrived, 0, 0.0, 60.0)
    return replace(base, **more)  # type: ignore[arg-type]


# Reactive ---------------------------------------------------------------------------------------------


def test_each_metric_asks_in_proportion_and_the_largest_wins() -> None:
    policy = Reactive(target=0.5, queue=4, ttft_s=0.0)
    assert policy.desired([seen(0, busy=0.75)]) == pytest.approx(3.0)
    assert policy.desired([seen(0, busy=0.75, waiting=16)]) == pytest.approx(4.0)
    assert policy.desired([seen(0, busy=0.54)]) == 2.0  # within the tolerance
    slow = Reactive(target=0, queue=0, ttft_s=0.5)
    assert slow.desired([seen(0, firsts=10, ttft_s=1.0), seen(70, firsts=30, ttft_s=17.0)]) == pytest.approx(2 * 0.8 / 0.5)
    assert policy.desired([seen(0, waiting=1000)]) == 6.0  # four nodes at once, or as many as serve


def test_less_is_rented_once_the_peak_is_long_ago() -> None:
    policy = Reactive(target=0.5, queue=0, down_s=300)
    past = [seen(0, busy=1.0, rented=4.0), *(seen(15.0 * i, busy=0.05, rented=4.0) for i in range(1, 30))]
    asked = [policy.desired(past[: i + 1]) for i in range(len(past))]
    assert asked[0] == 4.0 and set(asked[:21]) == {4.0} and asked[21:] == pytest.approx([0.2] * 9)


@given(st.lists(st.floats(0, 10), min_size=1, max_size=8), st.floats(0, 10))
def test_what_is_settled_is_what_somebody_asked_for_or_stays(asked: list[float], rented: float) -> None:
    past = [seen(float(i), rented=rented) for i in range(len(asked))]
    found = settled([(float(i), a) for i, a in enumerate(asked)], past, up_s=2.0, down_s=5.0)
    assert found == rented or found in asked
    assert found >= min(rented, *asked) and found <= max(rented, *asked)
    assert settled([(0.0, asked[0])], past[:1], 0.0, 0.0) == asked[0]
    assert settled([(0.0, asked[0])], past[:1], 0.0, 9.0) >= rented  # nothing is given back before it was watched for so long


# Predictive -------------------------------------------------------------------------------------------


def test_holt_by_hand() -> None:
    """alpha 1/2, beta 1/2, no damping, the median: levels and trends of 2, 4, 8."""
    holt = Holt(alpha=0.5, beta=0.5, phi=1.0)
    level, trend, expected = 2.0, 0.0, [2.0]
    for value in (4.0, 8.0):
        error = value - level - trend
        level, trend = level + trend + 0.5 * error, trend + 0.25 * error
        expected.append(level + 3 * trend)
    assert list(holt.forecasts([2.0, 4.0, 8.0], 3, 0.5)) == pytest.approx(expected)


def test_an_erratic_series_is_met_with_a_margin_and_a_steady_one_without() -> None:
    holt = Holt()
    assert list(holt.forecasts([5.0] * 20, 3, 0.95))[-1] == pytest.approx(5.0)
    wild = [1.0, 9.0] * 20
    high, middle = (list(holt.forecasts(wild, 3, q))[-1] for q in (0.95, 0.5))
    assert high > 9.0 > middle


@given(st.lists(st.floats(0, 100), min_size=2, max_size=30), st.integers(1, 29))
def test_a_forecast_is_of_what_came_before_it(series: list[float], cut: int) -> None:
    head = series[: min(cut, len(series))]
    assert list(Holt().forecasts(series, 4, 0.9))[: len(head)] == list(Holt().forecasts(head, 4, 0.9))


def test_growth_is_ordered_before_it_comes() -> None:
    """Arrivals grow by 1/s in each window: what is expected a start-up ahead is more than what came."""
    past = [seen(30.0 * i, arrived=15 * i * (i + 1), rented=1.0) for i in range(12)]
    policy = Predictive(queue=0, quantile=0.5, look_s=30.0)
    rate = (past[-1].arrived - past[-2].arrived) / 30.0
    assert policy.expected(past)[-1][1] > rate and policy.desired(past) > rate / (5.0 * 0.8)
    assert policy.desired(past[:1]) == 1.0  # nothing was counted yet


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("reactiv", "did you mean 'reactive'"), ("reactive:goal=1", "unknown name 'goal'"), ("reactive:target=2", "a share of time"),
        ("reactive:target=0:queue=0", "one metric is needed"), ("fixed:min=0", "min must be 1 or more"),
        ("fixed:min=5:max=3", "must be 5 or more"), ("predictive:window-s=1", "must be look-s"), ("predictive:phi=2", "from 0 to 1"),
        ("reactive:min=x", "must be a whole number"), ("reactive:look-s=nan", "option look-s: has 'nan'; must be a number"),
        ("fixed:startup-s=inf", "option startup-s: has 'inf'; must be a number"),
    ],
)  # fmt: skip
def test_bad_policies_are_named(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load(text)
    assert load("none") is None


# Arbitrage --------------------------------------------------------------------------------------------


def offer(saving: float = 2.0, cost: float = 0.5, watched_s: float = 0.0, turns: int = 0, source: int = 0) -> Offer:
    return Offer(source, 9, saving, watched_s, turns, cost, 0.0, 0.0)


def test_a_move_must_save_its_cost_and_a_margin_while_it_lasts() -> None:
    policy = Arbitrage(stay_s=1800, margin=0.5)
    assert policy.gain_usd(offer()) == pytest.approx(2.0 * 0.5 - 0.75)
    assert policy.choose([offer(), offer(saving=3.0, source=1), offer(cost=9.0, source=2)], 0) == offer(saving=3.0, source=1)
    assert policy.choose([offer(cost=0.7)], 0) is None and policy.choose([offer()], 1) is None
    assert policy.stays_s(offer(watched_s=5400)) == 7200
    assert policy.choose([offer(watched_s=5400, turns=5)], 0) is None  # prices that turn often are not worth it


# Price traces -----------------------------------------------------------------------------------------

AWS = [
    ("us-x-1b", "g.large", "2.5", "2020-02-21T01:00:00.000Z"), ("us-x-1a", "g.large", "2.0", "2020-02-21T00:00:00.000Z"),
    ("us-x-1a", "g.large", "3.0", "2020-02-21T02:00:00.000Z"), ("us-x-1a", "p.large", "9.0", "2020-02-21T00:30:00.000Z"),
]  # fmt: skip


def aws(path: Path) -> Path:
    rows = [dict(zip(spot_prices.AWS, row, strict=True)) for row in AWS]
    path.write_text(json.dumps({"NextToken": "", "SpotPriceHistory": rows}))
    return path


def aws_text(**changed: object) -> str:
    return json.dumps({"SpotPriceHistory": [dict(zip(spot_prices.AWS, AWS[0], strict=True)) | changed]})


def test_prices_of_other_systems_are_left_out(tmp_path: Path) -> None:
    told = [("Windows", "9"), ("Linux/UNIX", "2")]
    rows = [json.loads(aws_text(ProductDescription=p, SpotPrice=usd))["SpotPriceHistory"][0] for p, usd in told]
    (tmp_path / "a.json").write_text(json.dumps({"SpotPriceHistory": rows}))
    assert [q.usd_per_hour for q in spot_prices.read(tmp_path / "a.json")] == [2.0]


def test_histories_are_read_in_order_of_time_from_files_and_folders(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    aws(tmp_path / "deep" / "a.json")
    (tmp_path / "east.csv").write_text("Date,NC6,NC12\n2/21/2020,$0.5,\n")
    found = spot_prices.read(tmp_path)
    assert [q.usd_per_hour for q in found] == [0.5, 2.0, 9.0, 2.5, 3.0] and found[0].place == "east" and found[0].instance == "NC6"
    assert found[1].at_s - found[0].at_s == 0 and found[3].at_s - found[1].at_s == 3600
    plain = tmp_path / "plain.csv"
    plain.write_text("time,zone,instance,price\n30,z,G,1.5\n2020-02-21T00:00:00+01:00,z,G,2\n")
    assert [q.at_s for q in spot_prices.read(plain)] == [30.0, found[0].at_s - 3600]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.json", "{}", "no SpotPriceHistory"),
        ("a.json", '{"SpotPriceHistory": [{"SpotPrice": "1"}]}', r"\[0\]: AvailabilityZone: missing"),
        ("a.csv", "time,region,price\n", "column instance: missing"), ("a.csv", "time,instance,price\n", "column region: missing"),
        ("a.csv", "time,region,instance,price\nnoon,r,i,1\n", "line 2: time 'noon'"),
        ("a.csv", "time,region,instance,price\n1,r,i,-1\n", "price '-1'"), ("a.csv", "time,region,instance,price\n", "holds no prices"),
        ("a.csv", "Date,X\n21.2.2020,1\n", "month/day/year"),
        ("a.json", '{"SpotPriceHistory": null}', "no SpotPriceHistory"),
        ("a.json", aws_text(SpotPrice=0.5), r"a.json: SpotPriceHistory\[0\]: SpotPrice: has 0.5; text is needed"),
        ("a.json", aws_text(ProductDescription="Windows"), "ProductDescription: is 'Windows'; prices of Linux/UNIX are needed"),
        ("a.csv", "time,instance,price,region\n1,i,2,r\n1,i,2\n", "a.csv: line 3: has fewer columns"),
        ("a.csv", "Date,X\n2/21/2020,1,2\n", "a.csv: line 2: has more columns"),
        ("a.csv", "time,region,instance,price\nnan,r,i,1\n", "line 2: time 'nan'"),
    ],
)  # fmt: skip
def test_bad_traces_are_named(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=message):
        spot_prices.read(tmp_path / name)


def test_nodes_find_their_zone_and_instance_and_are_taken_above_the_bid(tmp_path: Path) -> None:
    values = small().model_dump(exclude_none=True)
    values["nodes"]["a"] |= {"zone": "us-x-1a", "instance": "g.large"}
    plant = study(poisson(1, 1.0), cluster=type(small()).model_validate(values)).plant
    steps = prices.steps_of(plant, spot_prices.read(aws(tmp_path / "a.json")), spot_prices.moment("", "2020-02-21T01:00:00Z"))
    assert steps == {"a-0": [(0.0, 2.0), (3600.0, 3.0)], "a-1": [(0.0, 2.0), (3600.0, 3.0)]}
    up_and_down = {"a-0": [(0.0, 2.0), (100.0, 3.0), (150.0, 2.5), (400.0, 1.0), (900.0, 3.5)]}
    found = [(e.at_s, e.what) for e in prices.events(plant, up_and_down, bid=0.7) if e.what != "price"]
    assert found == [(220.0, "preempt"), (221.0, "rejoin"), (1020.0, "preempt")]  # the bid is 0.7 of 3.60
    assert [e.what for e in prices.events(plant, up_and_down)] == ["price"] * 5
    end = trouble.MOST_S
    late = {"a-0": [(0.0, 2.0), (end - 200, 3.0), (end - 100, 1.0), (2 * end, 2.0)]}
    assert [(e.at_s, e.what) for e in prices.events(plant, late, bid=0.7)] == [(0.0, "price"), (end - 200, "price"), (end - 80, "preempt")]
    with pytest.raises(UserError, match="--prices-from: is 30 s; the cluster's prices are from 2020-02-21T00:00.* to 2020-02-21T02:00"):
        prices.steps_of(plant, spot_prices.read(tmp_path / "a.json"), 30.0)
    with pytest.raises(UserError, match="prices are of us-x-1a, us-x-1b for g.large, p.large; no node of small"):
        prices.steps_of(study(poisson(1, 1.0)).plant, spot_prices.read(tmp_path / "a.json"))


@pytest.mark.skipif(not RECORDED.exists(), reason="recorded prices are not here: ../shared/data/spot_prices_availability")
def test_recorded_prices_are_read() -> None:
    found = spot_prices.read(RECORDED / "aws_spot_2020")
    assert {q.instance for q in found} == {"p2.xlarge", "p3.2xlarge", "p3.8xlarge", "p3.16xlarge"} and len({q.place for q in found}) > 10
    assert all(0 < q.usd_per_hour < 40 for q in found) and [q.at_s for q in found] == sorted(q.at_s for q in found)
    assert {q.place for q in spot_prices.read(RECORDED / "azure_2020" / "us_east.csv")} == {"us_east"}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--arbitrage", "on"], "there is nowhere to move"), (["--bid", "0.5"], "--bid: there is no price trace"),
        (["--prices", "none.csv"], "--prices: none.csv: no such file"), (["--autoscale", "magic"], "--autoscale: unknown name 'magic'"),
        (["--arbitrage", "maybe", "--autoscale", "fixed"], "--arbitrage: unknown name 'maybe'"),
    ],
)  # fmt: skip
def test_bad_flags_are_named(flags: list[str], message: str) -> None:
    base = ["swarm", "--machine", "five-regions", "--model", "tiny-mixtral", "--trace", str(Path(__file__)), *flags]
    with pytest.raises(UserError, match=message):
        CliRunner().invoke(app, base, catch_exceptions=False, standalone_mode=False)


def test_the_command_tells_what_was_rented_and_what_moves_saved(tmp_path: Path) -> None:
    cluster, load_file, trace = tmp_path / "c.yaml", tmp_path / "load.parquet", tmp_path / "prices.csv"
    cluster.write_text(yaml.safe_dump(json.loads(small(nodes=1, memory=800_000_000, rtt_s=0.01).model_dump_json(exclude_none=True))))
    write_load(load_file, Load(recorded().windows.astype(np.int64), Provenance("synthetic", "test", command="")))
    trace.write_text("time,region,instance,price\n0,A,G,3\n0,B,G,2\n10,A,G,90\n")
    flags = [
        "--machine",
        cluster,
        "--model",
        "tiny-mixtral",
        "--trace",
        load_file,
        "--prices",
        trace,
        "--duration",
        60,
        "--design",
        "nodes",
    ]
    flags += ["--autoscale", "fixed:startup-s=2:look-s=1", "--arbitrage", "on"]
    result = CliRunner().invoke(app, ["swarm", *map(str, flags), "--json"])
    assert result.exit_code == 0, result.output
    moved, still, *others = json.loads(result.stdout)["results"]
    assert (moved["autoscale"], moved["arbitrage"], still["arbitrage"]) == ("fixed", True, False) and moved["words"].endswith(
        "cheaper nodes"
    )
    assert moved["price_moves"] == 1 and 0 < moved["migration_usd"] < moved["cost_usd"] < still["cost_usd"]
    assert [(o["design"], o["autoscale"], o["node_hours"]) for o in others] == [
        (d, "none", pytest.approx(3 * o["seconds"] / 3600)) for d, o in zip(("nodes", "replicas", "edge"), others, strict=True)
    ]
    assert moved["lost"] == moved["duplicated"] == 0 and 1 < moved["node_hours"] * 3600 / moved["seconds"] < 2
    shown = CliRunner().invoke(app, ["swarm", *map(str, flags)])
    assert "1 moves to cheaper nodes for $" in shown.stdout and "idle power left out: not stated" in shown.stdout
