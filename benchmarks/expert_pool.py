"""How fast experts come from disk through the pool, beside a plain sequential read, and what that takes of memory.

    python benchmarks/expert_pool.py [--dir DIR] [--gib 4.1] [--rounds 2] [--sweep] [--json]

Makes a checkpoint of random experts of 100 MB each in a temporary folder of DIR and its manifest, drops it from
the page cache and counts with mincore what is left there. Then, in turns, on different parts of the file: a plain
sequential read of a fifth of it (one thread, O_DIRECT, 16 MiB a call, nothing done with the bytes), and as many
experts through the pool (read, verified, in their slot of the RAM tier). With --sweep also by size and
number of reads at a time. Removes the folder afterwards.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import mmap
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exec.arena import Arena
from exec.links import Link
from exec.pool.make import make_manifest
from exec.pool.manifest import LEAF_BYTES
from exec.pool.pool import ExpertPool, Store
from exec.pool.staging import HUGE
from exec.pool.tiers import Tier
from exec.runtime import Interrupt
from sim.cli import output
from sim.errors import UserError

HIDDEN, FFN = 2048, 4069
EXPERT_BYTES = 3 * HIDDEN * FFN * 4
"""99,999,744."""
BLOCK = 16 << 20
"""Of the plain read."""
PARTS = 5
SLOTS = 4
"""Of the RAM tier."""
SWEEP = [(mib, depth) for mib in (1, 2, 4) for depth in (1, 2, 4, 8)]


def make_checkpoint(folder: Path, experts: int) -> Path:
    """Random experts, written in pieces: never all in memory."""
    shapes = {"w1": (FFN, HIDDEN), "w2": (HIDDEN, FFN), "w3": (FFN, HIDDEN)}
    header, at = {}, 0
    for e in range(experts):
        for w, shape in shapes.items():
            size = shape[0] * shape[1] * 4
            name = f"model.layers.0.block_sparse_moe.experts.{e}.{w}.weight"
            header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [at, at + size]}
            at += size
    raw = json.dumps(header).encode()
    raw += b" " * (-len(raw) % 8)
    path, rng = folder / "model.safetensors", np.random.default_rng(0)
    with path.open("wb", buffering=0) as f:
        f.write(len(raw).to_bytes(8, "little") + raw)
        for _ in range(3 * experts):
            f.write(rng.random(HIDDEN * FFN, dtype=np.float32))  # type: ignore[arg-type]
        os.fsync(f.fileno())
    return path


def drop_cache(path: Path) -> None:
    with path.open("rb") as f:
        os.posix_fadvise(f.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def cached_share(path: Path) -> float:
    """Part of the file that the page cache holds, by mincore."""
    with path.open("rb") as f, mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ, flags=mmap.MAP_PRIVATE) as mapped:
        pages = np.zeros(-(-len(mapped) // mmap.PAGESIZE), np.uint8)
        view = np.frombuffer(mapped, np.uint8)
        done = ctypes.CDLL(None, use_errno=True).mincore(
            ctypes.c_void_p(view.ctypes.data), ctypes.c_size_t(len(mapped)), ctypes.c_void_p(pages.ctypes.data)
        )
        del view
        if done != 0:
            raise OSError(ctypes.get_errno(), "mincore")
    return float((pages & 1).mean())


def plain_read(fd: int, start: int, nbytes: int, into: NDArray[np.uint8]) -> float:
    """Seconds for a sequential read of so many bytes."""
    began, at = time.perf_counter(), start // BLOCK * BLOCK
    end = at + nbytes
    while at < end:
        at += os.preadv(fd, [memoryview(into)[: min(BLOCK, end - at)]], at)
    return time.perf_counter() - began


def load_all(pool: ExpertPool, experts: Sequence[int]) -> list[float]:
    """Seconds of each load."""
    link, stop, spans = Link("nvme"), Interrupt(), []
    for i, e in enumerate(experts):
        began = time.perf_counter()
        pool.read(i % SLOTS, (0, e), link, stop)
        spans.append(time.perf_counter() - began)
    return spans


def status_bytes(field: str) -> int:
    """VmRSS or VmHWM (the most since it was reset) of this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status: no {field}")


