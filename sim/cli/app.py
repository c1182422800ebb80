"""python -m sim: every command, and the flags of those that simulate schedulers; the others' are in `commands`."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from sim.cli import entry, options
from sim.cli.commands import cache, many_gpus, policy, reproduce

if TYPE_CHECKING:
    from sim.job import Job

app = typer.Typer(
    name="sim", add_completion=False, no_args_is_help=False, pretty_exceptions_enable=False, rich_markup_mode=None,
    help="Simulate a schedule of Mixture-of-Experts serving on a machine.",
)  # fmt: skip


class Kind(StrEnum):
    models = "models"
    machines = "machines"
    clusters = "clusters"
    workloads = "workloads"
    schedulers = "schedulers"
    systems = "systems"
    policies = "policies"


@app.command("list")
def list_(kind: Kind, json: options.Json = False) -> None:
    """What is built in. systems: of expert parallelism, for moe-layer; policies: of placement, for place and swarm."""
    from sim.cli import listing

    listing.show(kind.value, json)


@app.command()
def run(
    model: options.Model, machine: options.Machine, workload: options.Workload, scheduler: options.PolicyScheduler = None,
    gen: options.Gen = None, batch: options.Batch = None, microbatch: options.Microbatch = None, padded: options.Padded = False,
    policy: options.PolicyFile = None, trace: options.Trace = None, seed: options.Seed = 0,
    engine: options.Engine = options.EngineChoice.auto, timeline: options.Timeline = None, json: options.Json = False,
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
    policy: options.PolicyFile = None, trace: options.Trace = None, seed: options.Seed = 0,
    engine: options.Engine = options.EngineChoice.auto, json: options.Json = False,
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


app.command()(policy.policy)
app.command()(policy.explain)
app.command()(many_gpus.moe_layer)
app.command()(many_gpus.place)
app.command()(many_gpus.swarm)
app.command()(cache.cache)
app.add_typer(reproduce.app, name="reproduce")


def main(arguments: list[str] | None = None) -> int:
    return entry.run(app, "python -m sim", arguments)
