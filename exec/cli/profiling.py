"""`calibrate --ranks` and `validate --ranks`: profiles of several ranks, how they are made, read and judged."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import typer

from exec import devices
from exec.devices import DeviceName
from sim.cli import output as out
from sim.errors import UserError

if TYPE_CHECKING:
    from sim.machines.schema import Machine

Found = dict[str, Any]
"""What `validate` says of one number of ranks."""


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
    """Each number of ranks in turn, see `each_number`."""
    from exec.validation import ranks as on_ranks

    numbers = numbers_of(ranks)
    kind = devices.for_ranks(device, max(numbers))
    rounds, cases = on_ranks.load_grid(grid, kind)
    machine = None if profile is None else load(profile, numbers, kind)
    for number in numbers:  # ahead of the first measurement
        on_ranks.setups_of(cases, number, kind)
    each_number(
        f"validating {len(cases)} cases on {ranks} ranks, at most {rounds} rounds each", numbers,
        lambda number, say: on_ranks.validate(number, cases, rounds, machine, say, kind), _show_validated, as_json,
    )  # fmt: skip


def each_number(
    what: str, numbers: Sequence[int], measure: Callable[[int, Callable[[str], None]], Found], show: Callable[[Found], None], as_json: bool
) -> None:
    """`measure` each number of ranks in turn, and tell what was found. Where they cannot go on, that is what was found before, and it
    exits with 1."""
    from exec.cluster.losses import RunStopped

    found, ended = list[Found](), ""
    try:
        with out.steps(what) as say:
            for number in numbers:
                found.append(measure(number, say))
    except RunStopped as stopped:
        ended = str(stopped)
    if as_json and found:
        out.print_json({"ranks": found})
    for one in found if not as_json else ():
        show(one)
    if ended:
        say_failed(ended)


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
