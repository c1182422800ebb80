"""All that needs a GPU, in one script: tests, benches, calibration, validation, ranks where there are several GPUs, and offloading
on a 16 GB budget.

    python benchmarks/gpu.py [-o traces/measured] [--minutes 10] [--only PART ...]

Parts run in order, each within what is left of the minutes, and write to OUT/<gpu>/: tables as JSON,
timelines as Parquet, and made.json with the command, commit and versions of everything, the parts' times, and
what did not end in time. Exit code 1: a part failed; 2: no GPU.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from exec import devices
from exec.bench.run import made
from exec.devices import DeviceName
from sim.errors import UserError
from traces.files import replacing

ROOT = Path(__file__).resolve().parents[1]
BUDGET_BYTES = 16 * 10**9
"""What the card may use in the offloading part: a 16 GB one."""


class Part(NamedTuple):
    """share: of the minutes, at most. command: what runs, its stdout kept in `into` where that is given. gpus: how many it needs."""

    name: str
    share: float
    command: Callable[[Path], Sequence[str]]
    into: str = ""
    gpus: int = 1


def exec_(*arguments: str) -> Sequence[str]:
    return [sys.executable, "-m", "exec", *arguments]


def ranks_(*arguments: str) -> Sequence[str]:
    """A command for as many ranks as GPUs, up to eight."""
    import torch

    return exec_(*arguments, "--ranks", str(min(8, torch.cuda.device_count())), "--device", "cuda")


def _on_ranks(scheduler: str) -> Part:
    """Layers on ranks beside one process and beside their simulation."""
    return Part(f"ranks, {scheduler}", 0.05, lambda out: ranks_(
        "run", "--model", "tiny-mixtral", "--scheduler", scheduler, "--tokens", "4096", "--check", "--json",
        "--machine", str(out / "ranks.yaml"), "--timeline", str(out / f"ranks-{scheduler}.parquet")),
        f"ranks-{scheduler}.json", 2)  # fmt: skip


KERNEL_OPS = ("router", "dispatch+combine", "attn_decode", "fused_moe", "linear", "rms_norm", "embed", "sample")

PARTS = (
    Part("doctor", 0.05, lambda out: exec_("doctor", "--json"), "doctor.json"),
    Part("tests", 0.15, lambda out: [sys.executable, "-m", "pytest", "-q", "-x", "-m", "gpu", "tests"], "tests.txt"),
    Part("bench kernels", 0.15, lambda out: exec_("bench", "--device", "cuda", *_each("--op", KERNEL_OPS), "-o", "json"), "kernels.json"),
    Part("bench runs", 0.07, lambda out: exec_(
        "bench", "--device", "cuda", "-p", "128,512", "-n", "32", "--batch", "1,16", "-r", "3", "-o", "json"), "runs.json"),
    Part("bench runs, graphs", 0.05, lambda out: exec_(
        "bench", "--device", "cuda", "-n", "32", "--batch", "1,16", "-r", "3", "--graphs", "-o", "json"), "runs-graphs.json"),
    Part("calibrate", 0.15, lambda out: exec_("calibrate", "--device", "cuda", "-o", str(out / "profile.yaml"))),
    Part("validate", 0.15, lambda out: exec_(
        "validate", "--device", "cuda", "--machine", str(out / "profile.yaml"), "--json"), "validation.json"),
    Part("ranks, calibrate", 0.15, lambda out: ranks_("calibrate", "-o", str(out / "ranks.yaml")), gpus=2),
    *map(_on_ranks, ("bulk-sync", "chunked", "overlapped")),
    Part("ranks, validate", 0.25, lambda out: ranks_(
        "validate", "--machine", str(out / "ranks.yaml"), "--json"), "ranks-validation.json", 2),
    Part("offload", 0.35, lambda out: [
        sys.executable, str(ROOT / "benchmarks" / "offload.py"), "--device", "cuda", "--budget", str(BUDGET_BYTES),
        "--machine", str(out / "profile.yaml"), "-o", str(out)],
        "offload.json"),
)  # fmt: skip


def _each(flag: str, values: Sequence[str]) -> list[str]:
    return [text for value in values for text in (flag, value)]


def run(part: Part, out: Path, seconds: float) -> dict[str, Any]:
    """How a part went. Its stdout is written whole, or not at all where it failed."""
    command = list(part.command(out))
    print(f"{part.name}: at most {seconds:.0f} s", file=sys.stderr, flush=True)
    began = time.monotonic()
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=seconds)
        status, text, errors = done.returncode, done.stdout, done.stderr
    except subprocess.TimeoutExpired as late:
        status, text, errors = "out of time", _text(late.stdout), _text(late.stderr)
    took = time.monotonic() - began
    if part.into and (status == 0 or part.into.endswith(".txt")):
        with replacing(out / part.into) as target:
            target.write_text(text)
    facts: dict[str, Any] = {"command": " ".join(command), "seconds": round(took, 1), "status": status}
    if status != 0:
        facts["last_lines"] = (errors or text).splitlines()[-12:]
        print("\n".join(facts["last_lines"]), file=sys.stderr, flush=True)
    print(f"{part.name}: {'done' if status == 0 else status} after {took:.0f} s", file=sys.stderr, flush=True)
    return facts


def _text(found: bytes | str | None) -> str:
    return found.decode(errors="replace") if isinstance(found, bytes) else found or ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", type=Path, default=ROOT / "traces" / "measured")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--only", action="append", choices=[p.name for p in PARTS], help="run this part only; may be repeated")
    args = parser.parse_args()
    try:
        devices.check(DeviceName.cuda)
    except UserError as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    import torch

    from exec.calibration.device import name_of

    out = args.o / name_of(torch.cuda.get_device_name())
    out.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + 60 * args.minutes
    facts: dict[str, Any] = {**made(DeviceName.cuda), "command": " ".join(sys.argv), "parts": {}}
    for part in PARTS:
        if args.only and part.name not in args.only:
            continue
        if torch.cuda.device_count() < part.gpus:
            print(f"{part.name}: left out, it needs {part.gpus} GPUs", file=sys.stderr, flush=True)
            continue
        left = deadline - time.monotonic()
        if left < 5:
            facts["parts"][part.name] = {"status": "not started: no time was left"}
            continue
        facts["parts"][part.name] = run(part, out, min(left, 60 * args.minutes * part.share))
        with replacing(out / "made.json") as target:
            target.write_text(json.dumps(facts, indent=2) + "\n")
    return 0 if all(p["status"] == 0 for p in facts["parts"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())
