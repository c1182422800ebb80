"""`demo`: the main job on real input."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sim.cli import output

MODEL, SCHEDULER, BATCH, MICROBATCH, PROMPT, GEN = "tiny-mixtral", "cgopipe", 96, 16, 96, 24


def demo(folder: Path, machine: Path | None, as_json: bool) -> None:
    from exec.calibration import profile
    from exec.execute import execute, simulated_twin, spec_of, timeline_of_twin, weights_of
    from exec.local import check_runs_here
    from sim import machines

    _make(folder)
    with output.steps("demo: a CGOPipe run of tiny-mixtral, measured and simulated") as say:
        if machine is None:
            machine = folder / "profile.yaml"
            rig = machines.load_rig("laptop-rig")
            profile.write(profile.calibrate(rig, lambda text: say(f"calibrating this computer: {text}")), machine)
        here = machines.load(machine)
        check_runs_here(here)
        job = job_of(here)
        say("really running it, on prompts cut from the Python standard library")
        measured = execute(job, weights_of(MODEL, spec_of(MODEL), 0), record_routing=True)
        say("simulating the same run, driven by the routing that it recorded")
        routing = folder / "routing.parquet"
        save(measured, routing, folder)
        simulated = simulated_twin(measured)
        timelines = (timeline_of_twin(simulated), measured.timeline)
        say("writing the report")
        report(folder, job, timelines, simulated, measured)
    if as_json:
        output.print_json({"simulated": simulated.summary, "measured": measured.summary, "report": str(folder / "report.html")})
    else:
        show(simulated.summary, measured.summary, folder)


def job_of(machine):
    from exec.execute import spec_of
    from sim.job import prepare
    from sim.schedulers.policy import Policy
    from sim.workloads.lengths import Fixed, Uniform
    from sim.workloads.schema import Workload

    workload = Workload(
        name="stdlib", description="slices of the Python standard library as byte tokens", source="cut at seeded places, lengths uniform",
        prompt=Uniform(min=PROMPT // 3, max=PROMPT), generation=Fixed(tokens=GEN),
    )  # fmt: skip
    return prepare(spec_of(MODEL), machine, workload, SCHEDULER, Policy(batch=BATCH, microbatch=MICROBATCH))


def _make(folder: Path) -> None:
    from sim.errors import UserError

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise UserError(f"-o {folder}: cannot be made ({e.strerror})") from None


def save(measured, routing: Path, folder: Path) -> None:
    from traces.routing import write_routing

    write_routing(routing, measured.outcome.routing)
    measured.log.write(folder / "log.jsonl")


def report(folder: Path, job, timelines, simulated, measured) -> None:
    from sim.report.page import write_report
    from sim.report.picture import write_picture
    from sim.timeline import dependencies_of
    from traces.timeline import write_timeline

    for name, timeline in zip(("simulated", "measured"), timelines, strict=True):
        write_timeline(folder / f"{name}.parquet", timeline)
    keys = ("model", "machine", "workload", "scheduler", "policy", "sources", "peak_bytes")
    own = ("makespan_s", "prefill_s", "decode_s", "tokens_per_s", "ttft_s", "tpot_s", "lower_bound_s")
    facts: dict[str, Any] = {k: measured.summary[k] for k in keys}
    facts["routing"] = "recorded by the measured run, and replayed in the simulation"
    facts["simulated"] = {k: simulated.summary[k] for k in own}
    facts["measured"] = {k: measured.summary[k] for k in own}
    write_report(folder / "report.html", *timelines, facts, dependencies_of(simulated.run))
    both = {"Simulated": timelines[0], "Measured": timelines[1]}
    write_picture(folder / "picture.png", both, title="One decode step of CGOPipe, by both clocks")


def show(simulated: dict[str, Any], measured: dict[str, Any], folder: Path) -> None:
    def row(name: str, key: str, text) -> tuple[str, ...]:
        a, b = simulated[key], measured[key]
        return (name, text(a), text(b), f"{a / b - 1:+.1%}" if b else "-")

    rows = [
        row("makespan", "makespan_s", output.seconds), row("prefill", "prefill_s", output.seconds),
        row("decode", "decode_s", output.seconds),
        row("TTFT, mean", "ttft_s", output.seconds), row("TPOT, mean", "tpot_s", output.seconds),
        row("tokens/s", "tokens_per_s", lambda v: f"{v:.4g}"),
        *((f"lane {n} busy", output.seconds(simulated["lanes"][n]["busy_s"]), output.seconds(v["busy_s"]),
           f"{simulated['lanes'][n]['busy_s'] / v['busy_s'] - 1:+.1%}") for n, v in measured["lanes"].items() if v["busy_s"]),
    ]  # fmt: skip
    run = f"{measured['scheduler']}: {measured['model']} on {measured['machine']}"
    title = f"{run} (clock: {measured['clock']}), {measured['generated_tokens']:,} tokens"
    output.print_table(title, ("", "simulated", "measured", "error"), rows, numeric=("simulated", "measured", "error"))
    print(f"\nreport: {folder / 'report.html'} (open it in a browser)\nlog, routing and timelines: {folder}")
