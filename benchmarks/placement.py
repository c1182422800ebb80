"""Placement policies on recorded load: load against affinity, stale load, time to place.

    python benchmarks/placement.py [--data ../shared/data] [--only front,stale,time] [--plot docs/images/placement-front.svg] [--json]

front: GPUs touched and balancedness on a dataset that no policy saw, mean over the datasets of the gpt-oss-20b trace, against
two rivals run here: largest-first (LPT) and a swap search on co-activation, alone and with load at weight 0.3; `joint` asked to
beat each rival chooses its pull without the dataset that is scored. "Told" is what `joint` reaches where it is fitted on the
very tokens on which it is scored: nobody who does not see them does better.
stale: balancedness on a dataset left out, spares for one copy a GPU; settings chosen on other splits than those that are
scored (nested), or one by one. time: 61 layers x 256 experts on 144 unequal GPUs.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from swap_search import swapped

from sim.cli.output import print_table
from sim.placement import Gpus, Placement, Problem, Sample, measures
from sim.placement.held_out import folds
from sim.placement.joint import Joint
from sim.placement.policy import load

Array = NDArray[Any]
PULLS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.8, 1.4, 4)
TOLD = (0.35, 0.5, 0.8)
NOMINALS = (0.1, 0.25, 0.5, 1.0)


class Trace:
    """gpt-oss-20b tokens by dataset: experts [tokens, layers, k], dataset [tokens]; counts [datasets, layers, experts]."""

    def __init__(self, folder: Path) -> None:
        rows = json.loads((folder / "sequences.json").read_text())
        self.names = sorted({row["dataset"] for row in rows})
        self.experts = np.load(folder / "routes.npz")["experts"].astype(np.int16)
        self.dataset = np.concatenate([np.full(row["tokens"], self.names.index(row["dataset"])) for row in rows])
        self.counts = np.stack([counted(self.experts[self.dataset == i], 32) for i in range(len(self.names))])

    def without(self, left_out: int) -> tuple[Array, Sample]:
        """Windows and tokens of all other datasets."""
        rest = self.dataset != left_out
        return np.delete(self.counts, left_out, 0), Sample(self.experts[rest], np.unique(self.dataset[rest], return_inverse=True)[1])

    def only(self, i: int) -> Sample:
        rows = self.experts[self.dataset == i]
        return Sample(rows, np.zeros(len(rows), np.int64))


def counted(experts: Array, most: int) -> Array:
    layers = experts.shape[1]
    return np.stack([np.bincount(experts[:, i].ravel(), minlength=most) for i in range(layers)]).astype(float)


def front(trace: Trace, gpus: int, tell: Callable[[str], None]) -> list[dict[str, Any]]:
    """Mean over the datasets left out, of every policy and rival."""
    sums: dict[str, list[tuple[float, float, float]]] = {}
    for i in range(len(trace.names)):
        tell(f"front: {gpus} GPUs, without {trace.names[i]}")
        windows, sample = trace.without(i)
        problem, test = Problem(windows, Gpus.even(gpus, 32), sample), trace.only(i)
        placements = {
            "round-robin": load("round-robin").place(problem), "greedy (LPT)": load("greedy").place(problem),
            "swap search, co-activation": swapped(problem, 0.0), "swap search, load at 0.3": swapped(problem, 0.3),
            "affinity": load("affinity").place(problem),
        }  # fmt: skip
        placements["joint"] = load("joint").place(problem, tell)
        placements["joint, to beat LPT"] = load("joint:beat=greedy").place(problem, tell)
        for name, weight in (("co-activation", 0.0), ("load at 0.3", 0.3)):
            pull = Joint().beating(problem, lambda part, weight=weight: swapped(part, weight), tell)
            placements[f"joint, to beat {name}"] = Joint(pull).place(problem)
        placements |= {f"joint, pull {p}": load(f"joint:pull={p}").place(problem) for p in PULLS}
        told = Problem(trace.counts[i][None], problem.gpus, test)
        placements |= {f"told, pull {p}": load(f"joint:pull={p}").place(told) for p in TOLD}
        for name, placement in placements.items():
            sums.setdefault(name, []).append((
                measures.gpus_touched(placement, test, problem.gpus), measures.balancedness(placement, trace.counts[i], problem.gpus),
                measures.balancedness(placement, windows.sum(0), problem.gpus),
            ))  # fmt: skip
    keys = ("gpus_touched", "balancedness_test", "balancedness")
    return [{"gpus": gpus, "policy": n, **dict(zip(keys, np.mean(rows, 0).tolist(), strict=True))} for n, rows in sums.items()]


def stale(trace: Trace, gpus: int, tell: Callable[[str], None]) -> list[dict[str, Any]]:
    """Fitted on the other datasets, scored on the one left out; and on the load that was fitted."""
    fleet, n = Gpus.even(gpus, 32, gpus), len(trace.names)
    test: dict[str, list[float]] = {}
    same: dict[str, list[float]] = {}
    moves: dict[str, list[int]] = {}

    def score(name: str, placement: Placement, fitted: Array, i: int, current: Placement | None = None) -> Placement:
        test.setdefault(name, []).append(measures.balancedness(placement, trace.counts[i], fleet))
        same.setdefault(name, []).append(measures.balancedness(placement, fitted, fleet))
        moves.setdefault(name, []).append(placement.moved(current) if current is not None else 0)
        return placement

    for i in range(n):
        tell(f"stale: {gpus} + {gpus}, without {trace.names[i]}")
        windows, sample = trace.without(i)
        pooled = windows.sum(0)
        ours = Problem(windows, fleet)
        now = score("eplb, pooled", load("eplb").place(Problem(pooled[None], fleet)), pooled, i)
        mean = (windows / windows.sum(2, keepdims=True)).mean(0)
        score("eplb, mean of datasets", load("eplb").place(Problem(mean[None] * 1e6, fleet)), mean, i)
        for j in range(n):
            if j != i:
                score("eplb, one dataset", load("eplb").place(Problem(trace.counts[j][None], fleet)), trace.counts[j], i)
                score("robust, one dataset", load("robust").place(Problem(trace.counts[j][None], fleet)), trace.counts[j], i)
        score("robust, datasets", load("robust").place(ours.with_current(now)), pooled, i, now)
        for nominal in NOMINALS:
            score(f"robust, nominal {nominal}", load(f"robust:nominal={nominal}").place(ours.with_current(now)), pooled, i, now)
        nominal = nested_nominal(ours)
        tell(f"stale: nominal {nominal} does best on the datasets seen")
        score("robust, nominal nested", load(f"robust:nominal={nominal}").place(ours.with_current(now)), pooled, i, now)
        score("robust, half the moves", load("robust:moves=0.5").place(ours.with_current(now)), pooled, i, now)
        score("robust, trace", load("robust").place(Problem(windows, fleet, sample, now)), pooled, i, now)
        unsplit = Problem(pooled[None], fleet, Sample(sample.experts, sample.window * 0), now)
        score("robust, trace not split", load("robust").place(unsplit), pooled, i, now)
    return [
        {"gpus": gpus, "spares": gpus, "policy": k, "balancedness_test": float(np.mean(test[k])), "balancedness": float(np.mean(same[k])),
         "moved": float(np.mean(moves[k]))}
        for k in test
    ]  # fmt: skip


def nested_nominal(problem: Problem) -> float:
    """The nominal that does best where each dataset seen is left out in turn: chosen without the dataset that is scored."""
    parts = folds(problem)

    def mean_score(nominal: float) -> float:
        return float(np.mean([part.score(load(f"robust:nominal={nominal}").place(part.problem)) for part in parts]))

    return max(NOMINALS, key=mean_score)


def unequal(layers: int = 61, experts: int = 256, gpus: int = 144, windows: int = 8, tokens: int = 4096) -> Problem:
    """Log-normal load that differs between windows, tokens drawn by it, GPUs of three speeds with 2 to 4 slots."""
    rng = np.random.default_rng(0)
    popularity = 0.7 * rng.standard_normal((1, layers, experts)) + 0.35 * rng.standard_normal((windows, layers, experts))
    waits = rng.standard_exponential((tokens, layers, experts), np.float32) / np.exp(popularity.mean(0)).astype(np.float32)
    chosen = np.argpartition(waits, 7, axis=2)[:, :, :8].astype(np.int16)
    number, speed, slots = np.arange(gpus), rng.choice([1.0, 0.7, 0.5], gpus), rng.integers(2, 5, gpus)
    fleet = Gpus(tuple(f"gpu{g}" for g in number), number // 8, number // 48, speed, slots)
    return Problem(np.floor(np.exp(popularity) * 1000), fleet, Sample(chosen, np.zeros(tokens, np.int64)))


def timed(policies: Sequence[str], tell: Callable[[str], None]) -> list[dict[str, Any]]:
    """Wall and processor seconds of each policy on the large problem, the best of three, after one call that compiles."""
    problem = unequal()
    problem = problem.with_current(load("round-robin").place(problem))
    found = []
    for name in policies:
        tell(f"time: {name}")
        policy = load(name)
        samples = []
        for _ in range(4):
            wall, used = time.perf_counter(), time.process_time()
            placement = policy.place(problem)
            samples.append((time.perf_counter() - wall, time.process_time() - used))
        placement.check(problem, policy.whole_layers)
        wall_s, cpu_s = min(samples[1:])
        found.append({
            "policy": name, "wall_s": wall_s, "cpu_s": cpu_s, "samples_s": [s[0] for s in samples[1:]],
            "balancedness": measures.balancedness(placement, problem.windows.sum(0), problem.gpus),
            "moved": placement.moved(problem.current),
        })  # fmt: skip
    return found


MARKS = {"round-robin": "P", "greedy (LPT)": "s", "swap search, co-activation": "v", "swap search, load at 0.3": "^", "affinity": "D",
         "joint": "*", "joint, to beat load at 0.3": "X", "joint, to beat co-activation": "p"}  # fmt: skip
LABELS = {"joint": "joint (keeps EPLB's balance)"}


def draw(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """The front at 4 and 8 GPUs: up and to the left is better."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    counts = sorted({row["gpus"] for row in rows})
    figure, axes = plt.subplots(1, len(counts), figsize=(5.2 * len(counts), 4.2), squeeze=False)
    for axis, gpus in zip(axes[0], counts, strict=True):
        mine = [row for row in rows if row["gpus"] == gpus]
        for first, style, colour, label in (("joint, pull", "o-", "#1f6fb4", "joint"), ("told, pull", "--", "#8a8f98", "told the load")):
            line = sorted((r["gpus_touched"], r["balancedness_test"], r["policy"]) for r in mine if r["policy"].startswith(first))
            axis.plot([p[0] for p in line], [p[1] for p in line], style, color=colour, label=label)
            for x, y, name in line:
                axis.annotate(name.split()[-1], (x, y), textcoords="offset points", xytext=(6, -10), fontsize=8, color=colour)
        for name, mark in MARKS.items():
            row = next(r for r in mine if r["policy"] == name)
            axis.plot(row["gpus_touched"], row["balancedness_test"], mark, ms=8, label=LABELS.get(name, name), ls="none")
        axis.set(title=f"{gpus} GPUs", xlabel="GPUs touched by a token in a layer", ylabel="balancedness on the dataset left out")
        axis.grid(alpha=0.3)
    axes[0][0].legend(loc="lower right", fontsize=8)
    figure.suptitle("gpt-oss-20b, mean over the 8 datasets left out one at a time; numbers: pull", fontsize=10)
    figure.tight_layout()
    figure.savefig(path)


