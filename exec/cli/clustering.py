"""`run --ranks`."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from exec import devices
from exec.cli import profiling
from exec.devices import DeviceName
from sim.cli import options
from sim.cli import output as out
from sim.errors import UserError

if TYPE_CHECKING:
    from exec.cluster.losses import RunStopped
    from exec.cluster.runs import Setup
    from sim.engines.run import Run
    from sim.machines.schema import Machine


def place(ranks: int | None) -> tuple[int, int] | None:
    """(rank, ranks) that this process is, (-1, ranks) where it starts them; None: no ranks were asked for.

    Raises UserError where flag and environment contradict each other.
    """
    from exec.cluster import launch

    found = launch.place()
    if found is None:
        return None if ranks is None else (-1, ranks)
    if ranks is not None and ranks != found[1]:
        raise UserError(f"--ranks: is {ranks}, the environment's WORLD_SIZE is {found[1]}; leave the flag out under torchrun")
    return found


def serve_as_rank(rank: int, ranks: int) -> None:
    """Under torchrun, what all ranks but 0 do, whatever the command is. Exits with the code of the run."""
    from exec.cluster import launch
    from exec.cluster.rank import main

    raise typer.Exit(main(rank, ranks, *launch.control_address(), quiet=False))


def run(
    ranks: int, model: str, machine: str | None, scheduler: str | None, workload: str | None, *, tokens: int | None, layers: int | None,
    skew: float, chunks: int | None, gen: int | None, batch: int | None, seed: int, timeline: Path | None, check: bool, as_json: bool,
    device: DeviceName,
) -> None:  # fmt: skip
    """machine: profile of so many ranks, by which the same layers are simulated too."""
    out.check_writable("--timeline", timeline, options.TIMELINE_SUFFIXES)
    if scheduler is None:
        raise UserError("--scheduler: missing; bulk-sync, chunked or overlapped")
    if (tokens is None) == (workload is None):
        raise UserError("--tokens, --workload: give one: rows of each rank through the MoE layers, or requests for the whole model")
    if machine is not None and tokens is None:
        raise UserError("--machine: goes with --tokens; a profile of ranks prices MoE layers, not the rest of a model")
    kind = devices.for_ranks(device, ranks)
    profile = None if machine is None else profiling.load(machine, [ranks], kind)
    if tokens is not None:
        setup = _layers(model, ranks, tokens, scheduler, layers, skew, seed, chunks)
    else:
        setup = _model(model, ranks, str(workload), scheduler, gen, batch, seed, chunks)
    setup = replace(setup, order=replace(setup.order, keep=check, device=kind))
    setup.fresh()
    _run(setup, profile, timeline, check, as_json)


def _layers(
    model: str, ranks: int, tokens: int, scheduler: str, layers: int | None, skew: float, seed: int, chunks: int | None
) -> Setup:
    from exec.cluster.probes import threads_of
    from exec.cluster.runs import layers_setup
    from exec.execute import spec_of

    return layers_setup(
        spec_of(model), [tokens] * ranks, scheduler, layers=layers, skew=skew, seed=seed, chunks=chunks, threads=threads_of(ranks)
    )


def _model(
    model: str, ranks: int, workload: str, scheduler: str, gen: int | None, batch: int | None, seed: int, chunks: int | None
) -> Setup:
    from exec.cluster.probes import threads_of
    from exec.cluster.runs import model_setup, weights_directory
    from exec.execute import spec_of
    from exec.prompts import byte_prompts
    from sim.job import check_positions

    spec, load = spec_of(model), options.traffic(workload, gen, False)
    check_positions(spec, load)
    requests, lengths = load.requests(batch or 2 * ranks, seed)
    prompts = byte_prompts([r.prompt_tokens for r in requests], seed)
    return model_setup(
        spec, weights_directory(model), requests, lengths, prompts, ranks, scheduler, seed=seed, chunks=chunks, threads=threads_of(ranks)
    )


def _run(setup: Setup, profile: Machine | None, timeline: Path | None, check: bool, as_json: bool) -> None:
    from exec.cluster import summary
    from exec.cluster.controller import Cluster
    from exec.cluster.execute import execute
    from exec.cluster.losses import RunStopped
    from exec.cluster.profile import Unknown
    from exec.cluster.runs import compare

    scheduler = setup.fresh()
    try:
        with out.progress(f"starting {setup.order.ranks} ranks") as say, Cluster(setup.order.ranks) as cluster:
            say("loading weights (the first run compiles the kernels)")
            cluster.prepare(setup.order)
            say(f"running {setup.scheduler}")
            done = execute(cluster, scheduler, setup.requests, Unknown(), scheduler.lanes)
    except RunStopped as stopped:
        tell_loss(stopped, timeline, lambda run: summary.timeline(setup, run))
        raise typer.Exit(1) from None
    difference = compare(setup, done.outputs) if check else None
    found = summary.summarize(setup, done, difference, profile)
    if timeline is not None:
        write(timeline, summary.timeline(setup, done.run, found["clock_offsets"], found["device_clocks"]))
    out.print_json(found) if as_json else show(found)


def tell_loss(stopped: RunStopped, timeline: Path | None, timeline_of: Callable[[Run], Any]) -> None:
    """One message: who was lost, and where what happened until then is kept."""
    kept = "nothing had begun"
    if stopped.run is not None:
        path = timeline or Path(f"lost-run-{time.strftime('%Y%m%d-%H%M%S')}.parquet")
        write(path, timeline_of(stopped.run))
        kept = f"the timeline until then is in {path}"
    print(f"error: {stopped}; {kept}", file=sys.stderr)


def write(path: Path, timeline: Any) -> None:
    from traces.chrome import write_chrome
    from traces.timeline import write_timeline

    (write_timeline if path.suffix == ".parquet" else write_chrome)(path, timeline)


def show(found: dict[str, Any]) -> None:
    layer = [("MoE layer", out.seconds(found["layer_s"]))] if found["layer_s"] is not None else []
    checked = found["max_difference"] is not None
    same = [("difference from a single process", f"{found['max_difference']:.1e}" + _tokens(found["tokens_equal"]))] if checked else []
    offsets = [
        (f"clock of rank {rank}", f"{o['offset_us']:+.0f} us, sure to {o['uncertainty_us']:.0f} us")
        for rank, o in found["clock_offsets"].items()
    ]  # fmt: skip
    twin = found["simulated"]
    beside = [(f"simulated on {found['machine']}", f"{out.seconds(twin['makespan_s'])}, {twin['error']:+.1%}")] if twin else []
    clocks = [
        (f"events of rank {rank}'s device", f"sure to {c['uncertainty_us']:.0f} us, moved {c['moved_us']:+.0f} us")
        for rank, c in found["device_clocks"].items()
    ]  # fmt: skip
    rows = [
        ("tokens on each rank", ", ".join(map(str, found["tokens_per_rank"]))),
        ("makespan", out.seconds(found["makespan_s"])), *beside, *layer,
        ("tokens/s", f"{found['tokens_per_s']:,.0f}"), ("sent between ranks", out.size(found["wire_bytes"])),
        ("communication hidden", f"{found['comm_hidden']:.0%}"), ("tasks", found["tasks"]), *same, *offsets, *clocks,
    ]  # fmt: skip
    out.print_table(f"{found['scheduler']} of {found['model']} on {found['ranks']} ranks", ("", "value"), rows)


def _tokens(equal: bool | None) -> str:
    return "" if equal is None else f", tokens {'equal' if equal else 'DIFFER'}"
