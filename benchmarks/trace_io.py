"""How fast are traces written, read and asked? Prints one table; medians of five.

    python benchmarks/trace_io.py [--tasks 430000] [--requests 1020] [--json]
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from traces.files import Provenance
from traces.routing import Routing, RoutingIndex, Shape, read_routing, write_routing
from traces.timeline import Timeline, read_timeline, write_timeline

SOURCE = Provenance("synthetic", "benchmarks/trace_io.py: drawn, seed 0", "simulated")
REPEATS = 5


def drawn_timeline(n: int) -> Timeline:
    """A run of n tasks whose durations repeat, as those of equal tasks do."""
    r = np.random.default_rng(0)
    start = np.cumsum(r.integers(0, 10**8, n))
    step = np.arange(n, dtype=np.int32) // 3400
    return Timeline(
        task_id=np.arange(n), attempt=np.zeros(n, np.int16), op=r.integers(0, 10, n, np.int32), lane=r.integers(0, 5, n, np.int32),
        rank=np.zeros(n, np.int16), phase=np.full(n, 2, np.int32), step=step, layer=r.integers(0, 32, n, np.int16),
        microbatch=r.integers(0, 15, n, np.int16), start_ps=start, end_ps=start + r.choice(r.integers(10**8, 10**10, 200), n),
        bytes=r.integers(0, 100, n) * 1000, flops=r.integers(0, 100, n) * 10**6, status=np.zeros(n, np.int32),
        ops=tuple("abcdefghij"), lanes=("gpu", "cpu", "h2d", "d2h", "pin"), provenance=SOURCE,
    )  # fmt: skip


def drawn_routing(requests: int, prompt: int = 77, steps: int = 32, layers: int = 8, experts: int = 8) -> Routing:
    """Top-2 routing of prompts and decode steps."""
    r = np.random.default_rng(0)
    grid = np.meshgrid(np.arange(requests), np.arange(prompt + steps), np.arange(layers), indexing="ij")
    request, position, layer = (g.ravel().astype(np.int32) for g in grid)
    step = np.maximum(0, position - prompt + 1)
    first = r.integers(0, experts, len(step), np.int16)
    second = ((first + r.integers(1, experts, len(step), np.int16)) % experts).astype(np.int16)
    weights = r.random((len(step), 2), np.float32)
    shape = Shape("drawn", layers, experts, 2)
    return Routing(step > 0, step, request, position, layer.astype(np.int16), np.stack([first, second], 1), weights, shape, SOURCE)


def samples(act: Callable[[], Any]) -> list[float]:
    """Seconds of each repeat."""
    found = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        act()
        found.append(time.perf_counter() - began)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", type=int, default=430_000)
    parser.add_argument("--requests", type=int, default=1020)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    timeline, routing = drawn_timeline(given.tasks), drawn_routing(given.requests)
    groups = [tuple(range(a, min(a + 68, given.requests))) for a in range(0, given.requests, 68)]
    with tempfile.TemporaryDirectory() as folder:
        one, two = Path(folder) / "timeline.parquet", Path(folder) / "routing.parquet"
        rows = {
            f"write a timeline of {len(timeline):,} tasks": samples(lambda: write_timeline(one, timeline)),
            "read and check it": samples(lambda: read_timeline(one)),
            f"write routing of {len(routing):,} rows": samples(lambda: write_routing(two, routing)),
            "read and check it all": samples(lambda: read_routing(two)),
            "index it": samples(lambda: RoutingIndex(routing)),
        }
        index = RoutingIndex(routing)
        asked = [(g, step, layer) for step in range(1, 33) for layer in range(8) for g in groups]
        total = samples(lambda: [index.expert_tokens(g, "decode", step, layer) for g, step, layer in asked])
        rows["one lookup of 68 sequences"] = [s / len(asked) for s in total]
        size = one.stat().st_size / len(timeline)
    if given.json:
        print(json.dumps({"samples_s": rows, "timeline_bytes_per_task": size}))
        return
    for name, values in rows.items():
        print(f"{name:<42}{statistics.median(values) * 1e3:>12.4f} ms   ({min(values) * 1e3:.4f} to {max(values) * 1e3:.4f})")
    print(f"{'bytes a task in the file':<42}{size:>12.1f}")


if __name__ == "__main__":
    main()
