"""Is the policy that the search finds as good as the best of many that are really run?

    python benchmarks/policy_on_rig.py [PROFILE.yaml] [--policies 40] [--rounds 2] [--json]

Searches tiny-mixtral on a calibrated rig, draws other feasible policies from the same space by a seed, and really runs all
of them, turn by turn: the policy found, then the drawn ones, once a round. Prints the ranking by measured throughput and
the error of the predictions. Without a profile this computer is calibrated first. Runs that are done are kept in
out/policy_on_rig.jsonl: after Ctrl-C the same command goes on.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from exec.execute import execute, spec_of, weights_of
from exec.validation.run import Finished
from sim import machines
from sim.cli.output import print_table
from sim.errors import UserError
from sim.job import Job
from sim.machines.schema import Machine
from sim.policy import Found, Point, Space, search
from sim.policy.fit import job_of
from sim.policy.space import orders
from sim.schedulers.policy import Policy
from sim.simulate import simulate_job
from sim.workloads.lengths import Fixed, Uniform
from sim.workloads.schema import Workload

MODEL = "tiny-mixtral"
WORKLOAD = Workload(
    name="rig", source="chosen for this benchmark: a run of the largest batch takes some seconds", prompt=Uniform(min=16, max=64),
    generation=Fixed(tokens=12),
)  # fmt: skip
KEPT = Path("out/policy_on_rig.jsonl")
GPU_BYTES = 320 << 20
"""Budget of the device: four fifths of the model's weights, so that every policy offloads."""


def space(machine: Machine) -> Space:
    """Batches of at most 96 sequences, which run for seconds; every number of static experts, and every scheduler."""
    return Space(orders(machine), tuple(range(1, 25)), tuple(range(1, 17)), tuple(range(9)), (1, 2, 4), most=96)


def drawn(machine: Machine, count: int, seed: int) -> list[Job]:
    """Feasible points of the space, each as likely, all different."""
    dice, found = random.Random(seed), dict[Point, Job]()
    points = list(space(machine).points())
    while len(found) < count:
        point = dice.choice(points)
        try:
            found.setdefault(point, job_of(point, spec_of(MODEL), machine, WORKLOAD, 0))
        except UserError:
            continue  # it does not fit
    return list(found.values())


def measure(jobs: list[Job], rounds: int, finished: Finished) -> list[list[float]]:
    """Tokens/s of each job, a figure for each round."""
    weights = weights_of(MODEL, spec_of(MODEL), 0)
    rows: list[list[float]] = [[] for _ in jobs]
    for turn in range(rounds):
        for i, job in enumerate(jobs):
            kept = finished.get(job.policy, turn)
            if kept is None:
                summary = execute(job, weights).summary
                kept = {"tokens_per_s": summary["tokens_per_s"], "makespan_s": summary["makespan_s"]}
                finished.add(job.policy, turn, kept)
                print(f"round {turn + 1}, {i + 1} of {len(jobs)}: {kept['makespan_s']:.1f} s", file=sys.stderr, flush=True)
            rows[i].append(kept["tokens_per_s"])
    return rows


def described(policy: Policy, measured: list[float], simulated: float, found: bool) -> dict[str, Any]:
    median = float(np.median(measured))
    return {
        "found": found, "scheduler": policy.scheduler, "attention": policy.attention, "batch": policy.batch,
        "microbatch": policy.microbatch,
        "static_experts": policy.static_experts, "prefill_microbatch": policy.prefill_rows, "measured_tokens_per_s": median,
        "spread": (max(measured) - min(measured)) / median, "predicted_tokens_per_s": simulated, "error": simulated / median - 1,
    }  # fmt: skip


def compare(machine: Machine, found: Found, count: int, rounds: int, seed: int) -> dict[str, Any]:
    jobs = drawn(machine, count, seed)
    p = found.policy
    order = next(o for o in orders(machine) if o == (p.scheduler, p.attention))
    best = Point(order, p.microbatch, p.batch // p.microbatch, p.static_experts, p.prefill_rows, p.pages)
    jobs.insert(0, job_of(best, spec_of(MODEL), machine, WORKLOAD, 0))
    measured = measure(jobs, rounds, Finished(KEPT, machine))
    simulated = [found.predicted_tokens_per_s, *(simulate_job(job).summary["tokens_per_s"] for job in jobs[1:])]
    rows = [described(j.policy, m, s, j is jobs[0]) for j, m, s in zip(jobs, measured, simulated, strict=True)]
    random_best = max(r["measured_tokens_per_s"] for r in rows[1:])
    return {
        "machine": machine.name, "rounds": rounds, "of_the_best_random": rows[0]["measured_tokens_per_s"] / random_best,
        "prediction_error": rows[0]["error"], "median_absolute_error": float(np.median([abs(r["error"]) for r in rows])),
        "search_s": found.wall_s, "rows": sorted(rows, key=lambda r: -r["measured_tokens_per_s"]),
    }  # fmt: skip


def profile(path: str | None) -> Machine:
    if path is None:
        path = "out/policy_on_rig.yaml"
        Path(path).parent.mkdir(exist_ok=True)
        subprocess.run([sys.executable, "-m", "exec", "calibrate", "--rig", "laptop-rig", "-o", path], check=True)
    machine = machines.load(path)
    gpu = machine.memories["gpu"].model_copy(update={"bytes": GPU_BYTES, "source": "chosen for this benchmark"})
    return machine.model_copy(update={"memories": {**machine.memories, "gpu": gpu}})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("profile", nargs="?")
    parser.add_argument("--policies", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--refine", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    machine = profile(args.profile)
    KEPT.parent.mkdir(exist_ok=True)
    found = search(spec_of(MODEL), machine, WORKLOAD, refine=args.refine, space=space(machine))
    result = compare(machine, found, args.policies, args.rounds, args.seed)
    if args.json:
        print(json.dumps(result, indent=2))
        return
    columns = ("", "scheduler", "attention", "batch", "static", "prefill", "measured tok/s", "spread", "predicted", "error")
    print_table(f"tiny-mixtral on {machine.name}, {args.policies} random policies and the one found", columns, [
        ("found" if r["found"] else i + 1, r["scheduler"], r["attention"], f"{r['batch']}/{r['microbatch']}", r["static_experts"],
         r["prefill_microbatch"], f"{r['measured_tokens_per_s']:.1f}", f"{r['spread']:.1%}", f"{r['predicted_tokens_per_s']:.1f}",
         f"{r['error']:+.1%}")
        for i, r in enumerate(result["rows"])
    ], numeric=columns[3:])  # fmt: skip
    print(
        f"\nthe policy found reaches {result['of_the_best_random']:.3f} of the best random one; its throughput was predicted "
        f"{result['prediction_error']:+.1%} off; median error of all {result['median_absolute_error']:.1%}; "
        f"searched in {result['search_s']:.1f} s"
    )


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(f"interrupted; finished runs are kept in {KEPT}, the same command goes on")
