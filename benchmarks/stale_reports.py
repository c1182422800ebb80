"""Regret of stale views: mean latency over that of an oracle who reads loads as they are, by the age that gossip gives them.

python benchmarks/stale_reports.py OUT.svg     1,200 requests in 600 s over three replicas, one at half its speed after 20 s; gossip
                                               periods of 2 to 80 s, three seeds; 95 % confidence intervals of the mean (Student's t)
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np

from sim.swarm.settings import Settings
from sim.swarm.study import simulate
from sim.swarm.trouble import Trouble
from sim.tasks import PS_PER_S
from tests.sim.swarm.campaign import poisson, small, study

PERIODS_S = (0.0, 2.0, 6.0, 15.0, 30.0, 50.0, 80.0)
"""Between a node's gossip rounds; 0: an oracle reads loads as they are."""
STALE, BLIND = ("least-loaded", "power-of-two"), ("nearest", "lp")
"""Routers that look at gossiped loads, and those that look at none: `lp` splits in proportion to what the machines should do."""
SEEDS = range(3)
Case = tuple[str, float, int]
"""Routing, gossip period in s, seed."""
Table = dict[tuple[str, float], tuple[float, float, float]]
"""(routing, period) -> (mean age in s, latency over the least-loaded oracle's for the same seed, half of its confidence interval)."""


def measured(case: Case) -> tuple[float, float]:
    """(age of what was looked at, latency), means in s of all requests, which come in evenly at a node of each region."""
    routing, period_s, seed = case
    settings = Settings(
        design="replicas", routing=routing, gossip_s=period_s or 10.0, fan_out=2, fresh_loads=period_s == 0, suspect_s=1e4, rebalance_s=0.0,
        seed=seed,
    )  # fmt: skip
    requests = poisson(1200, 2.0, seed, prompt=2000, output=800)
    slow = [Trouble(at_s=20, what="slow", node="a-0", factor=0.5)]
    stated = study(requests, slow, "greedy", small(rtt_s=0.01))
    fronts = [f"{region}-0" for region in "abc"]
    server = simulate(replace(stated, origins=tuple(fronts[i % 3] for i in range(len(requests)))), settings).server
    latency_s = float(np.mean([(j.answered - j.arrival) / PS_PER_S for j in server.requests.jobs.values()]))
    return (server.views.mean_age_s or 0.0) if period_s else 0.0, latency_s


def swept() -> Table:
    from scipy.stats import t

    kinds = [*((r, p) for r in STALE for p in PERIODS_S), *((r, PERIODS_S[-1]) for r in BLIND)]
    cases: list[Case] = [(r, p, s) for r, p in kinds for s in SEEDS]
    with ProcessPoolExecutor(os.cpu_count(), multiprocessing.get_context("spawn")) as pool:
        found = np.array(list(pool.map(measured, cases))).reshape(len(kinds), len(SEEDS), 2)
    ratio = found[:, :, 1] / found[0, :, 1]
    half = t.ppf(0.975, len(SEEDS) - 1) * ratio.std(axis=1, ddof=1) / np.sqrt(len(SEEDS))
    return dict(zip(kinds, zip(found[:, :, 0].mean(axis=1), ratio.mean(axis=1), half, strict=True), strict=True))


def show(table: Table) -> None:
    print("| gossip period, s | " + " | ".join(f"{r}: age, s | latency / oracle's" for r in STALE) + " |\n|---|" + "---|" * 4)
    for period in PERIODS_S:
        cells = [f"{table[r, period][0]:.1f} | {table[r, period][1]:.2f} ± {table[r, period][2]:.2f}" for r in STALE]
        print(f"| {f'{period:g}' if period else 'oracle'} | " + " | ".join(cells) + " |")
    for r in BLIND:
        print(f"{r}, which looks at no load: {table[r, PERIODS_S[-1]][1]:.2f} ± {table[r, PERIODS_S[-1]][2]:.2f}")


def draw(table: Table, to: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for routing, colour in zip(STALE, ("#D55E00", "#0072B2"), strict=True):
        points = np.array([table[routing, p] for p in PERIODS_S])
        age, mean, half = points.T
        axes.plot(age, mean, color=colour, marker="o", label=routing)
        axes.fill_between(age, mean - half, mean + half, color=colour, alpha=0.18, linewidth=0)
    for routing, colour, style, x in zip(BLIND, ("#555B66", "#009E73"), ("--", ":"), (73.0, 75.0), strict=True):
        _, level, reach = table[routing, PERIODS_S[-1]]
        axes.plot([0.0, x], [level, level], color=colour, linestyle=style, label=f"{routing} (looks at no load)")
        axes.errorbar(x, level, reach, color=colour, capsize=3)
    ticks = [1, 1.5, 2, 3, 5, 8, 12]
    axes.set(xlabel="mean age of the gossiped load that was looked at [s]", ylabel="mean latency / fresh oracle's", yscale="log")
    axes.set_yticks(ticks, [f"{v:g}" for v in ticks])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, loc="upper left")
    figure.savefig(to)


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    table = swept()
    show(table)
    draw(table, Path(sys.argv[1]))
