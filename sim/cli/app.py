"""python -m sim: list, run, compare, check, bench, policy, explain, place."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sim.cli import entry, options

if TYPE_CHECKING:
    from sim.job import Job

app = typer.Typer(
    name="sim", add_completion=False, no_args_is_help=False, pretty_exceptions_enable=False, rich_markup_mode=None,
    help="Simulate a schedule of Mixture-of-Experts serving on a machine.",
)  # fmt: skip


class Kind(StrEnum):
    models = "models"
    machines = "machines"
    workloads = "workloads"
    schedulers = "schedulers"


class EngineChoice(StrEnum):
    auto = "auto"
    simpy = "simpy"
    compiled = "compiled"


class ObjectiveChoice(StrEnum):
    throughput = "throughput"
    latency = "latency"
    cost = "cost"


class FormChoice(StrEnum):
    t4 = "t4"
    l4_padding = "l4-padding"


Engine = Annotated[EngineChoice, typer.Option(help="auto: compiled where the whole schedule is known in advance.")]
Objective = Annotated[ObjectiveChoice, typer.Option(help="cost: dollars a token, by the machine's price.")]
Refine = Annotated[int, typer.Option(min=0, max=1000, help="Policies to simulate; 0: trust the bound.")]
PaperMode = Annotated[bool, typer.Option("--paper-mode", help="Answer as MoE-Lightning's released optimiser does.")]
CpuMemory = Annotated[float | None, typer.Option(min=0, help="Paper mode: GiB of host memory available; else the machine's.")]
CpuBandwidth = Annotated[float | None, typer.Option(min=0, help="Paper mode: GB/s of the host's memory; else 100.")]
MemoryForm = Annotated[FormChoice | None, typer.Option(help="Paper mode: its rule for the GPU's memory; else t4.")]
NoCache = Annotated[bool, typer.Option("--no-cache", help="Search again, and keep nothing.")]


@app.command("list")
def list_(kind: Kind, json: options.Json = False) -> None:
    """What is built in: models, machines, workloads or schedulers."""
    from sim.cli import listing

    listing.show(kind.value, json)


@app.command()
def run(
    model: options.Model, machine: options.Machine, workload: options.Workload, scheduler: options.PolicyScheduler = None,
    gen: options.Gen = None, batch: options.Batch = None, microbatch: options.Microbatch = None, padded: options.Padded = False,
    policy: options.PolicyFile = None, trace: options.Trace = None, seed: options.Seed = 0, engine: Engine = EngineChoice.auto,
    timeline: options.Timeline = None, json: options.Json = False,
) -> None:  # fmt: skip
    """Simulate one scheduler."""
    from sim.cli import running

    running.run(
        lambda: options.job(
            model, machine, workload, scheduler, gen=gen, batch=batch, microbatch=microbatch, padded=padded, policy=policy, seed=seed
        ),
        trace=trace, engine=engine.value, timeline=timeline, as_json=json,
    )  # fmt: skip


@app.command()
def compare(
    model: options.Model, machine: options.Machine, workload: options.Workload,
    schedulers: Annotated[str, typer.Option(help="Names or FILE.py:CLASS, separated by commas.", show_default=False)],
    gen: options.Gen = None, batch: options.Batch = None, microbatch: options.Microbatch = None, padded: options.Padded = False,
    policy: options.PolicyFile = None, trace: options.Trace = None, seed: options.Seed = 0, engine: Engine = EngineChoice.auto,
    json: options.Json = False,
) -> None:  # fmt: skip
    """Simulate several schedulers on the same requests."""
    from sim.cli import running

    def job(scheduler: str) -> Job:
        return options.job(
            model, machine, workload, scheduler, gen=gen, batch=batch, microbatch=microbatch, padded=padded, policy=policy, seed=seed
        )

    running.compare(job, schedulers, trace=trace, engine=engine.value, as_json=json)


@app.command()
def check(
    scheduler: Annotated[str, typer.Argument(metavar="FILE.py:CLASS", help="Your scheduler, or the name of a built-in one.")],
    json: options.Json = False,
) -> int:
    """Run the conformance battery on a scheduler."""
    from sim.cli import checking

    return checking.check(scheduler, json)


@app.command()
def bench(json: options.Json = False) -> None:
    """Tasks per second of both engines, on one plan, in one process."""
    from sim.cli import benching

    benching.bench(json)


@app.command()
def policy(
    model: options.Model, machine: options.Machine, workload: options.Workload, gen: options.Gen = None,
    objective: Objective = ObjectiveChoice.throughput, refine: Refine = 8, padded: options.Padded = False, seed: options.Seed = 0,
    paper_mode: PaperMode = False, cpu_memory: CpuMemory = None, cpu_bandwidth: CpuBandwidth = None, memory_form: MemoryForm = None,
    output: Annotated[Path | None, typer.Option("-o", help="Write the policy for run --policy: OUT.yaml.")] = None,
    no_cache: NoCache = False, json: options.Json = False,
) -> None:  # fmt: skip
    """Find the best policy: batch sizes, what lives where, and the scheduler."""
    from sim.cli import choosing

    paper = choosing.paper_arguments(paper_mode, cpu_memory, cpu_bandwidth, memory_form.value if memory_form else None)
    choosing.choose(
        model, machine, workload, gen=gen, objective=objective.value, refine=refine, padded=padded, seed=seed, paper=paper,
        to=output, cached=not no_cache, as_json=json,
    )  # fmt: skip


@app.command()
def explain(
    model: options.Model, machine: options.Machine, workload: options.Workload, gen: options.Gen = None,
    objective: Objective = ObjectiveChoice.throughput, refine: Refine = 8, padded: options.Padded = False, seed: options.Seed = 0,
    paper_mode: PaperMode = False, cpu_memory: CpuMemory = None, cpu_bandwidth: CpuBandwidth = None, memory_form: MemoryForm = None,
    no_cache: NoCache = False, scheduler: options.PolicyScheduler = None, batch: options.Batch = None,
    microbatch: options.Microbatch = None, policy: options.PolicyFile = None, trace: options.Trace = None,
    engine: Engine = EngineChoice.auto, timeline: options.Timeline = None,
    plot: Annotated[Path | None, typer.Option(help="Write the hierarchical roofline: OUT.svg or OUT.png.")] = None,
    json: options.Json = False,
) -> None:  # fmt: skip
    """Tell what limits a run and what would make it faster; without a scheduler or policy, the best policy's run."""
    from sim.cli import choosing, explaining

    paper = choosing.paper_arguments(paper_mode, cpu_memory, cpu_bandwidth, memory_form.value if memory_form else None)

    def job() -> Job:
        if scheduler is None and policy is None and batch is None and microbatch is None:
            return explaining.best_job(
                model, machine, workload, gen=gen, objective=objective.value, refine=refine, padded=padded, seed=seed, paper=paper,
                cached=not no_cache,
            )  # fmt: skip
        return options.job(
            model, machine, workload, scheduler, gen=gen, batch=batch, microbatch=microbatch, padded=padded, policy=policy, seed=seed
        )

    explaining.explain(job, trace=trace, engine=engine.value, plot=plot, timeline=timeline, as_json=json)


