"""Decodes with experts from disk under tight budgets, really run and simulated: is the throughput as predicted, and the ranking?

    python -m exec calibrate -o profile.yaml
    python benchmarks/expert_cache_on_rig.py profile.yaml [--group a,b,c] [--repeats 2] [--kept FILE] [--json]

The model is tiny-mixtral's shape with random weights (11 MB an expert), its router's rows of different lengths so that some
experts are popular, written to a temporary folder. Every configuration is run `--repeats` times; its twin is driven by the
routing of the first. Calibration has seen none of them: other budgets, batches, lengths, policies and rates. With --kept,
what was measured is kept in a file from one call to the next (groups can be run one at a time); the table is of all of them.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from exec.calibration.links import relink
from exec.execute import spec_of
from exec.pool import run as pool
from exec.pool.make import make_manifest
from exec.pool.pool import Store
from exec.prompts import byte_prompts
from exec.weights import random_weights, save_hf
from sim import machines
from sim.cli import output
from sim.errors import UserError
from sim.events import Request
from sim.machines.schema import Machine
from sim.models.spec import ModelSpec
from sim.residency import feed

APART = 0.08
"""Policies that measure closer than this are not ranked."""
PROMPT = 40


@dataclass(frozen=True)
class Group:
    """What policies are compared in. ram, device: share of all experts that each holds; runs: (evict, prefetch, work)."""

    batch: int
    gen: int
    ram: float
    device: float
    runs: tuple[tuple[str, str, str], ...]
    rates: dict[str, float] = field(default_factory=dict)


GPU = "gpu"
GROUPS = {
    "a": Group(1, 20, 1.0, 0.5, (
        ("lru", "none", GPU), ("lfu", "none", GPU), ("static", "none", GPU), ("belady", "none", GPU), ("lru", "next-gate", GPU),
        ("lru", "none", "cpu-expert"), ("lru", "none", "hybrid"),
    )),
    "b": Group(1, 14, 0.7, 0.4, (
        ("lru", "none", GPU), ("lfru", "none", GPU), ("belady", "none", GPU), ("lfu", "markov", GPU), ("lfu", "none", "cpu-expert"),
        ("lfu", "none", "hybrid"),
    )),
    "c": Group(4, 7, 0.8, 0.65, (
        ("lru", "none", GPU), ("affinity", "none", GPU), ("sieve", "none", GPU), ("lru", "none", "hybrid"),
    ), {"nvme": 0.3e9, "h2d": 1.5e9}),
}  # fmt: skip


def make_checkpoint(folder: Path, spec: ModelSpec) -> None:
    weights = random_weights(spec, 0)
    for layer in weights.layers:
        layer.router[:] *= np.linspace(0.6, 1.6, spec.experts, dtype=np.float32)[:, None]
    save_hf(weights, spec, folder)
    make_manifest(folder)


def job_of(spec: ModelSpec, machine: Machine, group: Group, run: tuple[str, str, str]) -> pool.CacheJob:
    evict, prefetch, work = run
    slots = spec.layers * spec.experts * pool.slot_bytes(spec)
    names = {"evict": evict, "admit": "contest" if evict == "static" else "always", "prefetch": prefetch, "work": work, "governed": False}
    caching = pool.caching_for(spec, int(group.ram * slots), int(group.device * slots), **names)
    requests = tuple(Request(i, PROMPT, group.gen, group.gen) for i in range(group.batch))
    return pool.CacheJob(spec, relink(machine, group.rates), caching, group.batch, requests, (group.gen,) * group.batch)


def measure(spec: ModelSpec, machine: Machine, store: Store, name: str, repeats: int) -> list[dict[str, Any]]:
    group, before, rows = GROUPS[name], None, []
    prompts = byte_prompts([PROMPT] * group.batch, seed=1)
    for run in group.runs:
        job = job_of(spec, machine, group, run)
        known = before if run[0] in ("static", "belady") else None
        ran = [pool.run(job, store, prompts, before=known) for _ in range(repeats)]
        assert ran[0].outcome.routing is not None
        before = before or feed.of(ran[0].outcome.routing)
        rates = [r.tokens_per_s for r in ran]
        simulated, s = pool.twin(ran[0]), ran[0].served
        measured = float(np.median(rates))
        rows.append({
            "group": name, "run": " ".join(run), "batch": group.batch, "ram": group.ram, "device": group.device,
            "measured": measured, "spread": (max(rates) - min(rates)) / measured, "simulated": simulated.tokens_per_s,
            "error": simulated.tokens_per_s / measured - 1, "hit_rate": s.hits / s.asked,
            "simulated_hit_rate": simulated.served.hits / simulated.served.asked,
        })  # fmt: skip
        print(rows[-1], file=sys.stderr, flush=True)
    return rows


def ranking(rows: list[dict[str, Any]]) -> tuple[int, list[str]]:
    """Pairs of one group that measure apart, and those of them that the simulator puts the other way round."""
    pairs, wrong = 0, []
    for a, b in combinations(rows, 2):
        if a["group"] == b["group"] and abs(a["measured"] / b["measured"] - 1) > APART and abs(b["measured"] / a["measured"] - 1) > APART:
            pairs += 1
            if (a["simulated"] < b["simulated"]) != (a["measured"] < b["measured"]):
                wrong.append(f"{a['group']}: {a['run']} against {b['run']}")
    return pairs, wrong


def misleading(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of each group the pair of runs of which the one that hits less decodes faster by most, on both clocks."""
    widest: dict[str, dict[str, Any]] = {}
    for a, b in ((a, b) for a in rows for b in rows if a["group"] == b["group"]):
        less = all(a[key] < b[key] for key in ("hit_rate", "simulated_hit_rate"))
        gain = min(a[key] / b[key] for key in ("measured", "simulated"))
        if less and gain > 1 + APART and gain > widest.get(a["group"], {"gain": 0})["gain"]:
            widest[a["group"]] = {"group": a["group"], "hits_less": a["run"], "hits_more": b["run"], "gain": gain}
    return list(widest.values())


