"""What renting nodes as load asks saves, and what it costs in time to first token; and what moving between prices can save at most.

python benchmarks/fleet.py load TRACE REQUESTS OUT.svg    gpt-oss-20b, a full replica on each node of fleet_pool.yaml, recorded arrivals
python benchmarks/fleet.py prices FOLDER                  hindsight on recorded prices: the cheapest zone of each hour against the one
                                                          that was cheapest when the day began
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime
from functools import partial
from itertools import groupby
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from sim import clusters, models
from sim.clusters.importers.spot_prices import Quote, read
from sim.placement.policy import load as load_policy
from sim.placement.recorded import read as read_load
from sim.swarm.figures import figures
from sim.swarm.fleet.policy import load
from sim.swarm.plant import Plant
from sim.swarm.routes import Routes
from sim.swarm.settings import Settings
from sim.swarm.study import Finished, Study, requests_of, simulate
from sim.tasks import PS_PER_S
from traces.importers import read as import_foreign
from traces.requests import Requests

POLICIES = (
    "none", "fixed:min=2", "fixed:min=4", "fixed:min=6", "reactive:min=2", "reactive:min=2:target=0.5", "predictive:min=2",
    "predictive:min=2:quantile=0.99",
)  # fmt: skip
DRAWN = ("fixed:min=4", "reactive:min=2", "predictive:min=2")
LABELS = (4, 4, -11, 4, 4, 6, 4, -11)
"""By how many points each policy's label stands above its dot."""
SECONDS = 3600.0
Steps = tuple[list[float], list[int]]
"""Minutes at which the number of rented nodes changes, and the number from then on."""


def study(trace: Path, requests: Path) -> Study:
    plant = Plant(clusters.load(Path(__file__).with_name("fleet_pool.yaml")), models.load("gpt-oss-20b"))
    found = import_foreign("azure", requests)
    assert isinstance(found, Requests), found
    wanted = requests_of(found, until_s=SECONDS)
    routes = Routes(read_load([trace], "TRACE"), plant.model)
    return Study(plant, routes, load_policy("eplb"), wanted, (plant.cluster.coordinator,) * len(wanted))


def served(s: Study, text: str) -> tuple[dict[str, Any], Steps]:
    """Figures of a policy, and how many nodes were rented from which minute on."""
    settings = Settings(design="nodes", routing="power-of-two", autoscale=load(text), rebalance_s=0.0, duration_s=SECONDS)
    done = simulate(s, settings)
    return figures("nodes", done, s), rented(done)


def row(text: str, found: dict[str, Any]) -> str:
    ttft = found["ttft_s"]
    times = f"{ttft['p50']:.2f} s / {ttft['p90']:.2f} s / {ttft['p99']:.2f} s"
    cells = (
        f"`{text}`", f"{found['node_hours']:.2f}", f"{found['usd_per_million_tokens']:.0f}", times, found["scale_ups"],
        found["scale_downs"], found["wasted_starts"], f"{found['answered']:,}", found["lost"],
    )  # fmt: skip
    return f"| {' | '.join(map(str, cells))} |"


def rented(done: Finished) -> Steps:
    fleet = done.server.fleet
    if fleet is None:
        return [0.0], [len(done.server.plant.nodes)]
    steps = sorted([(r.since, 1) for r in fleet.pool.rents] + [(r.until, -1) for r in fleet.pool.rents if r.until is not None])
    counts = dict(zip([t / PS_PER_S / 60 for t, _ in steps], np.cumsum([d for _, d in steps]).tolist(), strict=True))
    return list(counts), list(counts.values())


def draw(s: Study, rows: dict[str, dict[str, Any]], steps: dict[str, Steps], out: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, (over, cost) = plt.subplots(1, 2, figsize=(12, 4.2), width_ratios=(1.7, 1), layout="constrained")
    minutes = np.array([r.arrival_ps / PS_PER_S / 60 for r in s.requests])
    over.hist(minutes, bins=np.arange(0, 61, 1), weights=np.full(len(minutes), 1 / 60), color="#c9d3de", label="requests a second")
    for text, colour in zip(DRAWN, ("#7a7a7a", "#d1662a", "#2a6fd1"), strict=True):
        at, count = steps[text]
        over.step([*at, 60], [*count, count[-1]], where="post", color=colour, label=f"{text}: nodes rented")
    over.set(xlabel="minutes", ylim=(0, None), title="Arrivals of a minute, and nodes rented")
    over.legend(frameon=False, fontsize=8)
    for i, (text, found) in enumerate(rows.items()):
        x, y = found["node_hours"], found["ttft_s"]["p99"]
        colour = {"f": "#7a7a7a", "n": "#7a7a7a", "r": "#d1662a", "p": "#2a6fd1"}[text[0]]
        cost.plot(x, y, "o", color=colour)
        cost.annotate(text.replace(":min=2", ""), (x, y), textcoords="offset points", xytext=(6, LABELS[i % len(LABELS)]), fontsize=7)
    cost.set(xlabel="node-hours", ylabel="TTFT p99, s", yscale="log", title="What is paid and what is waited", xlim=(0, 14))
    figure.savefig(out)


def by_load(trace: Path, requests: Path, out: Path) -> None:
    s, rows, steps = study(trace, requests), dict[str, dict[str, Any]](), dict[str, Steps]()
    print("| policy | node-hours | $ per million tokens | TTFT p50 / p90 / p99 | up | down | in vain | answered | lost |")
    print(f"|{'---|' * 9}")
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        for text, (rows[text], steps[text]) in zip(POLICIES, pool.map(partial(served, s), POLICIES), strict=True):
            print(row(text, rows[text]), flush=True)
    draw(s, rows, steps, out)


def hours(quotes: Sequence[Quote]) -> list[dict[str, float]]:
    """Prices by zone at each full hour from which on all zones have one."""
    places, now, out, at = {q.place for q in quotes}, dict[str, float](), list[dict[str, float]](), 0
    for hour in range(int(quotes[0].at_s // 3600), int(quotes[-1].at_s // 3600)):
        while at < len(quotes) and quotes[at].at_s <= hour * 3600:
            now[quotes[at].place] = quotes[at].usd_per_hour
            at += 1
        if len(now) == len(places):
            out.append(dict(now))
    return out


def by_price(folder: Path) -> None:
    print("| instance | zones | days | stays, $ a day | moves for nothing, $ a day | saved, mean | saved, best day |")
    print(f"|{'---|' * 7}")
    found = sorted(read(folder), key=lambda q: (q.instance, q.at_s))
    for instance, group in groupby(found, key=lambda q: q.instance):
        quotes = list(group)
        table = hours(quotes)
        days = [table[i : i + 24] for i in range(0, len(table) - 23, 24)]
        stays = np.array([sum(h[min(day[0], key=lambda z: (day[0][z], z))] for h in day) for day in days])
        best = np.array([sum(min(h.values()) for h in day) for day in days])
        saved = 1 - best / stays
        money = f"{stays.mean():.2f}", f"{best.mean():.2f}", f"{saved.mean():.2%}", f"{saved.max():.2%}"
        cells = len({q.place for q in quotes}), len(days), *money
        print(f"| {instance} | {' | '.join(map(str, cells))} |")
    print(f"from {_day(min(q.at_s for q in found))} to {_day(max(q.at_s for q in found))}")


def _day(at_s: float) -> str:
    return datetime.fromtimestamp(at_s, UTC).date().isoformat()


if __name__ == "__main__":
    mode, *paths = sys.argv[1:]
    {"load": by_load, "prices": by_price}[mode](*map(Path, paths))
