"""The flags that several commands share, on both command lines, and what they resolve to."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from sim.job import Job
    from sim.models import ModelSpec
    from sim.workloads import Workload as WorkloadSpec


class EngineChoice(StrEnum):
    auto = "auto"
    simpy = "simpy"
    compiled = "compiled"


Model = Annotated[str, typer.Option(help="Built-in name, or a directory with a Hugging Face config.json.", show_default=False)]
Machine = Annotated[str, typer.Option(help="Built-in name, or a YAML profile.", show_default=False)]
Workload = Annotated[str, typer.Option(help="Built-in name, or a YAML file.", show_default=False)]
Gen = Annotated[int | None, typer.Option(min=1, help="Tokens to generate for each sequence, in place of the workload's own.")]
Scheduler = Annotated[str, typer.Option(help="Built-in name, or FILE.py:CLASS.", show_default=False)]
PolicyScheduler = Annotated[
    str | None, typer.Option("--scheduler", help="Built-in name, or FILE.py:CLASS; without it, the one that --policy names.")
]
Batch = Annotated[int | None, typer.Option(min=1, help="Sequences served together: micro-batch x number of micro-batches.")]
Microbatch = Annotated[int | None, typer.Option(min=1, help="Sequences of one micro-batch.")]
Padded = Annotated[bool, typer.Option("--padded", help="Pad every prompt to the workload's longest.")]
PolicyFile = Annotated[
    Path | None,
    typer.Option("--policy", exists=True, dir_okay=False, help="YAML file with batch sizes and residency; flags win over it."),
]
Trace = Annotated[
    Path | None, typer.Option(exists=True, dir_okay=False, help="Recorded routing (Parquet) that drives the experts' loads.")
]
Seed = Annotated[int, typer.Option(min=0, help="Seed of everything that is drawn.")]
Engine = Annotated[EngineChoice, typer.Option(help="auto: compiled where the whole schedule is known in advance.")]
Timeline = Annotated[Path | None, typer.Option(help="Write the task timeline: OUT.parquet, or OUT.json for Perfetto.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]

TIMELINE_SUFFIXES = (".parquet", ".json")


def job(
    model: str | ModelSpec, machine: str, workload: str, scheduler: str | None, *, gen: int | None = None, batch: int | None = None,
    microbatch: int | None = None, padded: bool = False, policy: Path | None = None, seed: int = 0,
) -> Job:  # fmt: skip
    """Resolve the names and check the job. Raises `UserError` for the first thing that is wrong."""
    from sim import job as jobs
    from sim import machines, models
    from sim.errors import UserError
    from sim.schedulers import policy as policies

    chosen = None if policy is None else policies.load(policy)
    load = traffic(workload, gen, padded or (chosen is not None and chosen.padded))
    found = models.load(model) if isinstance(model, str) else model
    name = scheduler or (chosen.scheduler if chosen else None)
    if name is None:
        raise UserError("--scheduler: missing; give it, or a --policy that names one")
    return jobs.prepare(found, machines.load(machine), load, name, chosen, batch=batch, microbatch=microbatch, seed=seed)


def traffic(workload: str, gen: int | None, padded: bool) -> WorkloadSpec:
    """The workload that the flags name."""
    from sim import workloads

    load = workloads.load(workload)
    load = load if gen is None else load.with_generation(gen)
    return load.with_padding() if padded else load
