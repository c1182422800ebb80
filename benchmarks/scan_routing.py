"""Scan a routing trace of 100 million rows for the load of each expert: rows a second and peak memory.

    python benchmarks/scan_routing.py [--rows N] [--experts E] [--k K] [--directory DIR]

The file is drawn into DIR (deleted at the end), its load counted while drawing, and a fresh process
scans it, so that the peak resident memory is that of the scan alone. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from traces.files import Provenance
from traces.routing import Routing, Shape, writing_routing

LAYERS = 24
CHUNK_TOKENS = 50_000

SCAN = """
import json, sys, time
import numpy as np
from traces.scan import expert_load
def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) / 1024
started = peak()
seconds = []
for _ in range(int(sys.argv[2])):
    t = time.perf_counter()
    load = expert_load(sys.argv[1])
    seconds.append(time.perf_counter() - t)
print(json.dumps({
    "seconds": seconds, "digest": int((load * np.arange(1, load.size + 1).reshape(load.shape)).sum()), "total": int(load.sum()),
    "peak_mib": peak(), "imports_mib": started,
}))
"""


def draw(path: Path, rows: int, shape: Shape) -> tuple[int, int]:
    """Write so many rows of decode tokens with skewed experts; returns (digest of the load, activations)."""
    rng = np.random.default_rng(0)
    popularity = np.log(1.0 / (1.0 + np.arange(shape.experts)))
    load = np.zeros((shape.layers, shape.experts), np.int64)
    provenance = Provenance("synthetic", "benchmark: skewed experts, independent tokens", command="benchmarks/scan_routing.py")
    with writing_routing(path, shape, provenance) as out:
        for first in range(0, rows // shape.layers, CHUNK_TOKENS):
            tokens = np.arange(first, min(first + CHUNK_TOKENS, rows // shape.layers))
            n = len(tokens) * shape.layers
            scores = rng.gumbel(size=(n, shape.experts)).astype(np.float32) + popularity.astype(np.float32)
            experts = np.argpartition(-scores, shape.k, axis=1)[:, : shape.k].astype(np.int16)
            layer = np.tile(np.arange(shape.layers, dtype=np.int16), len(tokens))
            load += np.bincount((layer[:, None] * shape.experts + experts).ravel(), minlength=load.size).reshape(load.shape)
            position = np.repeat(tokens % 1000, shape.layers).astype(np.int32)
            out.append(Routing(
                decode=np.ones(n, np.bool_), step=position + 1, request_id=np.repeat(tokens // 1000, shape.layers).astype(np.int32),
                position=position, layer=layer, experts=experts,
                weights=rng.random((n, shape.k), np.float32), shape=shape, provenance=provenance,
            ))  # fmt: skip
    return int((load * np.arange(1, load.size + 1).reshape(load.shape)).sum()), int(load.sum())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000_000)
    parser.add_argument("--experts", type=int, default=32)
    parser.add_argument("--k", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--directory", default=tempfile.gettempdir())
    args = parser.parse_args()
    shape = Shape("drawn", LAYERS, args.experts, args.k)
    with tempfile.TemporaryDirectory(dir=args.directory) as folder:
        path = Path(folder) / "routing.parquet"
        digest, total = draw(path, args.rows, shape)
        command = [sys.executable, "-c", SCAN, str(path), str(args.repeats)]
        found = json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)
        rows, size = total // args.k, path.stat().st_size
    assert (found["digest"], found["total"]) == (digest, total), f"load {found['digest']}, {found['total']}; drawn {digest}, {total}"
    print(json.dumps({
        "rows": rows, "k": args.k, "experts": args.experts, "file_mib": size / 2**20, "rows_per_s": [rows / s for s in found["seconds"]],
        "peak_mib": found["peak_mib"], "imports_mib": found["imports_mib"], "load_equals_what_was_drawn": True,
        "machine": platform.processor() or platform.machine(), "cores": os.cpu_count(),
    }, indent=2))  # fmt: skip


if __name__ == "__main__":
    main()
