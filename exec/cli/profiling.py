"""`calibrate --ranks` and `validate --ranks`: profiles of several ranks, how they are made, read and judged."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import typer

from exec import devices
from exec.devices import DeviceName
from sim.cli import output as out
from sim.errors import UserError

if TYPE_CHECKING:
    from sim.machines.schema import Machine


def calibrate(ranks: int, path: Path, device: DeviceName) -> None:
    from exec.calibration.profile import write as write_profile
    from exec.cluster.calibrate import calibrate as measure
    from exec.cluster.controller import Cluster
    from exec.cluster.losses import RunStopped

    out.check_writable("-o", path, (".yaml", ".yml"))
    kind = devices.for_ranks(device, ranks)
    try:
        with out.steps(f"calibrating {ranks} ranks") as say, Cluster(ranks) as cluster:
            machine = measure(cluster, say, kind)
    except RunStopped as stopped:
        say_failed(str(stopped))
    write_profile(machine, path)
    rows = [(row.lane, row.op, out.seconds(row.latency_s), f"{row.ratio[0][1]:.2f}" if row.ratio else "") for row in machine.ops]
    out.print_table(f"calibrated {machine.name}: {path}", ("lanes", "op", "latency", "ratio"), rows, numeric=("latency", "ratio"))


def validate(ranks: str, profile: str | None, grid: Path | None, as_json: bool, device: DeviceName) -> None:
    """Each number of ranks in turn. Exits with 1 where a rank is lost."""
    from exec.cluster.losses import RunStopped
    from exec.validation.ranks import load_grid
    from exec.validation.ranks import validate as really_validate

    numbers = numbers_of(ranks)
    kind = devices.for_ranks(device, max(numbers))
    rounds, cases = load_grid(grid, kind)
    machine = None if profile is None else load(profile, numbers, kind)
    found = []
    try:
        with out.steps(f"validating {len(cases)} cases on {ranks} ranks, at most {rounds} rounds each") as say:
            for number in numbers:
                found.append(really_validate(number, cases, rounds, machine, say, kind))
    except RunStopped as stopped:
        say_failed(str(stopped))
    if as_json:
        out.print_json({"ranks": found})
        return
    for one in found:
        _show_validated(one)


def numbers_of(ranks: str) -> list[int]:
    if not all(part.isdecimal() and int(part) > 0 for part in ranks.split(",")):
        raise UserError(f"--ranks: is {ranks!r}; a number of ranks, or a list as in 2,4, is needed")
    return [int(part) for part in ranks.split(",")]


def load(profile: str, numbers: list[int], device: str = "") -> Machine:
    """device: what the ranks compute with, see `exec.cluster.job.Order`."""
    from exec.cluster.machine import has_devices, ranks_of
    from sim import machines

    machine = machines.load(profile)
    for number in numbers:
        if ranks_of(machine) != number or has_devices(machine) != bool(device):
            on = f" --device {device}" if device else ""
            made = f"python -m exec calibrate --ranks {number}{on} -o PROFILE.yaml"
            raise UserError(f"--machine {profile}: is no profile of {number} ranks{' on ' + device if device else ''}; run: {made}")
    return machine


def say_failed(why: str) -> NoReturn:
    print(f"error: {why}", file=sys.stderr)
    raise typer.Exit(1)


def tell_disturbed(found: dict[str, Any]) -> None:
    """Whether a session of `validate` counts."""
    from exec.validation.grid import DISTURBED

    if not found["counts"]:
        print(f"\nTHIS SESSION DOES NOT COUNT: over {DISTURBED:.0%} of its runs were disturbed. Run it again on a quiet computer.")


def _show_validated(found: dict[str, Any]) -> None:
    columns = ("scheduler", "rows", "hidden", "ffn", "experts", "top-k", "skew", "layer measured", "spread", "simulated", "error")
    rows = [
        (c["scheduler"], c["tokens"], c["hidden"], c["ffn"], c["experts"], c["top_k"], c["skew"], out.seconds(c["measured_s"]),
         f"{c['repeat_spread']:.1%}", out.seconds(c["simulated_s"]), f"{c['error']:+.1%}")
        for c in found["cases"]
    ]  # fmt: skip
    out.print_table(f"{found['ranks']} ranks, {found['machine']}, medians of {found['rounds']} rounds", columns, rows, numeric=columns[1:])
    rank = found["rank_agreement"]
    tell_disturbed(found)
    print(
        f"\nlayer time: median absolute error {found['median_abs_error']:.1%}, 90th percentile {found['p90_abs_error']:.1%}; "
        f"median spread of repeats {found['median_repeat_spread']:.1%}; {found['disturbed']} of {found['runs']} "
        f"runs were disturbed and do not count\n"
        f"schedulers measured over 8 % apart: {rank['agreed']} of {rank['pairs']} pairs ranked alike\n"
    )
