"""policy and explain: the best run of a machine, and what limits a run."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sim.cli import options

if TYPE_CHECKING:
    from sim.job import Job


class ObjectiveChoice(StrEnum):
    throughput = "throughput"
    latency = "latency"
    cost = "cost"


class FormChoice(StrEnum):
    t4 = "t4"
    l4_padding = "l4-padding"


Objective = Annotated[ObjectiveChoice, typer.Option(help="cost: dollars a token, by the machine's price.")]
Refine = Annotated[int, typer.Option(min=0, max=1000, help="Policies to simulate; 0: trust the bound.")]
PaperMode = Annotated[bool, typer.Option("--paper-mode", help="Answer as MoE-Lightning's released optimiser does.")]
CpuMemory = Annotated[float | None, typer.Option(min=0, help="Paper mode: GiB of host memory available; else the machine's.")]
CpuBandwidth = Annotated[float | None, typer.Option(min=0, help="Paper mode: GB/s of the host's memory; else 100.")]
MemoryForm = Annotated[FormChoice | None, typer.Option(help="Paper mode: its rule for the GPU's memory; else t4.")]
NoCache = Annotated[bool, typer.Option("--no-cache", help="Search again, and keep nothing.")]


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


def explain(
    model: options.Model, machine: options.Machine, workload: options.Workload, gen: options.Gen = None,
    objective: Objective = ObjectiveChoice.throughput, refine: Refine = 8, padded: options.Padded = False, seed: options.Seed = 0,
    paper_mode: PaperMode = False, cpu_memory: CpuMemory = None, cpu_bandwidth: CpuBandwidth = None, memory_form: MemoryForm = None,
    no_cache: NoCache = False, scheduler: options.PolicyScheduler = None, batch: options.Batch = None,
    microbatch: options.Microbatch = None, policy: options.PolicyFile = None, trace: options.Trace = None,
    engine: options.Engine = options.EngineChoice.auto, timeline: options.Timeline = None,
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
