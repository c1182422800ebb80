"""The whole bench: kernels at their shapes, then pp and tg tests."""

from __future__ import annotations

import platform
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from exec.bench import cpu, serving
from exec.bench.case import Ceilings, Measured
from exec.bench.serving import Test
from exec.bench.timing import measure, with_threads
from exec.devices import DeviceName
from sim.errors import unknown
from sim.machines.schema import Machine

Say = Callable[[str], None]


def kernels_on_cpu(ops: Sequence[str], threads: Sequence[int], repetitions: int, say: Say) -> tuple[list[dict[str, Any]], Ceilings]:
    """Rows of the chosen ops (none: all) at each number of threads, and the ceilings that their shares are of."""
    rows: list[dict[str, Any]] = []
    peaks = Ceilings({}, {})
    for count in threads:

        def one(count: int = count) -> None:
            # Before and behind the cases: the computer may be disturbed at one of the times.
            found: list[Measured] = []
            peaks.raise_to(cpu.ceilings(count))
            for op, make in _chosen(cpu.cases(count), ops).items():
                for case in make():
                    say(f"{op}: {case.shape}, {count} threads")
                    found.append(measure(case, repetitions).freed())
            peaks.raise_to(cpu.ceilings(count))
            rows.extend(row for m in found for row in m.rows(peaks))

        with_threads(count, one)
    return rows, peaks


def kernels_on_cuda(ops: Sequence[str], repetitions: int, say: Say) -> tuple[list[dict[str, Any]], Ceilings]:
    from exec.bench import cuda

    peaks = cuda.ceilings()
    rows: list[dict[str, Any]] = []
    for op, make in _chosen(cuda.cases(), ops).items():
        for case in make():
            say(f"{op}: {case.shape}")
            rows.extend(measure(case, repetitions, cuda.by_events).rows(peaks))
    return rows, peaks


def _chosen(cases: dict[str, Any], ops: Sequence[str]) -> dict[str, Any]:
    """Raises UserError for a name that is none."""
    for op in ops:
        if op not in cases:
            raise unknown("--op", op, cases)
    return {op: make for op, make in cases.items() if not ops or op in ops}


def bench(
    device: DeviceName, ops: Sequence[str] | None, tests: Sequence[Test], model: str, machine: Callable[[], Machine], *,
    threads: Sequence[int], repetitions: int, graphs: bool = False, say: Say = lambda text: None,
) -> dict[str, Any]:  # fmt: skip
    """The object of `bench --json`. ops: None for no kernels, empty for all of them."""
    rows, peaks = [], Ceilings({}, {})
    if ops is not None:
        if device is DeviceName.cuda:
            rows, peaks = kernels_on_cuda(ops, repetitions, say)
        else:
            rows, peaks = kernels_on_cpu(ops, threads, repetitions, say)
    done = []
    if tests:
        for row in serving.run(tests, model, machine(), repetitions, device, graphs):
            say(f"{row['test']}: {row['tokens_per_s']:.1f} t/s")
            done.append(row)
    ceilings = {"flops_per_s": peaks.flops_per_s, "bytes_per_s": {str(k): v for k, v in peaks.bytes_per_s.items()}}
    return {"made": made(device), "ceilings": ceilings, "kernels": rows, "tests": done}


def made(device: DeviceName) -> dict[str, str]:
    """By which command, commit and versions, on what."""
    from importlib.metadata import version

    from exec.calibration.profile import processor

    facts = {
        "command": " ".join(["python -m exec", *sys.argv[1:]]), "commit": _commit(), "computer": processor(), "device": str(device),
        "python": platform.python_version(), **{name: version(name) for name in ("torch", "numba", "numpy")},
    }  # fmt: skip
    if device is DeviceName.cuda:
        import torch

        facts |= {"gpu": torch.cuda.get_device_name(), "cuda": str(torch.version.cuda)}
    return facts


def _commit() -> str:
    """Of the source tree this runs from; empty where it is none."""
    try:
        found = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True)
    except FileNotFoundError:
        return ""
    return found.stdout.strip()
