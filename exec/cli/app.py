"""python -m exec: calibrate, run, validate, bench, fused, manifest, doctor, generate, demo."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from exec.devices import DeviceName
from sim.cli import entry, options

app = typer.Typer(
    name="exec", add_completion=False, no_args_is_help=False, pretty_exceptions_enable=False, rich_markup_mode=None,
    help="Really run a schedule of Mixture-of-Experts serving on this computer.",
)  # fmt: skip


Device = Annotated[DeviceName, typer.Option(help="What plays the device: threads of this computer, or a CUDA GPU.")]
Graphs = Annotated[bool, typer.Option("--graphs", help="On a GPU, replay the tasks that repeat as CUDA graphs.")]


class Form(StrEnum):
    md = "md"
    csv = "csv"
    json = "json"
    jsonl = "jsonl"


class OnRankLoss(StrEnum):
    stop = "stop"
    recover = "recover"


Output = Annotated[Path, typer.Option("-o", help="Profile to write, YAML.", show_default=False)]
Profile = Annotated[str, typer.Option(help="Profile of this computer, from calibrate.", show_default=False)]
Record = Annotated[Path | None, typer.Option(help="Write what the routers choose: OUT.parquet.")]
Ranks = Annotated[int | None, typer.Option(min=1, help="Processes to start, each with its share of the experts.")]
LogFile = Annotated[Path | None, typer.Option("--log", help="Write the log of events and commands, JSON lines; it replays.")]


@app.command()
def calibrate(
    output: Output,
    device: Device = DeviceName.cpu,
    rig: Annotated[str, typer.Option(help="Links and budgets to keep to: a built-in rig or a YAML file.")] = "laptop-rig",
    ranks: Ranks = None,
) -> None:
    """Measure this computer, op by op and in pairs, and write a machine profile; with --ranks, one of that many processes."""
    from exec.cli import calibrating, clustering, profiling

    if (place := clustering.place(ranks)) is not None:
        if place[0] > 0:
            clustering.serve_as_rank(*place)
        profiling.calibrate(place[1], output, device)
        return
    calibrating.calibrate(rig, output, device)


@app.command()
def run(
    ctx: typer.Context, model: options.Model,
    machine: Annotated[str | None, typer.Option(help="Profile of this computer, from calibrate.")] = None,
    workload: Annotated[str | None, typer.Option(help="Built-in name, or a YAML file.")] = None, scheduler: options.PolicyScheduler = None,
    gen: options.Gen = None, batch: options.Batch = None, microbatch: options.Microbatch = None, padded: options.Padded = False,
    policy: options.PolicyFile = None, trace: options.Trace = None, seed: options.Seed = 0, timeline: options.Timeline = None,
    record_routing: Record = None, log: LogFile = None, device: Device = DeviceName.cpu, graphs: Graphs = False,
    ranks: Ranks = None,
    tokens: Annotated[int | None, typer.Option(min=1, help="With --ranks: rows of each rank through the MoE layers alone.")] = None,
    layers: Annotated[int | None, typer.Option(min=1, help="With --tokens: MoE layers one after another; default: the model's.")] = None,
    skew: Annotated[float, typer.Option(min=0, help="With --tokens: expert e is chosen about as often as 1 / (1 + e) ** SKEW.")] = 0.0,
    chunks: Annotated[int | None, typer.Option(min=1, help="With --ranks: parts that the scheduler cuts a rank's rows into.")] = None,
    check: Annotated[bool, typer.Option("--check", help="With --ranks: compare the outputs with a single process.")] = False,
    on_rank_loss: Annotated[
        OnRankLoss, typer.Option(help="With --ranks: what a killed or stalled rank does; recover goes with --placement.")
    ] = OnRankLoss.stop,
    placement: Annotated[str | None, typer.Option(help="With --ranks: serve a trace, experts placed by a policy of sim place.")] = None,
    shift: Annotated[int | None, typer.Option(min=1, help="With --placement: the first request whose hot experts are others.")] = None,
    requests: Annotated[int | None, typer.Option(min=1, help="With --placement: default four for each served at a time.")] = None,
    spares: Annotated[int, typer.Option(min=0, help="With --placement: copies of a layer's experts beyond one of each.")] = 4,
    rebalance_every: Annotated[int, typer.Option(min=0, help="With --placement: plans between looks at the load; 0: never.")] = 2,
    hysteresis: Annotated[float, typer.Option(min=0, help="With --placement: balancedness that another placement has to gain.")] = 0.05,
    kill: Annotated[str | None, typer.Option(help="With --on-rank-loss recover: a drill, RANK@STEP.")] = None,
    ram_budget: Annotated[str | None, typer.Option(help="Experts come from disk: bytes of them in RAM, as in 200MB.")] = None,
    device_budget: Annotated[str | None, typer.Option(help="With --ram-budget: bytes of experts on the device.")] = None,
    evict: Annotated[str, typer.Option(help="With --ram-budget: lru, lfu, lfru, sieve, affinity; with --trace static, belady.")] = "lfru",
    admit: Annotated[str | None, typer.Option(help="With --ram-budget: always, contest or frequent.")] = None,
    prefetch: Annotated[str, typer.Option(help="With --ram-budget: none, affinity, markov, next-gate or sequence.")] = "none",
    work: Annotated[str, typer.Option(help="With --ram-budget: who computes a missing expert: gpu, cpu-expert or hybrid.")] = "gpu",
    governed: Annotated[bool, typer.Option(help="With --prefetch: turn it off where it does not pay.")] = True,
    auto: Annotated[bool, typer.Option("--auto", help="With --ram-budget: choose those four by simulating --trace, and say why.")] = False,
    json: options.Json = False,
) -> None:  # fmt: skip
    """Really run one scheduler; with --ranks, on several processes that share the experts; with --ram-budget, experts from disk."""
    given = dict(locals())
    source = given.pop("ctx").get_parameter_source
    from exec.cli import modes

    modes.run(given, lambda name: source(name).name == "COMMANDLINE")


@app.command()
def validate(
    machine: Annotated[str | None, typer.Option(help="Profile, from calibrate; with --ranks the default is one made in between.")] = None,
    grid: Annotated[Path | None, typer.Option(help="YAML with the configurations; the default grid comes with Tandem.")] = None,
    device: Device = DeviceName.cpu,
    ranks: Annotated[str | None, typer.Option(help="Numbers of processes that share the experts of MoE layers, as in 2,4.")] = None,
    placement: Annotated[str | None, typer.Option(help="With --ranks: serve traces, experts placed by a policy of sim place.")] = None,
    json: options.Json = False,
) -> None:
    """Run configurations that calibration never saw on both clocks, and report the simulator's error."""
    from exec.cli import clustering, placing, profiling, validating

    if (place := clustering.place(None)) is not None and place[0] > 0:
        clustering.serve_as_rank(*place)
    if placement is not None:
        if device is DeviceName.cuda:
            raise typer.BadParameter("--device cuda: does not go with --placement")
        placing.validate(ranks, placement, machine, grid, json)
        return
    if ranks is not None or place is not None:
        profiling.validate(ranks or str(place[1]), machine, grid, json, device)
        return
    if machine is None:
        raise typer.BadParameter("missing option --machine: a profile of this computer, which `python -m exec calibrate` makes")
    validating.validate(machine, grid, device, json)


