"""`run --ranks --placement`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from sim.cli import options
from sim.cli import output as out
from sim.errors import UserError

if TYPE_CHECKING:
    from exec.cluster.placing import Served, Serving
    from exec.cluster.recovering import Kill
    from sim.engines.run import Run
    from sim.machines.schema import Machine
    from traces.timeline import Timeline


def run(
    ranks: int, model: str, placement: str, *, machine: str | None, trace: Path | None, skew: float, shift: int | None,
    requests: int | None, batch: int | None, gen: int | None, spares: int, every: int, hysteresis: float, recover: bool,
    kill: str | None, seed: int, timeline: Path | None, check: bool, as_json: bool,
) -> None:  # fmt: skip
    from exec.cli.clustering import tell_loss, write
    from exec.cluster.losses import RunStopped
    from exec.cluster.phases import summarize
    from exec.cluster.placing import largest_difference
    from exec.cluster.traffic import Traffic

    out.check_writable("--timeline", timeline, options.TIMELINE_SUFFIXES)
    profile = _profile(machine, [ranks])
    traffic = Traffic(
        model=model, batch=batch, gen=gen or 16, requests=requests, shift=shift, trace=trace, skew=skew, spares=spares,
        rebalance_every=every, hysteresis=hysteresis, kill=kill, seed=seed,
    )  # fmt: skip
    serving = traffic.serving(ranks, placement)
    drill = traffic.drill(serving)
    if drill is not None and not recover:
        raise UserError("--kill: ends the run, as nobody is to go on; add --on-rank-loss recover")
    try:
        real = _really(serving, recover, drill)
    except RunStopped as stopped:
        tell_loss(stopped, timeline, lambda run: _timeline(serving, run))
        raise typer.Exit(1) from None
    twins = _twins(serving, profile, real, drill) if profile is not None else []
    found = summarize(serving, [real], twins, largest_difference(serving, [real.answers]) if check else None)
    if timeline is not None:
        write(timeline, _timeline(serving, real.run))
    out.print_json(found) if as_json else _show(found, placement)


def validate(ranks: str | None, placement: str, machine: str | None, grid: Path | None, as_json: bool) -> None:
    """Each number of ranks in turn, see `each_number`."""
    from exec.cli.profiling import each_number, numbers_of
    from exec.validation import placed
    from sim.placement.policy import load as load_policy

    if ranks is None:
        raise UserError("--placement: needs ranks that this command starts; leave torchrun out and give --ranks")
    load_policy(placement, "--placement")
    numbers = numbers_of(ranks)
    rounds, cases = placed.load_grid(grid)
    profile = _profile(machine, numbers)
    for number in numbers:  # ahead of the first measurement
        placed.jobs_of(cases, number, placement)
    each_number(
        f"validating {len(cases)} cases on {ranks} ranks, at most {rounds} rounds each", numbers,
        lambda number, say: placed.validate(number, placement, cases, rounds, profile, say), _show_validated, as_json,
    )  # fmt: skip


def _profile(machine: str | None, numbers: list[int]) -> Machine | None:
    from exec.cli.profiling import load as of_ranks

    return None if machine is None else of_ranks(machine, numbers)


def _really(serving: Serving, recover: bool, drill: Kill | None) -> Served:
    from exec.cluster.placing import serve
    from exec.cluster.profile import Unknown
    from exec.cluster.standing import StandingCluster

    with out.steps(f"starting {serving.ranks} ranks") as say, StandingCluster(serving.ranks, recover) as cluster:
        say("loading experts (the first run compiles the kernels)")
        return serve(cluster, serving, Unknown(), drill, say)


def _twins(serving: Serving, profile: Machine, real: Served, drill: Kill | None) -> list[Served]:
    """Simulated runs; a rank that was killed is lost at the same step there, and comes as long after as it did."""
    from exec.cluster.placing import simulate, when_lost

    with out.progress("simulating the same"):
        return simulate(serving, profile, when_lost(serving, profile, drill, real.replaced_s))


def _timeline(serving: Serving, run: Run) -> Timeline:
    from sim.timeline import timeline_of
    from traces.files import Provenance

    origin = f"really run rebalancing of {serving.model.name} on {serving.ranks} ranks"
    return timeline_of(run, Provenance("recorded", origin, "measured"))


def _show_validated(found: dict[str, Any]) -> None:
    from exec.cli.profiling import tell_disturbed

    for case in found["cases"]:
        _show(case, found["placement"])
        print()
    tell_disturbed(found)
    print(f"{found['disturbed']} of {found['runs']} plans and probes were disturbed and do not count")


def _show(found: dict[str, Any], placement: str) -> None:
    columns = ("", "plans", "disturbed", "rows/s measured", "simulated", "error")
    rows = [
        (p["phase"], p["plans"], "" if p["disturbed"] is None else p["disturbed"], _rate(p["measured_rows_per_s"]),
         _rate(p["simulated_rows_per_s"]), "" if p["error"] is None else f"{p['error']:+.1%}")
        for p in found["phases"] if p["plans"]
    ]  # fmt: skip
    out.print_table(f"{placement} on {found['ranks']} ranks, {found['model']}", columns, rows, numeric=columns[1:])
    moved = f"{found['moves']} copies of experts moved ({out.size(found['moved_bytes'])}) in {found['rebalances']} rebalancings"
    print(
        f"\n{found['requests']} requests: {found['answered']} answered, {found['lost']} lost, {found['duplicated']} answered twice; "
        f"{moved}, {found['loads']} loaded anew"
    )
    for rank, after_s in zip(found["joined_ranks"], found["replaced_s"], strict=False):
        print(f"rank {rank} was lost and replaced within {out.seconds(after_s)}")
    if found["lost_ranks"]:
        print(f"{found['replayed_rows']} rows were computed again, {found['handed_over']} requests went to other ranks")
    print(f"plans ran for {out.seconds(found['running_s'])} of {out.seconds(found['wall_s'])}; between them they were handed out and in")
    if found["max_relative_difference"] is not None:
        print(f"largest difference from a single process: {found['max_relative_difference']:.1e} of the largest activation")


def _rate(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}"