def opened(folder: Path, experts: int, depth: int | None = None) -> tuple[Store, ExpertPool]:
    spec = SimpleNamespace(layers=1, experts=experts, hidden=HIDDEN, ffn=FFN)
    store = Store(folder, spec) if depth is None else Store(folder, spec, depth=depth)
    floats = store.expert_floats
    host, device = Arena("cpu", SLOTS * floats * 4 + 64), Arena("gpu", floats * 4 + 64)
    return store, ExpertPool(store, host.take("experts", SLOTS * floats, touch=True), device.take("experts", floats, touch=True))


def turns(experts: int, rounds: int) -> Iterator[tuple[dict[str, int], range]]:
    """(first expert of each plain read, experts to load) of each turn: in a round each reads all of the file once, in
    another part than the others at a time."""
    share = experts // PARTS
    for k in range(rounds * PARTS):
        first = [(k + shift) % PARTS * share for shift in (0, 2, 4)]
        yield {"plain": first[0], "huge": first[1]}, range(first[2], first[2] + share)


def buffer(huge: bool) -> NDArray[np.uint8]:
    mapped = mmap.mmap(-1, BLOCK + HUGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if huge:
        mapped.madvise(mmap.MADV_HUGEPAGE)
    memory = np.frombuffer(mapped, np.uint8)
    start = -memory.ctypes.data % HUGE
    memory.fill(0)
    return memory[start : start + BLOCK]


def measure(folder: Path, path: Path, experts: int, rounds: int) -> dict[str, Any]:
    Tier("warm-up", Arena("cpu", 1 << 10).take("warm-up", 16))  # what Numba itself takes is no part of the pool
    fd, buffers = os.open(path, os.O_RDONLY | os.O_DIRECT), {"plain": buffer(False), "huge": buffer(True)}
    rss = status_bytes("VmRSS")
    store, pool = opened(folder, experts)
    nbytes = experts // PARTS * EXPERT_BYTES
    Path("/proc/self/clear_refs").write_text("5")
    spans: dict[str, list[float]] = {"plain": [], "huge": [], "pool": []}
    each = []
    with store:
        load_all(pool, [0])
        for k, (starts, chosen) in enumerate(turns(experts, rounds)):
            for name in np.roll(list(spans), k):
                if name == "pool":
                    each.append(load_all(pool, chosen))
                    spans[name].append(sum(each[-1]))
                else:
                    spans[name].append(plain_read(fd, starts[name] * EXPERT_BYTES, nbytes, buffers[name]))
        assert store.loader.direct
        pinned, staging = store.loader.staging.pinned, store.loader.staging.total_bytes
    peak = status_bytes("VmHWM")
    os.close(fd)
    tier = pool.host.budget_bytes + pool.device.budget_bytes
    found = {
        "file_bytes": path.stat().st_size, "experts": experts, "expert_bytes": EXPERT_BYTES, "rounds": rounds, "staging_bytes": staging,
        "staging_pinned": pinned, "budget_bytes": tier, "rss_over_budget_bytes": peak - rss - tier,
        "bytes_per_s": {name: [nbytes / s for s in seconds] for name, seconds in spans.items()},
    }  # fmt: skip
    for name in ("plain", "huge"):
        beyond = [s - turn * EXPERT_BYTES / nbytes for loads, turn in zip(each, spans[name], strict=True) for s in loads]
        found[f"ratio_to_{name}"] = sum(spans[name]) / sum(spans["pool"])
        found[f"expert_beyond_{name}_s"] = {f"p{q}": float(np.percentile(beyond, q)) for q in (10, 50, 90)}
    return found


def sweep(folder: Path, path: Path, experts: int) -> list[dict[str, Any]]:
    """Median rate of loads by bytes of a read and reads at a time, each setting beside plain reads."""
    few = min(experts, 5)
    fd, into, rows = os.open(path, os.O_RDONLY | os.O_DIRECT), buffer(True), []
    for mib, depth in SWEEP:
        make_manifest(folder, leaf_bytes=mib << 20)
        store, pool = opened(folder, experts, depth)
        with store:
            plain = plain_read(fd, 0, few * EXPERT_BYTES, into)
            spans = load_all(pool, range(few))
        row = {"read_mib": mib, "depth": depth, "pool_bytes_per_s": EXPERT_BYTES / float(np.median(spans))}
        rows.append({**row, "huge_bytes_per_s": few * EXPERT_BYTES / plain})
        print(row, file=sys.stderr, flush=True)
    os.close(fd)
    return rows


def check_room(folder: Path, nbytes: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < nbytes + (1 << 30):
        raise UserError(f"--dir {folder}: {free:,} bytes are free; {nbytes:,} and 1 GiB to spare are needed")


def show(found: dict[str, Any]) -> None:
    rates = {name: f"{output.size(float(np.median(r)))}/s ({_range(r)})" for name, r in found["bytes_per_s"].items()}
    beyond = {n: [found[f"expert_beyond_{n}_s"][q] * 1e3 for q in ("p50", "p10", "p90")] for n in ("plain", "huge")}
    spread = "{:.1f} ms (10 to 90 %: {:.1f} to {:.1f})"
    rows = [
        ("file", f"{output.size(found['file_bytes'])}, {found['experts']} experts of {output.size(EXPERT_BYTES)}"),
        ("of it in the page cache", f"{found['cached_before']:.2%} before, {found['cached_after']:.2%} after"),
        ("plain sequential read, median", rates["plain"]),
        ("the same into huge pages", rates["huge"]),
        ("through the pool, verified", rates["pool"]),
        ("pool / plain, pool / into huge pages", f"{found['ratio_to_plain']:.1%}, {found['ratio_to_huge']:.1%}"),
        ("an expert, beyond its bytes' time by the plain read", spread.format(*beyond["plain"])),
        ("... by the read into huge pages", spread.format(*beyond["huge"])),
        ("staging", f"{output.size(found['staging_bytes'])}{', pinned' if found['staging_pinned'] else ''}"),
        ("peak RSS beyond both budgets", f"{output.size(found['rss_over_budget_bytes'])} beside {output.size(found['budget_bytes'])}"),
    ]  # fmt: skip
    output.print_table("expert pool: from disk to the RAM tier", ("", "value"), rows)
    if found.get("sweep"):
        columns = ("MiB a read", "at a time", "pool", "into huge pages, beside it")
        output.print_table("by size and number of reads", columns, [
            (r["read_mib"], r["depth"], output.size(r["pool_bytes_per_s"]) + "/s", output.size(r["huge_bytes_per_s"]) + "/s")
            for r in found["sweep"]
        ], numeric=columns)  # fmt: skip


def _range(rates: Sequence[float]) -> str:
    return f"{output.size(min(rates))}/s to {output.size(max(rates))}/s"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dir", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--gib", type=float, default=4.1)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--sweep", action="store_true")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    experts = max(PARTS, -(-int(args.gib * (1 << 30)) // EXPERT_BYTES))
    try:
        check_room(args.dir, experts * EXPERT_BYTES)
    except UserError as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="expert-pool-", dir=args.dir) as folder:
        path = make_checkpoint(Path(folder), experts)
        make_manifest(Path(folder))
        drop_cache(path)
        cached = cached_share(path)
        found = {"leaf_bytes": LEAF_BYTES, **measure(Path(folder), path, experts, args.rounds)}
        found |= {"cached_before": cached, "cached_after": cached_share(path)}
        if args.sweep:
            found["sweep"] = sweep(Path(folder), path, experts)
    output.print_json(found) if args.json else show(found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
