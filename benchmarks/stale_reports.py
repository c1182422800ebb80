"""Regret of stale load reports: mean latency over that with fresh ones, by the reports' age and by routing among replicas.

python benchmarks/stale_reports.py OUT.svg     three replicas, one at half its speed after 20 s
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

from sim.swarm.settings import Settings
from sim.swarm.study import simulate
from sim.swarm.trouble import Trouble
from sim.tasks import PS_PER_S
from tests.sim.swarm.campaign import poisson, small, study

AGES_S = (0.0, 2.0, 5.0, 10.0, 30.0, 60.0)
ROUTINGS = ("least-loaded", "power-of-two", "nearest")
RUNS = 1


def mean_latency_s(routing: str, age_s: float, seed: int) -> float:
    """Of 3,000 requests in 150 s over three replicas, at a load that needs all of them."""
    requests = poisson(3000, 20.0, seed, prompt=1200, output=120)
    settings = Settings(design="replicas", routing=routing, report_s=0.5, report_age_s=age_s, rebalance_s=0.0, seed=seed)
    slow = [Trouble(at_s=20, what="slow", node=f"{r}-0", factor=0.5) for r in "a"]
    done = simulate(study(requests, slow, "greedy", small(rtt_s=0.01)), replace(settings, suspect_s=30.0))
    return float(np.mean([(j.answered - j.arrival) / PS_PER_S for j in done.server.requests.jobs.values()]))


def main(to: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    fresh = min(np.mean([mean_latency_s(r, 0.0, s) for s in range(RUNS)]) for r in ROUTINGS[:2])
    figure, axes = plt.subplots(figsize=(6, 3.6), layout="constrained")
    print("| age of reports, s | " + " | ".join(ROUTINGS) + " |\n|---|" + "---|" * len(ROUTINGS))
    ages = {r: AGES_S if r != "nearest" else AGES_S[:1] for r in ROUTINGS}  # the nearest is so whatever the reports say
    table = {r: [float(np.mean([mean_latency_s(r, a, s) for s in range(RUNS)]) / fresh) for a in ages[r]] for r in ROUTINGS}
    table["nearest"] *= len(AGES_S)
    for i, age in enumerate(AGES_S):
        print(f"| {age:g} | " + " | ".join(f"{table[r][i]:.2f}" for r in ROUTINGS) + " |")
    for routing, values in table.items():
        axes.plot(AGES_S, values, marker="o", label=routing)
    axes.set(xlabel="age of load reports [s]", ylabel="mean latency / best with fresh reports", yscale="log")
    axes.legend(frameon=False)
    figure.savefig(to)


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
