"""How long does the policy search take, and what does refinement add?

    python benchmarks/policy_search.py [--refine 8] [--workload mtbench] [--models a,b] [--machines c,d] [--json]

Every built-in model on every built-in machine: seconds for the proven optimum alone and with the best simulated, the bound
and the prediction of the policy found. What does not fit says so.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from typing import Any

from sim import machines, models, workloads
from sim.cli.output import print_table
from sim.errors import UserError
from sim.policy import search


def answer(model: str, machine: str, workload: str, refine: int) -> dict[str, Any]:
    asked = (models.load(model), machines.load(machine), workloads.load(workload))
    row: dict[str, Any] = {"model": model, "machine": machine}
    try:
        for name, budget in (("bound_s", 0), ("refined_s", refine)):
            began = time.perf_counter()
            found = search(*asked, refine=budget)
            row[name] = time.perf_counter() - began
    except UserError as e:
        return {**row, "refused": str(e)}
    p = found.policy
    return {
        **row, "scheduler": p.scheduler, "attention": p.attention, "batch": p.batch, "microbatch": p.microbatch,
        "static_experts": p.static_experts, "evaluated": found.searched["evaluated"], "points": found.searched["points"],
        "predicted_tokens_per_s": found.predicted_tokens_per_s, "hrm_bound_tokens_per_s": found.hrm_bound_tokens_per_s,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--refine", type=int, default=8)
    parser.add_argument("--workload", default="mtbench")
    parser.add_argument("--models", default=",".join(models.names()))
    parser.add_argument("--machines", default=",".join(name for name in machines.names() if machines.load(name).lanes))
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    search(models.load("tiny-mixtral"), machines.load("t4"), workloads.load("mtbench"), refine=1)  # compiles the engine
    rows = []
    for model in args.models.split(","):
        for machine in args.machines.split(","):
            rows.append(answer(model, machine, args.workload, args.refine))
            print(rows[-1], file=sys.stderr, flush=True)
    if args.json:
        print(json.dumps({"workload": args.workload, "refine": args.refine, "rows": rows}, indent=2))
        return
    columns = ("model", "machine", "bound alone", "refined", "scheduler", "attention", "batch", "static", "predicted tok/s", "bound tok/s")
    print_table(f"policy search, {args.workload}, {args.refine} policies simulated", columns, [
        (r["model"], r["machine"], f"{r['bound_s']:.2f} s", f"{r['refined_s']:.1f} s", r["scheduler"], r["attention"],
         f"{r['batch']}/{r['microbatch']}", r["static_experts"], f"{r['predicted_tokens_per_s']:.4g}", f"{r['hrm_bound_tokens_per_s']:.4g}")
        for r in rows if "refused" not in r
    ], numeric=columns[2:])  # fmt: skip
    done = [r for r in rows if "refused" not in r]
    print(f"\nlongest: {max(r['bound_s'] for r in done):.1f} s without refinement, {max(r['refined_s'] for r in done):.1f} s with it")
    for r in rows:
        if "refused" in r:
            print(f"refused: {r['refused']}")


if __name__ == "__main__":
    main()
