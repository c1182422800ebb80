"""moe-layer, place and swarm: one layer over several GPUs, where its experts lie, and a cluster over regions."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sim.cli import options


def moe_layer(
    model: options.Model, machine: options.Machine,
    tokens_per_gpu: Annotated[int, typer.Option(min=1, help="Tokens of each rank.", show_default=False)],
    schedulers: Annotated[str, typer.Option(help="Names or FILE.py:CLASS, separated by commas.", show_default=False)],
    experts: Annotated[int | None, typer.Option(min=1, help="In place of the model's.")] = None,
    hidden: Annotated[int | None, typer.Option(min=1, help="In place of the model's.")] = None,
    ffn: Annotated[int | None, typer.Option(min=1, help="Intermediate size of an expert, in place of the model's.")] = None,
    top_k: Annotated[int | None, typer.Option(min=1, help="In place of the model's.")] = None,
    gated: Annotated[bool, typer.Option(help="Experts of three matrices (SwiGLU), or of two.")] = True,
    dtype: Annotated[str | None, typer.Option(help="Element type of weights, activations and what is sent: bf16, fp8, tf32, ...")] = None,
    trace: options.Trace = None,
    skew: Annotated[float, typer.Option(min=0, help="Without a trace: exponent of the experts' popularity (Zipf); 0: uniform.")] = 0.0,
    capacity_factor: Annotated[float | None, typer.Option(min=0.01, help="Drop what is beyond it; none: drop nothing.")] = None,
    jitter: Annotated[str, typer.Option(help="vm, supercomputer, none, or a file of measured delay ratios.")] = "none",
    steps: Annotated[int, typer.Option(min=1, max=1_000_000, help="Draws of the jitter.")] = 100,
    rate: Annotated[list[str] | None, typer.Option(help="Set a figure of the op table: LANE:OP:FIELD=VALUE; may be repeated.")] = None,
    seed: options.Seed = 0, timeline: options.Timeline = None,
    plot: Annotated[Path | None, typer.Option(help="Write a picture of rank 0's time in each system: OUT.svg or OUT.png.")] = None,
    json: options.Json = False,
) -> None:  # fmt: skip
    """Simulate one MoE layer over the GPUs of a machine, under several systems of expert parallelism."""
    from sim.cli import moe_layering

    asked = moe_layering.ask(
        model, machine, tokens_per_gpu, schedulers, sizes={"experts": experts, "hidden": hidden, "ffn": ffn, "top_k": top_k},
        gated=gated, dtype=dtype, trace=trace, skew=skew, capacity_factor=capacity_factor, jitter=jitter, steps=steps,
        seed=seed, rates=rate or (),
    )  # fmt: skip
    moe_layering.run(asked, timeline=timeline, plot=plot, as_json=json)


def place(
    machine: options.Machine,
    load: Annotated[list[Path], typer.Option(help="Routing trace or expert counts; several times: several windows.", show_default=False)],
    policies: Annotated[str, typer.Option(help="Names, or NAME:OPTION=VALUE, separated by commas.")] = "round-robin,greedy,eplb,robust",
    test_load: Annotated[list[Path] | None, typer.Option(help="Score on this too: load that no policy saw.", show_default=False)] = None,
    gpus: Annotated[int | None, typer.Option(min=1, max=65536, help="GPUs; of a machine, as many nodes as that takes.")] = None,
    spares: Annotated[int | None, typer.Option(min=0, help="Slots a layer beyond one an expert; else 0, or all that --model fits.")] = None,
    model: Annotated[str | None, typer.Option(help="Slots by what its experts weigh; built-in name, or a directory.")] = None,
    groups: Annotated[int, typer.Option(min=1, help="Groups of experts that the router keeps together (eplb).")] = 1,
    current: Annotated[Path | None, typer.Option(help="The placement that stands now; without it, round-robin.")] = None,
    seed: options.Seed = 0,
    output: Annotated[Path | None, typer.Option("-o", help="Write the placement of one policy: OUT.json.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write a page with load before and after, by GPU and layer: OUT.html.")] = None,
    json: options.Json = False,
) -> None:
    """Score expert placement policies on recorded load."""
    from sim.cli import placing

    names = [name.strip() for name in policies.split(",") if name.strip()]
    placing.place(placing.Wanted(machine, load, names, test_load or (), gpus, spares, model, groups, current, seed, output, html), json)


def swarm(
    machine: Annotated[str, typer.Option(help="A cluster: built-in name, YAML file, or Helix .ini file.", show_default=False)],
    model: options.Model,
    trace: Annotated[Path, typer.Option(help="Recorded routing, or expert counts, as place takes them.", show_default=False)],
    requests: Annotated[Path | None, typer.Option(help="Request trace (Parquet, or an Azure CSV); without one, Poisson arrivals.")] = None,
    placement: Annotated[str, typer.Option(help="Policy, or NAME:OPTION=VALUE.")] = "eplb",
    replica_routing: Annotated[str, typer.Option(help="nearest, least-loaded, power-of-two, lp.")] = "nearest",
    events: Annotated[Path | None, typer.Option(help="What goes wrong: FILE.yaml.")] = None,
    duration: Annotated[float | None, typer.Option(min=1, help="Seconds to simulate; else until all is answered.")] = None,
    design: Annotated[str, typer.Option(help="spread, replicas, edge, nodes; replicas and edge are always in the table.")] = "spread",
    autoscale: Annotated[str, typer.Option(help="Rented nodes: none (all), fixed, reactive, predictive, or NAME:OPTION=VALUE.")] = "none",
    prices: Annotated[Path | None, typer.Option(help="Price trace: AWS JSON, CSV, or a folder of them.", show_default=False)] = None,
    prices_from: Annotated[str | None, typer.Option(help="The trace's time at which the study begins; else when all have a price.")] = None,
    bid: Annotated[float | None, typer.Option(min=0.01, help="Share of a node's list price above which it is taken away.")] = None,
    arbitrage: Annotated[str, typer.Option(help="none, on, or on:OPTION=VALUE: replicas move to cheaper nodes.")] = "none",
    spares: Annotated[int, typer.Option(min=0, help="Copies a layer beyond one of each expert (spread).")] = 0,
    first: Annotated[int | None, typer.Option(min=1, help="Only the trace's first so many requests.")] = None,
    everywhere: Annotated[bool, typer.Option("--everywhere", help="Requests come in evenly over all regions.")] = False,
    rebalance: Annotated[float, typer.Option(min=0, help="Seconds between looks at the placement; 0: never.")] = 600.0,
    gossip_period: Annotated[float, typer.Option(min=0.05, max=3600, help="Seconds between a node's gossip rounds.")] = 2.0,
    fan_out: Annotated[int, typer.Option(min=1, max=64, help="Peers that a node tells in a round.")] = 3,
    adaptive: Annotated[int, typer.Option(min=0, max=64, help="Peers more for the most important news.")] = 0,
    loss: Annotated[float, typer.Option(min=0, max=0.9, help="Share of messages lost, on top of what the links lose.")] = 0.0,
    tolerate: Annotated[int, typer.Option(min=0, max=64, help="Faulty members f that the control plane of 3f + 1 bears.")] = 1,
    silent: Annotated[int, typer.Option(min=0, max=64, help="Members of the control plane that never say a word.")] = 0,
    html: Annotated[Path | None, typer.Option(help="Write a page with a map, flows and load over time: OUT.html.")] = None,
    seed: options.Seed = 0, timeline: options.Timeline = None, json: options.Json = False,
) -> None:  # fmt: skip
    """Serve a request trace on a cluster over regions, with crashes and moves, beside the baselines of a sane operator."""
    from sim.cli import swarming

    wanted = swarming.Wanted(
        machine, model, trace, requests, placement, replica_routing, events, duration, design, spares, first, everywhere, rebalance,
        gossip_period, fan_out, adaptive, loss, tolerate, silent, seed, autoscale, prices, prices_from, bid, arbitrage,
    )  # fmt: skip
    swarming.swarm(wanted, timeline, html, json)
