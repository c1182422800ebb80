"""cache: decoding with a share of the experts on the GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sim.cli import options


def cache(
    model: options.Model,
    trace: Annotated[
        Path, typer.Option(exists=True, dir_okay=False, help="Recorded routing (Parquet), its decode steps.", show_default=False)
    ],
    capacity: Annotated[str | None, typer.Option(help="Experts of each layer that stay on the GPU, separated by commas.")] = None,
    auto: Annotated[bool, typer.Option("--auto", help="Choose all of it for a machine, by simulating, and say why.")] = False,
    machine: Annotated[str | None, typer.Option(help="Built-in name, or a YAML profile; without it, hit rates and no times.")] = None,
    evict: Annotated[
        str | None, typer.Option(help="lru, lfu, lfru, sieve, affinity, static, belady; several by commas. [default: lru,lfu,lfru]")
    ] = None,
    admit: Annotated[
        str | None, typer.Option(help="always, contest (the least worthy goes, new or not), frequent. [default: always]")
    ] = None,
    prefetch: Annotated[str | None, typer.Option(help="none, affinity, markov, next-gate, sequence. [default: none]")] = None,
    work: Annotated[
        str | None, typer.Option(help="Where a missing expert is computed: gpu, cpu-expert, hybrid. [default: gpu]")
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Sequences decoded together.")] = 1,
    whole: Annotated[bool, typer.Option("--global", help="The layers share capacity x layers.")] = False,
    host: Annotated[int | None, typer.Option(min=1, help="Experts in host memory; the rest is read over lane nvme.")] = None,
    ungoverned: Annotated[bool, typer.Option("--no-governor", help="Prefetch even where it does not pay.")] = False,
    steps: Annotated[int | None, typer.Option(min=0, help="Decode steps; 0: all. Else 1000, with --auto 256, all with no machine.")] = None,
    sequences: Annotated[int | None, typer.Option(min=1, help="So many sequences, spread evenly over the trace.")] = None,
    skip: Annotated[int, typer.Option(min=0, help="Leave out so many sequences at the front, before --sequences.")] = 0,
    next_gate: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="Trace of what each layer's gate said one layer earlier.")
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw hit rates and what they are worth: OUT.svg or OUT.png.")] = None,
    json: options.Json = False,
) -> None:
    """Decode with a share of the experts on the GPU: hit rate, bytes and tokens/s of each policy."""
    from sim.cli import caching

    caching.cache(
        model, machine, trace, auto=auto, capacity=capacity, evict=evict, admit=admit, prefetch=prefetch, work=work, batch=batch,
        whole=whole, host=host, governed=not ungoverned, steps=steps, sequences=sequences, skip=skip, next_gate=next_gate, plot=plot,
        as_json=json,
    )  # fmt: skip