def show(title: str, rows: Sequence[dict[str, Any]], columns: Sequence[str]) -> None:
    def text(value: Any, column: str) -> str:
        return f"{value:.0f}" if column == "moved" else f"{value:.3f}" if isinstance(value, float) else str(value)

    print_table(title, columns, [[text(row[c], c) for c in columns] for row in rows], columns[1:])


TIMED = (
    "round-robin", "consistent-hash", "greedy", "eplb", "eplb:mode=hierarchical", "replicate-hot", "hierarchical", "affinity", "joint",
    "robust", "robust:moves=0.5", "petals", "swarm",
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[2] / "shared" / "data")
    parser.add_argument("--only", default="front,stale,time")
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    parts = args.only.split(",")
    folder = args.data / "gptoss20b_routing"
    if {"front", "stale"} & set(parts) and not folder.is_dir():
        sys.exit(f"--data: {folder}: no such directory; the recorded gpt-oss-20b routing is needed")

    def tell(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    found: dict[str, Any] = {}
    trace = Trace(folder) if folder.is_dir() else None
    if "front" in parts and trace is not None:
        found["front"] = [row for gpus in (4, 8) for row in front(trace, gpus, tell)]
    if "stale" in parts and trace is not None:
        found["stale"] = [row for gpus in (4, 8) for row in stale(trace, gpus, tell)]
    if "time" in parts:
        found["time"] = timed(TIMED, tell)
    if args.plot and "front" in found:
        draw(found["front"], args.plot)
    if args.json:
        return print(json.dumps(found, indent=2))
    if "front" in found:
        show("Front: a dataset left out", found["front"], ("policy", "gpus", "gpus_touched", "balancedness_test", "balancedness"))
    if "stale" in found:
        show("Stale load", found["stale"], ("policy", "gpus", "spares", "balancedness_test", "balancedness", "moved"))
    if "time" in found:
        show("61 layers x 256 experts on 144 unequal GPUs", found["time"], ("policy", "wall_s", "cpu_s", "balancedness", "moved"))


if __name__ == "__main__":
    main()
