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

    out.check_writable("--timeline", timeline, options.TIMELINE_SUFFIXES)
    profile = _profile(machine, ranks)
    serving = _serving(
        ranks, model, placement, trace=trace, skew=skew, shift=shift, requests=requests, seats=-(-(batch or 64 * ranks) // ranks),
        steps=gen or 16, spares=spares, every=every, hysteresis=hysteresis, seed=seed,
    )  # fmt: skip
    drill = _drill(kill, ranks, recover)
    try:
        real = _really(serving, recover, drill)
    except RunStopped as stopped:
        tell_loss(stopped, timeline, lambda run: _timeline(serving, run))
        raise typer.Exit(1) from None
    twins = _twins(serving, profile, real, drill) if profile is not None else []
    found = summarize(serving, real, twins, largest_difference(serving, real.answers) if check else None)
    if timeline is not None:
        write(timeline, _timeline(serving, real.run))
    out.print_json(found) if as_json else _show(found, placement)


def _profile(machine: str | None, ranks: int) -> Machine | None:
    from exec.cli.clustering import _profile as of_ranks

    return None if machine is None else of_ranks(machine, [ranks])


def _serving(
    ranks: int, model: str, placement: str, *, trace: Path | None, skew: float, shift: int | None, requests: int | None, seats: int,
    steps: int, spares: int, every: int, hysteresis: float, seed: int,
) -> Serving:  # fmt: skip
    from exec.cluster.calibrate import threads_of
    from exec.cluster.placing import Serving
    from exec.execute import spec_of
    from sim.ep.chosen import drawn, onto_one_rank, recorded
    from sim.placement.policy import load as load_policy
    from sim.placement.rebalance import Rebalancer
    from sim.schedulers.ep.rebalancing import Settings

    spec = spec_of(model)
    count = requests or 4 * ranks * seats
    at = count if shift is None else min(shift, count)
    chosen = recorded(trace, spec, count, steps) if trace is not None else drawn(spec, count, steps, skew, seed)
    rebalancer = Rebalancer(load_policy(placement, "--placement"), -(-(spec.experts + spares) // ranks), hysteresis, seed)
    before = chosen.counts(slice(0, at))
    chosen = chosen.shifted(at, onto_one_rank(before, rebalancer.first(before, ranks)))
    settings = Settings(seats, every=every, most_rows=seats * spec.top_k)
    return Serving(spec, ranks, chosen, at, rebalancer, settings, (steps,) * count, seed=seed, threads=threads_of(ranks))


def _drill(kill: str | None, ranks: int, recover: bool) -> Kill | None:
    """From RANK@STEP."""
    from exec.cluster.recovering import Kill

    if kill is None:
        return None
    rank, _, step = kill.partition("@")
    if not (rank.isdecimal() and step.isdecimal() and int(rank) < ranks):
        raise UserError(f"--kill: is {kill!r}; RANK@STEP is needed, as in 1@20, with a rank of 0 to {ranks - 1}")
    if not recover:
        raise UserError("--kill: ends the run, as nobody is to go on; add --on-rank-loss recover")
    return Kill(int(rank), int(step))


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
        changes = when_lost(serving, profile, drill, real.replaced_s) if drill is not None else ()
        return simulate(serving, profile, changes)


def _timeline(serving: Serving, run: Run) -> Timeline:
    from sim.timeline import timeline_of
    from traces.files import Provenance

    origin = f"really run rebalancing of {serving.model.name} on {serving.ranks} ranks"
    return timeline_of(run, Provenance("recorded", origin, "measured"))


def _show(found: dict[str, Any], placement: str) -> None:
    columns = ("", "plans", "rows/s measured", "simulated", "error")
    rows = [
        (p["phase"], p["plans"], _rate(p["measured_rows_per_s"]), _rate(p["simulated_rows_per_s"]),
         "" if p["error"] is None else f"{p['error']:+.1%}")
        for p in found["phases"] if p["plans"]
    ]  # fmt: skip
    out.print_table(f"{placement} on {found['ranks']} ranks, {found['model']}", columns, rows, numeric=columns[1:])
    moved = f"{found['moves']} copies of experts moved ({out.size(found['moved_bytes'])}) in {found['rebalances']} rebalancings"
    print(
        f"\n{found['requests']} requests: {found['answered']} answered, {found['lost']} lost, {found['duplicated']} answered twice; "
        f"{moved}, {found['loads']} loaded anew"
    )
    for rank, after_s in zip(found["joined_ranks"], found["replaced_s"], strict=False):
        print(
            f"rank {rank} was lost and replaced within {out.seconds(after_s)}; {found['replayed_rows']} rows were computed again, "
            f"{found['handed_over']} requests went to other ranks"
        )
    print(f"plans ran for {out.seconds(found['running_s'])} of {out.seconds(found['wall_s'])}; between them they were handed out and in")
    if found["max_relative_difference"] is not None:
        print(f"largest difference from a single process: {found['max_relative_difference']:.1e} of the largest activation")


def _rate(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}"
