"""`bench`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from exec import devices
from exec.devices import DeviceName
from sim.cli import output
from sim.errors import UserError

if TYPE_CHECKING:
    from sim.machines.schema import Machine

PROMPT, GEN = "128", "32"
"""Tests where none are asked for."""


def bench(
    device: DeviceName, ops: list[str], model: str, machine: str, scheduler: str, prompt: str | None, gen: str | None, batch: str,
    threads: str | None, repetitions: int, form: str, graphs: bool,
) -> None:  # fmt: skip
    from exec.bench import report, serving
    from exec.bench.run import bench as really_bench

    devices.check(device)
    asked = prompt is not None or gen is not None
    everything = not ops and not asked
    tests = serving.grid(
        numbers("-p", prompt if not everything else PROMPT), numbers("-n", gen if not everything else GEN), numbers("--batch", batch),
        scheduler.split(","),
    )  # fmt: skip
    with output.steps("benching (keep the computer otherwise idle)") as say:
        found = really_bench(
            device, ops if ops or everything else None, tests if asked or everything else [], model, lambda: _machine(machine, device),
            threads=numbers("--threads", threads) or [1], repetitions=repetitions, graphs=graphs, say=say,
        )  # fmt: skip
    print(report.text(found, form), end="")


def numbers(flag: str, text: str | None) -> list[int]:
    """A list as llama-bench takes it, "128,512"; empty for none."""
    if text is None:
        return []
    try:
        found = [int(part) for part in text.split(",")]
    except ValueError:
        raise UserError(f"{flag}: is {text!r}; whole numbers with commas between them are needed, as in 128,512") from None
    if min(found) < 1:
        raise UserError(f"{flag}: has {min(found)}; 1 or more is needed")
    return found


def _machine(machine: str, device: DeviceName) -> Machine:
    """The profile named, or this computer as it is: rates need no op times."""
    from exec.local import check_runs_here, this_computer
    from sim.machines import load

    if machine:
        found = load(Path(machine) if Path(machine).exists() else machine)
        check_runs_here(found, device=device)
        return found
    return this_computer(device)
