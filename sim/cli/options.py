"""The flags that several commands share, on both command lines, and what they resolve to."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from sim.job import Job
    from sim.models import ModelSpec

Model = Annotated[str, typer.Option(help="Built-in name, or a directory with a Hugging Face config.json.", show_default=False)]
Machine = Annotated[str, typer.Option(help="Built-in name, or a YAML profile.", show_default=False)]
Workload = Annotated[str, typer.Option(help="Built-in name, or a YAML file.", show_default=False)]
Gen = Annotated[int | None, typer.Option(min=1, help="Tokens to generate for each sequence, in place of the workload's own.")]
Scheduler = Annotated[str, typer.Option(help="Built-in name, or FILE.py:CLASS.", show_default=False)]
Batch = Annotated[int | None, typer.Option(min=1, help="Sequences served together: micro-batch x number of micro-batches.")]
Microbatch = Annotated[int | None, typer.Option(min=1, help="Sequences of one micro-batch.")]
Padded = Annotated[bool, typer.Option("--padded", help="Pad every prompt to the workload's longest.")]
PolicyFile = Annotated[Path | None, typer.Option("--policy", help="YAML file with batch sizes and residency; flags win over it.")]
Trace = Annotated[Path | None, typer.Option(help="Recorded routing (Parquet) that drives the experts' loads.")]
Seed = Annotated[int, typer.Option(min=0, help="Seed of everything that is drawn.")]
Timeline = Annotated[Path | None, typer.Option(help="Write the task timeline: OUT.parquet, or OUT.json for Perfetto.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]

TIMELINE_SUFFIXES = (".parquet", ".json")


def job(
    model: str | ModelSpec, machine: str, workload: str, scheduler: str, *, gen: int | None = None, batch: int | None = None,
    microbatch: int | None = None, padded: bool = False, policy: Path | None = None, seed: int = 0,
) -> Job:  # fmt: skip
    """Resolve the names and check the job. Raises `UserError` for the first thing that is wrong."""
    from sim import job as jobs
    from sim import machines, models, workloads
    from sim.schedulers import policy as policies

    load = workloads.load(workload)
    load = load if gen is None else load.with_generation(gen)
    load = load.with_padding() if padded else load
    found = models.load(model) if isinstance(model, str) else model
    return jobs.prepare(
        found, machines.load(machine), load, scheduler, None if policy is None else policies.load(policy),
        batch=batch, microbatch=microbatch, seed=seed,
    )  # fmt: skip