@app.command("moe-layer")
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


@app.command()
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


@app.command()
def swarm(
    machine: Annotated[str, typer.Option(help="A cluster: built-in name, YAML file, or Helix .ini file.", show_default=False)],
    model: options.Model,
    trace: Annotated[Path, typer.Option(help="Recorded routing, or expert counts, as place takes them.", show_default=False)],
    requests: Annotated[Path | None, typer.Option(help="Request trace (Parquet, or an Azure CSV); without one, Poisson arrivals.")] = None,
    placement: Annotated[str, typer.Option(help="Policy, or NAME:OPTION=VALUE.")] = "eplb",
    replica_routing: Annotated[str, typer.Option(help="nearest, least-loaded, power-of-two, lp.")] = "nearest",
    events: Annotated[Path | None, typer.Option(help="What goes wrong: FILE.yaml.")] = None,
    duration: Annotated[float | None, typer.Option(min=1, help="Seconds to simulate; else until all is answered.")] = None,
    design: Annotated[str, typer.Option(help="spread, replicas, edge; the last two are always in the table.")] = "spread",
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
        gossip_period, fan_out, adaptive, loss, tolerate, silent, seed,
    )  # fmt: skip
    swarming.swarm(wanted, timeline, html, json)


@app.command()
def cache(
    model: options.Model,
    trace: Annotated[Path, typer.Option(help="Recorded routing (Parquet), its decode steps.", show_default=False)],
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
    next_gate: Annotated[Path | None, typer.Option(help="Trace of what each layer's gate said one layer earlier.")] = None,
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


reproduce = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Simulate what was published, and tell how far it is off.")
app.add_typer(reproduce, name="reproduce")
Folder = Annotated[Path | None, typer.Option("-o", help="Write the page and its pictures into this directory.", show_default=False)]


@reproduce.command("moe-lightning")
def moe_lightning(output: Folder = None, json: options.Json = False) -> None:
    """MoE-Lightning's tables: systems on a T4 and an L4, ablations, policy map, and better policies."""
    from sim.cli import reproducing

    reproducing.moe_lightning(output, json)


@reproduce.command("flashdmoe")
def flashdmoe(
    calibration: Annotated[str, typer.Option(help="Of the baselines' collectives: paper (fitted to its bars) or healthy.")] = "paper",
    output: Folder = None, json: options.Json = False,
) -> None:  # fmt: skip
    """FlashDMoE's bars, weak scaling, an outside re-run, DeepEP's low-latency table, DeepSeek's profile."""
    from sim.cli import reproducing

    reproducing.flashdmoe(calibration, output, json)


def main(arguments: list[str] | None = None) -> int:
    return entry.run(app, "python -m sim", sys.argv[1:] if arguments is None else arguments)
