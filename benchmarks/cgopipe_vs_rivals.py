"""Is CGOPipe faster than its rivals on a calibrated rig, and does the simulator say so too?

    python benchmarks/cgopipe_vs_rivals.py PROFILE.yaml [--json]

Each scheduler serves the same requests with the same micro-batch, at the largest batch up to the asked one
that fits its memory. Then two configurations in which CGOPipe has nothing to win: one micro-batch only, and
native links. Runs take turns; medians of `--repeats`.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import numpy as np

from exec.calibration.links import relink
from exec.execute import execute, simulated_twin, spec_of, weights_of
from sim import machines
from sim.cli.output import print_table
from sim.errors import UserError
from sim.job import Job, prepare
from sim.machines.schema import Machine
from sim.schedulers.policy import Policy
from sim.workloads.lengths import Fixed, Uniform
from sim.workloads.schema import Workload

MODEL = "tiny-mixtral"
RIVALS = ("cgopipe", "flexgen", "flexgen-c", "fastdecode", "deepspeed")
SETTINGS: dict[str, dict[str, Any]] = {
    "the rig, many micro-batches": {"batch": 192, "microbatch": 16, "prompt": 128, "gen": 24, "rates": {}},
    "one micro-batch": {"batch": 24, "microbatch": 24, "prompt": 48, "gen": 12, "rates": {}},
    "native links": {"batch": 96, "microbatch": 16, "prompt": 48, "gen": 12, "rates": {"h2d": 0.0, "d2h": 0.0}},
}


def job_for(machine: Machine, scheduler: str, setting: dict[str, Any]) -> Job:
    """The largest batch that fits, in whole micro-batches."""
    workload = Workload(
        name="rivals", source="chosen for this benchmark", prompt=Uniform(min=setting["prompt"] // 2, max=setting["prompt"]),
        generation=Fixed(tokens=setting["gen"]),
    )  # fmt: skip
    step = setting["microbatch"]
    for batch in range(setting["batch"], 0, -step):
        try:
            return prepare(spec_of(MODEL), relink(machine, setting["rates"]), workload, scheduler, Policy(batch=batch, microbatch=step))
        except UserError as e:
            if batch == step:
                raise e from None
    raise AssertionError("no batch was tried")


def compare(machine: Machine, setting: dict[str, Any], repeats: int) -> list[dict[str, Any]]:
    weights = weights_of(MODEL, spec_of(MODEL), 0)
    jobs = {s: job_for(machine, s, setting) for s in RIVALS}
    runs: dict[str, list[Any]] = {s: [] for s in RIVALS}
    for _ in range(repeats):
        for s, job in jobs.items():
            runs[s].append(execute(job, weights, record_routing=not runs[s]))
    rows = []
    for s, done in runs.items():
        measured = [r.summary["tokens_per_s"] for r in done]
        simulated = simulated_twin(done[0]).summary["tokens_per_s"]
        rows.append({
            "scheduler": s, "batch": jobs[s].policy.batch, "measured_tokens_per_s": float(np.median(measured)),
            "spread": (max(measured) - min(measured)) / float(np.median(measured)), "simulated_tokens_per_s": simulated,
        })  # fmt: skip
    base = next(r for r in rows if r["scheduler"] == "flexgen")
    for r in rows:
        for clock in ("measured", "simulated"):
            r[f"{clock}_speedup"] = r[f"{clock}_tokens_per_s"] / base[f"{clock}_tokens_per_s"]
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("profile")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    machine = machines.load(args.profile)
    results = {name: compare(machine, setting, args.repeats) for name, setting in SETTINGS.items()}
    if args.json:
        print(json.dumps(results, indent=2))
        return
    columns = (
        "scheduler", "batch", "measured tok/s", "spread", "simulated tok/s", "error", "measured / flexgen", "simulated / flexgen",
    )  # fmt: skip
    for name, rows in results.items():
        print_table(name, columns, [
            (r["scheduler"], r["batch"], f"{r['measured_tokens_per_s']:.1f}", f"{r['spread']:.1%}", f"{r['simulated_tokens_per_s']:.1f}",
             f"{r['simulated_tokens_per_s'] / r['measured_tokens_per_s'] - 1:+.1%}", f"{r['measured_speedup']:.3f}",
             f"{r['simulated_speedup']:.3f}")
            for r in rows
        ], numeric=columns[1:])  # fmt: skip
        print()


if __name__ == "__main__":
    main()
