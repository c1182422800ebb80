"""How far is the lower bound from the best schedule there is?

    PYTHONPATH=. python benchmarks/bound_gap.py [--plans 300] [--tasks 6] [--seed 0] [--json]

Random plans, small enough that every schedule can be tried: tasks on two lanes and three resources, ordered by
dependencies and by buffers. Reported is the share of the best makespan that the bound does not prove, beside that of
the larger of critical path and busiest resource.
"""

from __future__ import annotations

import argparse
import json
from random import Random

import numpy as np

from sim.bounds import bounds
from sim.cli.output import print_table
from sim.plan import plan_of
from sim.tasks import Task, Work
from tests.engine_support.fakes import Demand, FakeCosts, Lane
from tests.sim.explain.exhaustive import servers_of, shortest_s

LANES = (Lane("a"), Lane("b", "ready", 2))


def drawn(rng: Random, count: int) -> tuple[tuple[Task, ...], FakeCosts]:
    """A plan and the prices of its ops; times of whole seconds, so that nothing rounds."""
    def demands() -> list[Demand]:
        return [Demand(r, float(rng.randint(1, 9)), float(rng.choice((1, 2, 4)))) for r in rng.sample(range(3), 2)]

    rows = {f"op{k}": (rng.choice((0, 0, 10**12)), demands()) for k in range(4)}
    costs = FakeCosts({"x": 2.0, "y": 3.0, "z": 4.0}, rows)
    tasks = tuple(
        Task(
            i, Work(rng.choice(list(rows))), rng.choice("ab"), tuple(rng.sample(range(i), min(i, rng.choice((0, 1, 1, 2))))),
            reads=tuple(rng.sample("uvw", rng.choice((0, 0, 1)))), writes=tuple(rng.sample("uvw", rng.choice((0, 0, 1)))),
        )
        for i in range(count)
    )  # fmt: skip
    return tasks, costs


def gaps(plans: int, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Of each plan: the bound's gap, and that of the larger of its two simplest parts [plans]."""
    rng = Random(seed)
    found = []
    for _ in range(plans):
        tasks, costs = drawn(rng, count)
        best = float(shortest_s(tasks, costs, LANES))
        b = bounds([plan_of(tasks)], costs, servers_of(LANES))
        assert b.seconds <= best, (tasks, b, best)
        found.append((b.gap(best), 1 - max(b.critical_path_s, *b.resources_s.values()) / best))
    return tuple(np.array(column) for column in zip(*found, strict=True))  # type: ignore[return-value]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--plans", type=int, default=300)
    parser.add_argument("--tasks", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    named = dict(zip(("the bound", "critical path or busiest resource"), gaps(args.plans, args.tasks, args.seed), strict=True))
    if args.json:
        print(json.dumps({name: values.tolist() for name, values in named.items()}))
        return
    rows = [
        (name, f"{(g < 1e-6).mean():.0%}", f"{np.median(g):.1%}", f"{g.mean():.1%}", f"{np.quantile(g, 0.9):.1%}", f"{g.max():.1%}")
        for name, g in named.items()
    ]  # fmt: skip
    columns = ("", "tight", "median gap", "mean", "90th percentile", "largest")
    title = f"{args.plans} random plans of {args.tasks} tasks: share of the best makespan that is not proven"
    print_table(title, columns, rows, numeric=columns[1:])


if __name__ == "__main__":
    main()
