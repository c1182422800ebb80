"""An hour of sustained decode on the CPU executor: does anything grow, does anything slow down?

    python benchmarks/soak.py [--minutes 62] [-o out/soak]

One session serves requests that keep arriving, somewhat more than it can serve, so that freed slots
are always refilled. Every ten seconds the timeline and the tokens of what has ended are taken out of the
session, and tokens, resident memory, threads and open files are noted down in OUT/samples.csv. At the
end: slopes over the time after the warm-up with their 95 % confidence intervals, tokens/s of each window of
five minutes, and a verdict (exit code 1: something grew, or throughput was not steady). The links are
paced, and slow, so that the computer is left almost idle.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from exec import session
from exec.calibration.links import relink
from exec.execute import spec_of, weights_of
from exec.local import this_computer
from exec.prompts import byte_prompts
from exec.runtime import ThreadEngine
from sim.cli.output import print_table
from sim.columns import columns_of, plans_of
from sim.drive import drive
from sim.engines.run import DONE, Run
from sim.events import Request
from sim.plan import PHASES
from sim.schedulers import registry
from sim.schedulers.policy import Policy
from sim.tasks import PS_PER_S
from sim.workloads.lengths import Uniform
from sim.workloads.schema import Workload
from traces.files import replacing

MODEL, SCHEDULER = "tiny-mixtral", "cgopipe"
POLICY = Policy(batch=32, microbatch=16)
RATES = {"h2d": 0.25e9, "d2h": 0.25e9}
REQUESTS_PER_S = 0.8
"""Above what the links let through (about 0.6), so that a request waits for every slot."""

WARM_UP_S, WINDOW_S = 300.0, 300.0
FIELDS = ("t_s", "tokens", "tasks", "step_s", "rss_bytes", "threads", "open_files", "cpu_s")
GROWTH_PER_HOUR = 0.01
"""Growth that is none: the upper end of the 95 % interval stays below this share of what is resident."""
STEADY_STEP, STEADY_TOKENS = 0.03, 0.1
"""Farthest that a window's median decode step, and its tokens/s, are from their means. Tokens follow the
drawn lengths too: how many passes of a window are prefills for newcomers."""


def requests_for(seconds: float) -> tuple[tuple[Request, ...], tuple[int, ...]]:
    workload = Workload(
        name="soak", source="chosen for this benchmark: every slot is refilled about once a minute", ends_early=True, bound=48,
        prompt=Uniform(min=16, max=64), generation=Uniform(min=16, max=48),
    )  # fmt: skip
    made, lengths = workload.requests(POLICY.batch + int(seconds * REQUESTS_PER_S), seed=0)
    late = [max(0, r.request_id - POLICY.batch) / REQUESTS_PER_S for r in made]
    return tuple(_arriving(r, t) for r, t in zip(made, late, strict=True)), lengths


def _arriving(request: Request, at_s: float) -> Request:
    return Request(request.request_id, request.prompt_tokens, request.max_output_tokens, None, int(at_s * PS_PER_S))


class Samples:
    """What was seen every `every_s` seconds, kept in a file as it goes."""

    def __init__(self, running: session.Session, path: Path, every_s: float) -> None:
        self._engine, self._sequences, self._path, self._every_s = running.engine, running.backend.sequences, path, every_s
        self._began = time.perf_counter()
        self._tokens = self._tasks = self._passed_ps = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="sampler")

    def __enter__(self) -> Samples:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _loop(self) -> None:
        with self._path.open("w", newline="", buffering=1) as f:
            writer = csv.DictWriter(f, FIELDS)
            writer.writeheader()
            due = self._began
            while not self._over.wait(max(0.0, due - time.perf_counter())):
                writer.writerow(self._sample())
                due += self._every_s

    def _steps_s(self, ended: Run) -> list[float]:
        """Seconds of each decode step that has ended, from the end of the pass before it."""
        found = []
        for end_ps, decode in passes(ended):
            if decode and self._passed_ps:
                found.append((end_ps - self._passed_ps) / PS_PER_S)
            self._passed_ps = end_ps
        return found

    def _sample(self) -> dict[str, float]:
        ended = self._engine.drain()
        self._sequences.hand_out()
        self._tasks += len(ended)
        self._tokens += tokens_sampled(ended)
        steps = self._steps_s(ended)
        own = os.times()
        return {
            "t_s": round(time.perf_counter() - self._began, 3), "tokens": self._tokens, "tasks": self._tasks,
            "step_s": round(float(np.median(steps)), 6) if steps else float("nan"),
            "rss_bytes": int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE"),
            "threads": len(os.listdir("/proc/self/task")), "open_files": len(os.listdir("/proc/self/fd")),
            "cpu_s": round(own.user + own.system, 2),
        }  # fmt: skip


def passes(run: Run) -> Iterator[tuple[int, bool]]:
    """(end in ps, whether it was a decode step) of each pass whose last sampling is in `run`. A pass is a Plan here."""
    for plan in plans_of(run.sources):
        samples = plan.first + np.flatnonzero(np.array([w.op == "sample" for w in plan.works])[plan.work])
        at = np.searchsorted(run.number, samples[-1])
        if at < len(run) and run.number[at] == samples[-1]:
            ended = run.end_ps[np.isin(run.number, samples)]
            yield int(ended.max()), PHASES[plan.phase[samples[-1] - plan.first]] == "decode"


def read(path: Path) -> list[dict[str, float]]:
    """The samples of a soak that is over, or still going on."""
    with path.open(newline="") as f:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(f)]


def tokens_sampled(run: Run) -> int:
    """Tokens that the ended samplings of a run gave."""
    c = columns_of(run.sources)
    mine = np.isin(c.number, run.number[run.status == DONE]) & c.where_op("sample")
    return int(np.array([w.tokens for w in c.works], np.int64)[c.work[mine]].sum())


class _Until:
    """An engine that has nothing more to report once the time is over."""

    def __init__(self, engine: ThreadEngine, seconds: float) -> None:
        self._engine, self._deadline = engine, time.monotonic() + seconds
        self.submit = engine.submit

    def wait(self) -> Any:
        return self._engine.wait() if time.monotonic() < self._deadline else None


def soak(seconds: float, every_s: float, path: Path) -> list[dict[str, float]]:
    spec = spec_of(MODEL)
    requests, lengths = requests_for(seconds)
    prompts = byte_prompts([r.prompt_tokens for r in requests])
    scheduler: Any = registry.load(SCHEDULER)(spec, POLICY)
    opened = session.opened(
        spec, weights_of(MODEL, spec, 0), relink(this_computer(), RATES), scheduler, requests, prompts, lengths=lengths
    )
    with opened as run, Samples(run, path, every_s):
        drive(scheduler, _Until(run.engine, seconds))
    return read(path)


# What the samples say -------------------------------------------------------------------------------


def slope(rows: Sequence[dict[str, float]], field: str) -> dict[str, float]:
    """Theil-Sen slope of a field per hour, with its 95 % interval, over minutes (their medians)."""
    minutes: dict[int, list[float]] = {}
    for r in rows:
        minutes.setdefault(int(r["t_s"] // 60), []).append(r[field])
    hours = np.array(sorted(minutes)) / 60
    found = stats.theilslopes([np.median(minutes[m]) for m in sorted(minutes)], hours, 0.95)
    values = [r[field] for r in rows]
    return {
        "per_hour": float(found.slope), "low": float(found.low_slope), "high": float(found.high_slope),
        "mean": float(np.mean(values)), "least": min(values), "most": max(values),
    }  # fmt: skip


def windows(rows: Sequence[dict[str, float]], width_s: float) -> Iterator[tuple[float, float, float]]:
    """(start, tokens/s, median decode step in s) of each whole window."""
    first, steps = rows[0], [rows[0]["step_s"]]
    for r in rows[1:]:
        steps.append(r["step_s"])
        if r["t_s"] - first["t_s"] >= width_s - 0.5:
            yield first["t_s"], (r["tokens"] - first["tokens"]) / (r["t_s"] - first["t_s"]), float(np.nanmedian(steps))
            first, steps = r, []


def verdict(rows: Sequence[dict[str, float]], warm_up_s: float, window_s: float) -> dict[str, Any]:
    """Slopes, windows, and whether all is well, of the samples behind the warm-up."""
    kept = [r for r in rows if r["t_s"] >= warm_up_s]
    slopes = {field: slope(kept, field) for field in ("rss_bytes", "threads", "open_files")}
    found = list(windows(kept, window_s))
    speed, step = (np.array([w[k] for w in found]) for k in (1, 2))
    hours = np.array([w[0] for w in found]) / 3600
    trend = stats.linregress(hours, speed / speed.mean()) if len(found) > 2 else None
    memory = slopes["rss_bytes"]
    facts = {
        "memory": memory["high"] <= GROWTH_PER_HOUR * memory["mean"],
        "threads": slopes["threads"]["high"] <= 0,
        "open_files": slopes["open_files"]["high"] <= 0,
        "throughput": bool((np.abs(speed / speed.mean() - 1) < STEADY_TOKENS).all()),
        "decode_step": bool((np.abs(step / step.mean() - 1) < STEADY_STEP).all()),
    }
    return {
        "seconds": rows[-1]["t_s"], "tokens": rows[-1]["tokens"], "tasks": rows[-1]["tasks"],
        "cores_busy": (kept[-1]["cpu_s"] - kept[0]["cpu_s"]) / (kept[-1]["t_s"] - kept[0]["t_s"]), "slopes": slopes,
        "windows": [{"start_s": start, "tokens_per_s": rate, "step_s": took} for start, rate, took in found],
        "tokens_per_s": float(speed.mean()), "step_s": float(step.mean()),
        "trend_per_hour": None if trend is None else {"share": float(trend.slope), "standard_error": float(trend.stderr)},
        "well": facts,
    }  # fmt: skip


def show(found: dict[str, Any]) -> None:
    minutes = found["seconds"] / 60
    title = f"{found['tokens']:,.0f} tokens, {found['tasks']:,.0f} tasks in {minutes:.1f} min; {found['cores_busy']:.2f} cores busy"
    print_table(title, ("", "mean", "least", "most", "slope per hour", "95 % interval", "verdict"), [
        (name, *(f"{s[k]:,.0f}" for k in ("mean", "least", "most", "per_hour")), f"{s['low']:,.0f} to {s['high']:,.0f}",
         "no growth" if found["well"][key] else "GROWS")
        for (name, s), key in zip(found["slopes"].items(), ("memory", "threads", "open_files"), strict=True)
    ], numeric=("mean", "least", "most", "slope per hour", "95 % interval"))  # fmt: skip
    well = {name: "steady" if found["well"][name] else "NOT STEADY" for name in ("throughput", "decode_step")}
    columns = ("from minute", "tokens/s", "from the mean", "decode step, median", "from its mean")
    rows = [
        (f"{w['start_s'] / 60:.0f}", f"{w['tokens_per_s']:.2f}", f"{w['tokens_per_s'] / found['tokens_per_s'] - 1:+.1%}",
         f"{w['step_s'] * 1e3:.1f} ms", f"{w['step_s'] / found['step_s'] - 1:+.1%}")
        for w in found["windows"]
    ]  # fmt: skip
    print_table(f"throughput: {well['throughput']}; decode step: {well['decode_step']}", columns, rows, numeric=columns)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=62.0)
    parser.add_argument("--every", type=float, default=10.0, help="seconds between samples")
    parser.add_argument("--warm-up", type=float, default=WARM_UP_S, help="seconds whose samples do not count")
    parser.add_argument("--window", type=float, default=WINDOW_S, help="seconds of a throughput window")
    parser.add_argument("-o", type=Path, default=Path("out/soak"))
    parser.add_argument("--judge", action="store_true", help="judge the samples that OUT has already")
    args = parser.parse_args()
    args.o.mkdir(parents=True, exist_ok=True)
    samples = args.o / "samples.csv"
    rows = read(samples) if args.judge else soak(args.minutes * 60, args.every, samples)
    found = verdict(rows, args.warm_up, args.window)
    with replacing(args.o / "summary.json") as part:
        part.write_text(json.dumps({"command": " ".join(sys.argv), **found}, indent=2))
    show(found)
    return 0 if all(found["well"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())