def show(found: dict[str, Any]) -> None:
    columns = ("group", "evict prefetch work", "batch", "RAM", "device", "tokens/s", "spread", "simulated", "error", "hits", "sim. hits")
    rows = [
        (r["group"], r["run"], r["batch"], f"{r['ram']:.0%}", f"{r['device']:.0%}", f"{r['measured']:.2f}", f"{r['spread']:.1%}",
         f"{r['simulated']:.2f}", f"{r['error']:+.1%}", f"{r['hit_rate']:.3f}", f"{r['simulated_hit_rate']:.3f}")
        for r in found["rows"]
    ]  # fmt: skip
    output.print_table(f"experts from disk on {found['machine']}", columns, rows, numeric=columns[2:])
    print(f"median error {found['median_abs_error']:.1%} over {len(rows)} configurations, worst {found['worst_abs_error']:.1%}")
    right = found["pairs"] - len(found["wrong"])
    for m in found["misleading"]:
        print(f"{m['group']}: {m['hits_less']} hits less than {m['hits_more']} and decodes {m['gain']:.2f} times as fast, on both clocks")
    print(f"{right} of {found['pairs']} pairs over {APART:.0%} apart ranked right; wrong: {found['wrong'] or 'none'}")


def kept_rows(path: Path | None, machine: Machine) -> list[dict[str, Any]]:
    if path is None or not path.exists():
        return []
    return [r for r in map(json.loads, path.read_text().splitlines()) if r["profile"] == machine.digest]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("machine")
    parser.add_argument("--group", default=",".join(GROUPS))
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--kept", type=Path)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    try:
        machine, spec = machines.load(args.machine), spec_of("tiny-mixtral")
    except UserError as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    rows = kept_rows(args.kept, machine)
    wanted = [g for g in args.group.split(",") if g not in {r["group"] for r in rows}]
    if wanted:
        with tempfile.TemporaryDirectory(prefix="expert-cache-") as folder:
            make_checkpoint(Path(folder), spec)
            with Store(Path(folder), spec) as store:
                rows += [row for g in wanted for row in measure(spec, machine, store, g, args.repeats)]
    if args.kept is not None:
        args.kept.write_text("".join(json.dumps({**r, "profile": machine.digest}) + "\n" for r in rows))
    errors = [abs(r["error"]) for r in rows]
    pairs, wrong = ranking(rows)
    found = {
        "machine": machine.name, "rows": rows, "median_abs_error": float(np.median(errors)), "worst_abs_error": max(errors), "pairs": pairs,
        "wrong": wrong, "misleading": misleading(rows),
    }  # fmt: skip
    output.print_json(found) if args.json else show(found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
