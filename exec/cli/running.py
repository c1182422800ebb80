"""`run`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sim.cli import compiling, options, output

if TYPE_CHECKING:
    from exec.devices import DeviceName
    from traces.routing import RoutingIndex


def run(
    model: str, machine: str, workload: str, scheduler: str | None, *,
    gen: int | None, batch: int | None, microbatch: int | None, padded: bool,
    policy: Path | None, trace: Path | None, seed: int, timeline: Path | None, record_routing: Path | None, log: Path | None,
    device: DeviceName, graphs: bool, as_json: bool,
) -> None:  # fmt: skip
    from exec import devices
    from exec.execute import execute, spec_of, weights_of
    from exec.local import check_runs_here

    devices.check(device)
    output.check_writable("--timeline", timeline, options.TIMELINE_SUFFIXES)
    output.check_writable("--record-routing", record_routing, (".parquet",))
    output.check_writable("--log", log)
    spec = spec_of(model, device)
    job = options.job(
        spec, machine, workload, scheduler, gen=gen, batch=batch, microbatch=microbatch, padded=padded, policy=policy, seed=seed
    )
    check_runs_here(job.machine, device=device)
    replay = _replay(trace, job)
    with output.progress(f"running {job.scheduler}"), compiling.told():
        done = execute(
            job, weights_of(model, spec, seed), record_routing=record_routing is not None, replay_routing=replay, device=device,
            graphs=graphs,
        )  # fmt: skip
    save(done, timeline, record_routing, log)
    if as_json:
        output.print_json(done.summary)
    else:
        from sim.cli.running import print_summary

        print_summary(done.summary)


def _replay(trace: Path | None, job) -> RoutingIndex | None:
    """The routing to force, checked against the job."""
    if trace is None:
        return None
    from sim.routing import TraceRouting
    from traces.routing import RoutingIndex

    TraceRouting(trace).check(job.model, job.requests)
    return RoutingIndex(trace)


def save(done, timeline: Path | None, record_routing: Path | None, log: Path | None) -> None:
    """Write what was asked for; each file whole or not at all."""
    from traces.chrome import write_chrome
    from traces.routing import write_routing
    from traces.timeline import write_timeline

    if timeline is not None:
        (write_timeline if timeline.suffix == ".parquet" else write_chrome)(timeline, done.timeline)
    if record_routing is not None:
        write_routing(record_routing, done.outcome.routing)
    if log is not None:
        done.log.write(log)
