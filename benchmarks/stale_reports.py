"""Regret of stale views: mean latency over that of an oracle with fresh loads, by the age that gossip gives them and by routing.

python benchmarks/stale_reports.py OUT.svg     three replicas, one at half its speed after 20 s; gossip periods from 0.5 to 45 s
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from sim.swarm.settings import Settings
from sim.swarm.study import simulate
from sim.swarm.trouble import Trouble
from sim.tasks import PS_PER_S
from tests.sim.swarm.campaign import poisson, small, study

PERIODS_S = (0.0, 0.5, 1.5, 4.0, 8.0, 22.0, 45.0)
"""Between a node's gossip rounds; 0: an oracle that reads loads as they are."""
ROUTINGS = ("least-loaded", "power-of-two", "nearest")
SEEDS = (0, 1)


def measured(routing: str, period_s: float, seed: int) -> tuple[float, float]:
    """(age of what was looked at, latency), means in s of 3,000 requests in 150 s over three replicas, at a load that needs all."""
    settings = Settings(
        design="replicas", routing=routing, gossip_s=period_s or 0.5, fan_out=2, fresh_loads=period_s == 0, suspect_s=1e4, rebalance_s=0.0,
        seed=seed,
    )  # fmt: skip
    requests = poisson(3000, 20.0, seed, prompt=1200, output=120)
    slow = [Trouble(at_s=20, what="slow", node="a-0", factor=0.5)]
    server = simulate(study(requests, slow, "greedy", small(rtt_s=0.01)), settings).server
    latency_s = float(np.mean([(j.answered - j.arrival) / PS_PER_S for j in server.requests.jobs.values()]))
    return server.views.mean_age_s if period_s and server.views.mean_age_s is not None else 0.0, latency_s


def swept(routing: str) -> list[tuple[float, float]]:
    """(age, latency) for each period, means over the seeds. The nearest is so whatever it knows."""
    periods = PERIODS_S if routing != "nearest" else PERIODS_S[:1]
    return [tuple(np.mean([measured(routing, p, s) for s in SEEDS], axis=0).tolist()) for p in periods]


def main(to: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    table = {r: swept(r) for r in ROUTINGS}
    fresh = min(points[0][1] for points in table.values())
    print("| gossip period, s | " + " | ".join(f"{r}: age, s | latency / oracle's" for r in ROUTINGS[:2]) + " |\n|---|" + "---|" * 4)
    for i, period in enumerate(PERIODS_S):
        cells = [f"{table[r][i][0]:.1f} | {table[r][i][1] / fresh:.2f}" for r in ROUTINGS[:2]]
        print(f"| {period or 'oracle'} | " + " | ".join(cells) + " |")
    print(f"nearest, which looks at no load: {table['nearest'][0][1] / fresh:.2f}")
    figure, axes = plt.subplots(figsize=(6, 3.6), layout="constrained")
    for routing in ROUTINGS[:2]:
        axes.plot([a for a, _ in table[routing]], [t / fresh for _, t in table[routing]], marker="o", label=routing)
    axes.axhline(table["nearest"][0][1] / fresh, color="grey", linestyle="--", label="nearest")
    axes.set(xlabel="mean age of gossiped load [s]", ylabel="mean latency / oracle's", yscale="log")
    axes.legend(frameon=False)
    figure.savefig(to)


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
