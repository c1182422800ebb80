"""Do runs change with the link as `python -m sim explain` says they do?

    python benchmarks/elasticity_on_rig.py [PROFILE.yaml] [--schedulers cgopipe,flexgen] [--repeats 5] [--json]

tiny-mixtral really runs on a calibrated rig whose paced host link is set to 0.75, 1 and 1.25 times its rate. The runs
take turns, so that what else the computer does falls on all alike; a change is the median over rounds of the ratio to
the round's run at 1. Without a profile, laptop-rig is calibrated first (one to two minutes).
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import numpy as np

from exec.execute import execute, spec_of, weights_of
from sim import machines
from sim.cli.output import note, print_table
from sim.explain.retime import Twin
from sim.explain.upgrades import with_capacity
from sim.job import prepare
from sim.machines.schema import Machine
from sim.schedulers.policy import Policy
from sim.workloads.lengths import Fixed, Uniform
from sim.workloads.schema import Workload

MODEL, LINK = "tiny-mixtral", "link.h2d"
FACTORS = (0.75, 1.0, 1.25)
POLICY = Policy(batch=96, microbatch=16)
WORKLOAD = Workload(name="elasticity", source="chosen for this benchmark", prompt=Uniform(min=24, max=48), generation=Fixed(tokens=16))


def profile(path: str | None) -> Machine:
    if path is not None:
        return machines.load(path)
    from exec.calibration.profile import calibrate

    return calibrate(machines.load_rig("laptop-rig"), lambda text: note(text))


def measure(machine: Machine, scheduler: str, repeats: int) -> list[dict[str, Any]]:
    """One row for each factor but 1: what throughput did, and what was said of it."""
    spec = spec_of(MODEL)
    weights = weights_of(MODEL, spec, 0)
    jobs = {f: prepare(spec, with_capacity(machine, LINK, f), WORKLOAD, scheduler, POLICY) for f in FACTORS}
    twin = Twin(jobs[1.0])
    said = {f: twin.on(job.machine).tokens_per_s for f, job in jobs.items()}
    execute(jobs[1.0], weights)  # the first run of a process is slower
    ran: dict[float, list[float]] = {f: [] for f in FACTORS}
    for i in range(repeats):
        for f in FACTORS if i % 2 else FACTORS[::-1]:
            ran[f].append(execute(jobs[f], weights).summary["tokens_per_s"])
    return [_row(scheduler, f, said, {k: np.array(v) for k, v in ran.items()}) for f in FACTORS if f != 1.0]


def _row(scheduler: str, f: float, said: dict[float, float], ran: dict[float, np.ndarray]) -> dict[str, Any]:
    changes = ran[f] / ran[1.0] - 1
    measured, predicted = float(np.median(changes)), said[f] / said[1.0] - 1
    return {
        "scheduler": scheduler, "link": f, "measured": measured, "spread": float(np.ptp(changes)), "predicted": predicted,
        "difference_points": 100 * (predicted - measured), "measured_tokens_per_s": float(np.median(ran[f])),
        "measured_tokens_per_s_at_1": float(np.median(ran[1.0])), "simulated_tokens_per_s": said[f],
        "samples_tokens_per_s": {str(k): v.tolist() for k, v in ran.items()},
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("profile", nargs="?")
    parser.add_argument("--schedulers", default="cgopipe,flexgen")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    machine = profile(args.profile)
    rows = [row for s in args.schedulers.split(",") for row in measure(machine, s, args.repeats)]
    if args.json:
        print(json.dumps({"machine": machine.name, "model": MODEL, "results": rows}, indent=2))
        return
    columns = ("scheduler", "link", "measured", "spread", "predicted", "difference, points", "tok/s at 1", "simulated / measured")
    print_table(f"Throughput of {MODEL} on {machine.name} when {LINK} changes", columns, [
        (r["scheduler"], f"x {r['link']:g}", f"{r['measured']:+.1%}", f"{r['spread']:.1%}", f"{r['predicted']:+.1%}",
         f"{r['difference_points']:+.2f}", f"{r['measured_tokens_per_s_at_1']:.1f}",
         f"{r['simulated_tokens_per_s'] / r['measured_tokens_per_s'] - 1:+.1%}")
        for r in rows
    ], numeric=columns[2:])  # fmt: skip


if __name__ == "__main__":
    main()
