"""The memory-aware router: time a token in the kernel, and the throughput of two threads.

    python benchmarks/resident_router.py [--json]

Tokens are routed one call each, from compiled code: choice with bonus, weights, counts, paging requests, moving average, and an
adapting bonus. The ratio of two threads is the median over pairs of runs that alternate with one thread's; beside it stands
that of a loop that only compares numbers, in the same turns: what the computer's second core gave to branching code at that time.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from kernels.jit import jit
from kernels.router.resident import METRICS, Lean, Shards, route_some, shards

SHAPES = ((8, 2, 1.0), (32, 4, None), (128, 8, 5.0))
"""(experts, top-k, microseconds a token that issue 8 allows)."""
TOKENS, SECONDS, REPEATS = 4096, 0.15, 15


@jit
def token_by_token(logits, resident, costs, lean, counts, requests, affinity, bonus, scratch, ids, weights, rounds, metrics):
    """One call of the router for each token."""
    for _ in range(rounds):
        for t in range(logits.shape[0]):
            route_some(logits, resident, costs, lean, counts, requests, affinity, bonus, scratch, ids, weights, t, t + 1, metrics)


@jit
def plain_loop(numbers, rounds):
    """Compares, as choosing does, and writes nothing that anybody shares."""
    found = 0
    for _ in range(rounds):
        for x in numbers:
            if x > 0.5:
                found += 1
            elif x > 0.25:
                found -= 3
            else:
                found ^= 7
    return found


class Plain:
    """`plain_loop` as a job, over as many numbers as 4096 tokens of 8 experts have logits."""

    def __init__(self, seed: int) -> None:
        self.numbers = np.random.default_rng(seed).random(8 * TOKENS, np.float32)

    def run(self, rounds: int) -> None:
        plain_loop(self.numbers, rounds)


class Job:
    """One thread's data and shard."""

    def __init__(self, experts: int, top_k: int, made: Shards, shard: int, metrics: bool, priced: bool) -> None:
        rng = np.random.default_rng(shard)
        self.arguments = (
            rng.standard_normal((TOKENS, experts)).astype(np.float32), (rng.random(experts) < 0.25).astype(np.uint8),
            rng.gamma(0.5, 0.1, (experts, experts)).astype(np.float32) if priced else None, Lean(0.1, 1.0, target=0.6),
            made.counts[shard], made.requests[shard], made.affinity[shard], made.bonus[shard],
            made.scratch[shard : shard + 1], np.zeros((TOKENS, top_k), np.int16), np.zeros((TOKENS, top_k), np.float32),
        )  # fmt: skip
        self.metrics = np.zeros(METRICS, np.int64) if metrics else None

    def run(self, rounds: int) -> None:
        token_by_token(*self.arguments, rounds, self.metrics)


def seconds(pool: ThreadPoolExecutor, jobs: Sequence[Job | Plain], rounds: int) -> float:
    """Wall time until all jobs have run `rounds` times."""
    began = time.perf_counter()
    for done in [pool.submit(job.run, rounds) for job in jobs]:
        done.result()
    return time.perf_counter() - began


def measure(pool: ThreadPoolExecutor, experts: int, top_k: int, allowed: float | None, metrics: bool, priced: bool) -> dict[str, Any]:
    made = shards(2, experts, Lean(0.1, 1.0))
    jobs = [Job(experts, top_k, made, s, metrics, priced) for s in range(2)]
    plain = [Plain(seed) for seed in range(2)]
    for job in (*jobs, plain[0]):
        job.run(1)
    rounds, turns = (max(1, round(SECONDS / seconds(pool, some[:1], 1))) for some in (jobs, plain))
    single, ratios, computer = [], [], []
    for _ in range(REPEATS):
        one, two = seconds(pool, jobs[:1], rounds), seconds(pool, jobs, rounds)
        single.append(one / (rounds * TOKENS) * 1e6)
        ratios.append(2 * one / two)
        computer.append(2 * seconds(pool, plain[:1], turns) / seconds(pool, plain, turns))
    return {
        "experts": experts, "top_k": top_k, "priced": priced, "metrics": metrics,
        "us_per_token": statistics.median(single), "us_allowed": allowed,
        "us_samples": single, "two_threads": statistics.median(ratios), "two_threads_samples": ratios,
        "plain_loop": statistics.median(computer), "plain_loop_samples": computer,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true")
    as_json = parser.parse_args().json
    with ThreadPoolExecutor(2) as pool:
        ways = ((False, False), (True, False), (False, True))
        rows = [measure(pool, *shape, metrics, priced) for shape in SHAPES for metrics, priced in ways]
    if as_json:
        print(json.dumps({"rows": rows}))
        return
    print("experts  top-k  bonus      metrics  us/token (allowed)   two threads  (plain loop)")
    for r in rows:
        allowed = f"({r['us_allowed']:g})" if r["us_allowed"] else ""
        on = "on" if r["metrics"] else "off"
        what = f"{r['experts']:7} {r['top_k']:6}  {'by price' if r['priced'] else 'on logits':9}  {on:7}"
        print(f"{what} {r['us_per_token']:9.3f} {allowed:9} {r['two_threads']:10.2f} x  {r['plain_loop']:9.2f} x")


if __name__ == "__main__":
    main()
