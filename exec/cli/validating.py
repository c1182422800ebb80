"""`validate`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from sim.cli import output

if TYPE_CHECKING:
    from exec.devices import DeviceName


def validate(profile: str, grid: Path | None, device: DeviceName, as_json: bool) -> None:
    from exec import devices
    from exec.local import check_runs_here
    from exec.validation.grid import load_grid
    from exec.validation.run import Finished
    from exec.validation.run import validate as really_validate
    from sim.machines import load

    devices.check(device)
    machine = load(profile)
    check_runs_here(machine, device=device)
    repeats, cases = load_grid(grid, device)
    kept = Path(profile).with_suffix(".validating.jsonl")
    output.check_writable("--machine", kept)
    finished = Finished(kept, machine)
    try:
        with output.steps(f"validating {len(cases)} cases, {repeats} runs each") as say:
            if len(finished):
                say(f"{len(finished)} cases were finished before and are taken from {kept}")
            result = really_validate(machine, cases, repeats, finished, say, device)
    except KeyboardInterrupt:
        output.note(f"interrupted; {len(finished)} of {len(cases)} cases are kept in {kept}: the same command goes on from there")
        raise
    finished.forget()
    output.print_json(result) if as_json else show(result)


def show(result: dict[str, Any]) -> None:
    columns = ("scheduler", "batch", "prompt", "gen", "links", "stratum", "measured", "spread", "simulated", "error", "worst lane", "naive")
    rows = [
        (c["scheduler"], f"{c['batch']}/{c['microbatch']}", c["prompt"], c["gen"], _links(c), c["stratum"], output.seconds(c["measured_s"]),
         f"{c['repeat_spread']:.1%}", output.seconds(c["simulated_s"]), f"{c['error']:+.1%}", _worst(c["lane_busy_error"]),
         f"{c['naive_error']:+.1%}")
        for c in result["cases"]
    ]  # fmt: skip
    title = f"validated {result['machine']}, medians of {result['repeats']} runs"
    output.print_table(title, columns, rows, numeric=columns[1:4] + columns[6:10])
    print()
    columns = ("over", "cases", "median error", "90th percentile", "lane busy", "naive", "spread of repeats")
    rows = [
        (name, count, *(f"{result[key][name]:.1%}" for key in (
            "median_abs_error", "p90_abs_error", "median_lane_busy_error", "median_naive_error", "median_repeat_spread")))
        for name, count in result["count"].items()
    ]  # fmt: skip
    output.print_table("absolute errors of the simulator", columns, rows, numeric=columns[1:])
    rank = result["rank_agreement"]
    print(f"\nschedulers measured over 5 % apart: {rank['agreed']} of {rank['pairs']} pairs ranked alike")


def _links(case: dict[str, Any]) -> str:
    """Rates that differ from the profile's."""
    return " ".join(f"{n} {output.size(case[n]) + '/s' if case[n] else 'native'}" for n in ("h2d", "d2h", "pin") if n in case) or "profile"


def _worst(errors: dict[str, float]) -> str:
    lane = max(errors, key=lambda name: abs(errors[name]), default="")
    return f"{lane} {errors[lane]:+.1%}" if lane else "-"
