"""`run` and `compare`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from sim.cli import compiling, options, output
from sim.errors import UserError

if TYPE_CHECKING:
    from sim.job import Job
    from sim.routing import TraceRouting
    from sim.simulate import EngineName, Outcome


def run(make: Callable[[], Job], *, trace: Path | None, engine: str, timeline: Path | None, as_json: bool) -> None:
    output.check_writable("--timeline", timeline, options.TIMELINE_SUFFIXES)
    job = make()
    outcome = _simulate(job, trace, engine)
    if timeline is not None:
        write_timeline(outcome, timeline)
    if as_json:
        output.print_json(outcome.summary)
    else:
        print_summary(outcome.summary)


def compare(make: Callable[[str], Job], schedulers: str, *, trace: Path | None, engine: str, as_json: bool) -> None:
    from sim.schedulers import registry

    names = [name.strip() for name in schedulers.split(",")]
    for name in names:
        if not name:
            raise UserError(f"--schedulers: {schedulers!r} has an empty name; names separated by commas are needed")
        registry.load(name, "--schedulers")
    jobs, refused = _prepared(make, names)
    results = [_simulate(job, trace, engine).summary for job in jobs]
    if as_json:
        output.print_json({"results": results, "refused": [{"scheduler": name, "why": str(why)} for name, why in refused.items()]})
    else:
        print_comparison(results)
        for name, why in refused.items():
            output.note(f"{name} is left out: {why}")


def _prepared(make: Callable[[str], Job], names: Sequence[str]) -> tuple[list[Job], dict[str, UserError]]:
    """Jobs, and the schedulers whose plan the machine has no room or no lanes for. Raises the first UserError where that is all of them."""
    jobs: list[Job] = []
    refused: dict[str, UserError] = {}
    for name in names:
        try:
            jobs.append(make(name))
        except UserError as e:
            refused[name] = e
    if not jobs:
        raise next(iter(refused.values()))
    return jobs, refused


def _simulate(job: Job, trace: Path | None, engine: str) -> Outcome:
    routing = None if trace is None else routing_of(trace, job)
    with output.progress(f"simulating {job.scheduler}"), compiling.told():
        from sim.simulate import simulate_job

        outcome = simulate_job(job, engine=cast("EngineName", engine), routing=routing)
    if routing is not None and routing.misses:
        share = routing.misses / (routing.hits + routing.misses)
        output.note(f"{share:.0%} of the router calls are not in {trace}: expected loads stand in for them")
    return outcome


def routing_of(path: Path, job: Job) -> TraceRouting:
    from sim.routing import TraceRouting

    routing = TraceRouting(path)
    routing.check(job.model, job.requests)
    return routing


def write_timeline(outcome: Outcome, path: Path) -> None:
    """Parquet, or JSON for Perfetto."""
    from sim.timeline import timeline_of
    from traces.chrome import write_chrome
    from traces.files import Provenance
    from traces.timeline import write_timeline as write_parquet

    job = outcome.job
    origin = f"simulated {job.scheduler} of {job.model.name} on {job.machine.name}, {job.workload.name}"
    timeline = timeline_of(outcome.run, Provenance("synthetic", origin, "simulated"), job.model)
    (write_parquet if path.suffix == ".parquet" else write_chrome)(path, timeline)


def print_summary(s: Mapping[str, Any]) -> None:
    """The table of one run, for people; both clocks print it."""
    policy = s["policy"]
    sizes = f"batch {policy['batch']}, micro-batch {policy['microbatch']}"
    title = f"{s['scheduler']}: {s['model']} on {s['machine']}, {s['workload']}, {sizes}"
    rows = [
        ("clock", s["clock"]), ("routing", s["routing"]), ("makespan", output.seconds(s["makespan_s"])),
        ("prefill", output.seconds(s["prefill_s"])), ("decode", output.seconds(s["decode_s"])),
        ("generated tokens", f"{s['generated_tokens']:,}"), ("tokens/s", f"{s['tokens_per_s']:.4g}"),
        ("TTFT, mean", output.seconds(s["ttft_s"])), ("TPOT, mean", output.seconds(s["tpot_s"])),
        ("lower bound", f"{output.seconds(s['lower_bound_s'])} ({_share(s['lower_bound_s'], s['makespan_s'])} of the makespan)"),
        *((f"lane {name}", f"{output.seconds(v['busy_s'])} busy, {v['utilization']:.1%}") for name, v in s["lanes"].items()),
        *((f"peak {name}", output.size(v)) for name, v in s["peak_bytes"].items()),
        *((f"clock of tiles, {name}", f"sure to {o['uncertainty_us']:.1f} us") for name, o in s.get("clock_offsets", {}).items()),
        ("tasks", f"{s['tasks']:,}"), ("wall", output.seconds(s["wall_s"])),
    ]  # fmt: skip
    output.print_table(title, ("", "value"), rows)


def _share(part: float, whole: float) -> str:
    return f"{part / whole:.1%}" if whole else "all"


def print_comparison(results: Sequence[Mapping[str, Any]]) -> None:
    first = results[0]
    best = max(r["tokens_per_s"] for r in results)
    columns = ("scheduler", "batch", "micro-batch", "makespan", "tokens/s", "of the best", "TTFT", "TPOT", *first["lanes"])
    rows = [
        (r["scheduler"], r["policy"]["batch"], r["policy"]["microbatch"], output.seconds(r["makespan_s"]), f"{r['tokens_per_s']:.4g}",
         _share(r["tokens_per_s"], best), output.seconds(r["ttft_s"]), output.seconds(r["tpot_s"]),
         *(f"{lane['utilization']:.0%}" for lane in r["lanes"].values()))
        for r in results
    ]  # fmt: skip
    title = f"{first['model']} on {first['machine']}, {first['workload']} ({first['clock']}; lanes: utilization)"
    output.print_table(title, columns, rows, numeric=columns[1:])