@app.command()
def bench(
    device: Device = DeviceName.cpu,
    op: Annotated[list[str] | None, typer.Option(help="Kernels to measure beside torch's; may be repeated. Default: all.")] = None,
    prompt: Annotated[str | None, typer.Option("-p", help="Tests pp N: prompts of N tokens; a list makes a grid.")] = None,
    gen: Annotated[str | None, typer.Option("-n", help="Tests tg N: N tokens to generate; a list makes a grid.")] = None,
    model: Annotated[str, typer.Option(help="Model of the tests.")] = "tiny-mixtral",
    machine: Annotated[str, typer.Option(help="Profile to run the tests in; default: this computer, unpaced.")] = "",
    scheduler: Annotated[str, typer.Option(help="Schedulers of the tests, a list.")] = "resident",
    batch: Annotated[str, typer.Option(help="Sequences of the tests, a list.")] = "1",
    threads: Annotated[str | None, typer.Option(help="Threads of the CPU kernels, a list. Default: 1.")] = None,
    repetitions: Annotated[int, typer.Option("-r", min=1, help="Samples of each row.")] = 5,
    form: Annotated[Form, typer.Option("-o", help="What to print.")] = Form.md,
    graphs: Graphs = False,
    json: Annotated[bool, typer.Option("--json", help="The same as -o json.")] = False,
) -> None:
    """Measure kernels beside torch's, and whole runs: pp N processes prompts, tg N generates tokens."""
    from exec.cli import benching

    benching.bench(
        device, op or [], model, machine, scheduler, prompt, gen, batch, threads, repetitions, "json" if json else str(form), graphs
    )


@app.command()
def fused(
    model: Annotated[str, typer.Option(help="Built-in model, or a directory with config.json: its layer's sizes.")] = "tiny-mixtral",
    tokens: Annotated[int, typer.Option(min=1, help="Rows of the layer's input.")] = 64,
    threads: Annotated[int, typer.Option(min=1, help="Threads that play the kernel's blocks.")] = 2,
    seed: options.Seed = 0,
    json: options.Json = False,
) -> None:
    """Run one MoE layer as a single launch, tile by tile as the ticket scheduler says, and simulate the same tiles."""
    from exec.cli import fusing

    fusing.fused(model, tokens, threads, seed, json)


@app.command()
def manifest(
    directory: Annotated[Path, typer.Argument(help="Directory with safetensors.", show_default=False)],
    output: Annotated[Path | None, typer.Option("-o", help="File to write, JSON; default: beside the safetensors.")] = None,
    json: options.Json = False,
) -> None:
    """Write the checksums of a checkpoint, by which experts that are loaded from disk are verified."""
    from exec.cli import manifesting

    manifesting.manifest(directory, output, json)


@app.command()
def doctor(json: options.Json = False) -> None:
    """Tell what this computer can do for a run, what it lacks, and what is used instead."""
    from exec.cli import examining

    examining.doctor(json)


@app.command()
def generate(
    model: Annotated[str, typer.Option(help="Directory with config.json, safetensors and, for text, tokenizer.json.", show_default=False)],
    prompt: Annotated[str, typer.Option(help="Text to go on from.", show_default=False)],
    scheduler: options.Scheduler = "resident",
    gen: Annotated[int, typer.Option(min=1, help="Most tokens to generate.")] = 64,
    json: options.Json = False,
) -> None:
    """Decode text with a model directory, under any scheduler."""
    from exec.cli import generating

    generating.generate(model, prompt, scheduler, gen, json)


@app.command()
def demo(
    output: Annotated[Path, typer.Option("-o", help="Folder for the report and all that it is made from.")] = Path("out/demo"),
    machine: Annotated[Path | None, typer.Option(help="Profile to use; without it, this computer is calibrated first.")] = None,
    json: options.Json = False,
) -> None:
    """The main job on real input: run CGOPipe, simulate the same run, show how far the two are apart."""
    from exec.cli import demonstrating

    demonstrating.demo(output, machine, json)


def main(arguments: list[str] | None = None) -> int:
    return entry.run(app, "python -m exec", arguments)
