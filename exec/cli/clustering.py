"""`run --ranks`."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from sim.cli import options
from sim.cli import output as out
from sim.errors import UserError

if TYPE_CHECKING:
    from exec.cluster.losses import RunStopped
    from exec.cluster.runs import Setup


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
    ranks: int, model: str, scheduler: str | None, workload: str | None, *, tokens: int | None, layers: int | None, skew: float,
    chunks: int | None, gen: int | None, batch: int | None, seed: int, timeline: Path | None, check: bool, as_json: bool,
) -> None:  # fmt: skip
    out.check_writable("--timeline", timeline, options.TIMELINE_SUFFIXES)
    if scheduler is None:
        raise UserError("--scheduler: missing; bulk-sync, chunked or overlapped")
    if (tokens is None) == (workload is None):
        raise UserError("--tokens, --workload: give one: rows of each rank through the MoE layers, or requests for the whole model")
    if tokens is not None:
        setup = _layers(model, ranks, tokens, scheduler, layers, skew, seed, chunks)
    else:
        setup = _model(model, ranks, str(workload), scheduler, gen, batch, seed, chunks)
    setup = replace(setup, order=replace(setup.order, keep=check))
    setup.fresh()
    _run(setup, timeline, check, as_json)


def threads_of(ranks: int) -> int:
    """Threads of each rank's compute lane on this computer."""
    import os

    return max(1, (os.cpu_count() or 1) // ranks)


def _layers(
    model: str, ranks: int, tokens: int, scheduler: str, layers: int | None, skew: float, seed: int, chunks: int | None
) -> Setup:
    from exec.cluster.runs import layers_setup
    from exec.execute import spec_of

    return layers_setup(
        spec_of(model), [tokens] * ranks, scheduler, layers=layers, skew=skew, seed=seed, chunks=chunks, threads=threads_of(ranks)
    )


def _model(
    model: str, ranks: int, workload: str, scheduler: str, gen: int | None, batch: int | None, seed: int, chunks: int | None
) -> Setup:
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


def _run(setup: Setup, timeline: Path | None, check: bool, as_json: bool) -> None:
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
        _tell_loss(setup, stopped, timeline)
        raise typer.Exit(1) from None
    difference = compare(setup, done.outputs) if check else None
    found = summary.summarize(setup, done, difference)
    if timeline is not None:
        write(timeline, summary.timeline(setup, done.run, found["clock_offsets"]))
    out.print_json(found) if as_json else show(found)


def _tell_loss(setup: Setup, stopped: RunStopped, timeline: Path | None) -> None:
    """One message: who was lost, and where what happened until then is kept."""
    import sys

    from exec.cluster import summary

    kept = "nothing had begun"
    if stopped.run is not None:
        path = timeline or Path(f"lost-run-{time.strftime('%Y%m%d-%H%M%S')}.parquet")
        write(path, summary.timeline(setup, stopped.run))
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
    rows = [
        ("tokens on each rank", ", ".join(map(str, found["tokens_per_rank"]))), ("makespan", out.seconds(found["makespan_s"])), *layer,
        ("tokens/s", f"{found['tokens_per_s']:,.0f}"), ("sent between ranks", out.size(found["wire_bytes"])),
        ("communication hidden", f"{found['comm_hidden']:.0%}"), ("tasks", found["tasks"]), *same, *offsets,
    ]  # fmt: skip
    out.print_table(f"{found['scheduler']} of {found['model']} on {found['ranks']} ranks", ("", "value"), rows)


def _tokens(equal: bool | None) -> str:
    return "" if equal is None else f", tokens {'equal' if equal else 'DIFFER'}"
