"""`run` with byte budgets for experts: they come from the checkpoint's files as routers ask for them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sim.cli import compiling, options, output
from sim.errors import UserError, unknown

if TYPE_CHECKING:
    from exec.pool.run import CacheJob, Ran
    from sim.machines.schema import Machine
    from sim.models.spec import ModelSpec
    from sim.residency.choose import Choice
    from sim.residency.feed import Feed
    from sim.residency.study import Outcome as Simulated
    from sim.schedulers.caching import Caching

AUTO_STEPS = 64
"""Decode steps that a choice simulates at most."""
UNITS = {"": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


def run(
    model: str, machine: str | None, workload: str | None, *, ram_budget: str, device_budget: str, evict: str, admit: str | None,
    prefetch: str, work: str, governed: bool, gen: int | None, batch: int | None, trace: Path | None, seed: int, timeline: Path | None,
    record_routing: Path | None, log: Path | None, auto: bool, as_json: bool,
) -> None:  # fmt: skip
    """auto: evict, admit, prefetch and work are chosen by simulating the trace, whatever their flags say."""
    from exec.execute import spec_of
    from exec.pool import run as pool
    from exec.prompts import byte_prompts
    from traces.routing import RoutingIndex

    output.check_writable("--timeline", timeline, options.TIMELINE_SUFFIXES)
    output.check_writable("--record-routing", record_routing, (".parquet",))
    output.check_writable("--log", log)
    check_names(evict, admit, prefetch, work)
    if trace is None and evict in ("static", "belady"):
        raise UserError(f"--evict {evict}: needs to know the run beforehand; record it with --record-routing, then give it as --trace")
    spec = spec_of(model)
    caching = pool.caching_for(
        spec, size_of("--ram-budget", ram_budget), size_of("--device-budget", device_budget), governed=governed, evict=evict,
        admit=admit or ("contest" if evict == "static" else "always"), prefetch=prefetch, work=work,
    )  # fmt: skip
    box = _machine(machine)
    if work == "hybrid" and not box.ops:
        raise UserError("--work hybrid: compares estimates; give --machine PROFILE.yaml from python -m exec calibrate")
    before = _recording(trace, spec)
    choice = _choose(spec, box, before, caching, batch or 1) if auto else None
    caching = caching if choice is None else choice.best.caching
    job = _job(spec, box, caching, workload, gen, batch, seed)
    with pool.open_store(model, spec) as store, output.progress("running with experts from disk"), compiling.told():
        ran = pool.run(
            job, store, byte_prompts([r.prompt_tokens for r in job.requests], seed), before=before,
            replay_routing=None if trace is None else RoutingIndex(trace),
        )  # fmt: skip
    twin = pool.twin(ran) if box.ops else None
    _save(ran, timeline, record_routing, log)
    found = {**pool.summary(ran), "ram_budget": ram_budget, "device_budget": device_budget, "simulated": _simulated(ran, twin)}
    output.print_json(found | _told(choice)) if as_json else show(found | _told(choice))


def _told(choice: Choice | None) -> dict[str, Any]:
    """What `--auto` chose, and why."""
    from sim.residency import advice

    return {} if choice is None else {"choice": advice.as_data(choice, None)}


def _recording(trace: Path | None, spec: ModelSpec) -> Feed | None:
    """What an earlier run asked for. Raises UserError where it is not this model's."""
    from sim.residency import feed

    if trace is None:
        return None
    before = feed.load(trace)
    before.check(spec, trace)
    return before


def _choose(spec: ModelSpec, machine: Machine, before: Feed | None, base: Caching, batch: int) -> Choice:
    """The fastest way to fill the budgets on the simulated clock. Raises UserError where there is nothing to simulate."""
    from sim.residency.choose import Grid, choose
    from sim.residency.study import Study

    if before is None or not machine.ops:
        raise UserError("--auto: simulates a recording on this computer's profile; give --trace (from --record-routing) and --machine")
    steps = min(AUTO_STEPS, sum(1 for _ in before.steps(batch)))
    with output.steps("choosing an expert cache") as tell:
        return choose(Study(spec, machine, before, batch=batch, limit=steps), base, Grid(), tell)


def check_names(evict: str, admit: str | None, prefetch: str, work: str) -> None:
    from sim.residency import policies
    from sim.residency.admission import ADMISSIONS
    from sim.residency.placement import WORK
    from sim.residency.prefetch import PREDICTORS

    for flag, name, known in (
        ("--evict", evict, policies.NAMES), ("--admit", admit or "always", ADMISSIONS), ("--prefetch", prefetch, PREDICTORS),
        ("--work", work, WORK),
    ):  # fmt: skip
        if name not in known:
            raise unknown(flag, name, known)


def size_of(flag: str, text: str) -> int:
    """Bytes of a budget: a number, with a unit or without."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?(?:e\d+)?)\s*([kKMG]?i?B?)", text.strip())
    if found is None or found[2] not in UNITS:
        raise UserError(f"{flag}: is {text!r}; bytes are needed, as in 40000000, 40MB or 1.5GiB")
    return int(float(found[1]) * UNITS[found[2]])


def _machine(name: str | None) -> Machine:
    from exec.local import check_runs_here, this_computer
    from sim import machines

    if name is None:
        return this_computer()
    machine = machines.load(name)
    check_runs_here(machine)
    return machine


def _job(spec: ModelSpec, machine: Machine, caching: Any, workload: str | None, gen: int | None, batch: int | None, seed: int) -> CacheJob:
    from exec.pool.run import CacheJob
    from sim.job import check_positions

    if workload is None:
        raise UserError("--workload: missing; a built-in name or a YAML file is needed")
    load = options.traffic(workload, gen, False)
    check_positions(spec, load)
    size = batch or 1
    requests, lengths = load.requests(size * load.requests_per_slot, seed)
    return CacheJob(spec, machine, caching, size, requests, lengths, load.name, seed)


def _save(ran: Ran, timeline: Path | None, record_routing: Path | None, log: Path | None) -> None:
    """Write what was asked for; each file whole or not at all."""
    from sim.timeline import timeline_of
    from traces.chrome import write_chrome
    from traces.files import Provenance
    from traces.routing import write_routing
    from traces.timeline import write_timeline

    if timeline is not None:
        origin = f"really run expert-cache of {ran.job.model.name} on {ran.job.machine.name}, {ran.job.workload}"
        made = timeline_of(ran.outcome.run, Provenance("recorded", origin, ran.outcome.clock), ran.job.model)
        (write_timeline if timeline.suffix == ".parquet" else write_chrome)(timeline, made)
    if record_routing is not None:
        assert ran.outcome.routing is not None
        write_routing(record_routing, ran.outcome.routing)
    if log is not None:
        ran.log.write(log)


def _simulated(ran: Ran, twin: Simulated | None) -> dict[str, Any] | None:
    """The twin's figures and its error; None without measured op times."""
    if twin is None:
        return None
    s, each = twin.served, ran.job.model.expert_bytes / twin.served.tokens
    return {
        "tokens_per_s": twin.tokens_per_s, "error": twin.tokens_per_s / ran.tokens_per_s - 1, "hit_rate": s.hits / s.asked,
        "bytes_per_token": s.moved * each, "disk_bytes_per_token": s.read * each,
    }


def show(s: dict[str, Any]) -> None:
    """For people: what was run, what the cache did, and the simulation beside it."""
    t = s["simulated"]
    size = lambda key: output.size(s[key]) + (f" (simulated {output.size(t[key])})" if t and key in t else "")  # noqa: E731
    host = "all" if s["host_experts"] is None else f"{s['host_experts']} experts"
    rows = [
        ("clock", s["clock"]), ("device holds", f"{s['slots']} experts, {s['capacity']} of each layer to stay"), ("RAM holds", host),
        ("tokens/s", f"{s['tokens_per_s']:.4g}" + (f" (simulated {t['tokens_per_s']:.4g}, {t['error']:+.1%})" if t else "")),
        ("hit rate", f"{s['hit_rate']:.3f}" + (f" (simulated {t['hit_rate']:.3f})" if t else "")),
        ("late, on the CPU", f"{s['late']:.3f}, {s['on_cpu']:.3f}"), ("to the device, a token", size("bytes_per_token")),
        ("from disk, a token", size("disk_bytes_per_token")),
        ("prefetched and asked for", "-" if s["prefetch_useful"] is None else f"{s['prefetch_useful']:.1%}"),
        *((f"lane {name}", f"{output.seconds(v['busy_s'])} busy, {v['utilization']:.1%}") for name, v in s["lanes"].items() if v["busy_s"]),
        *((f"peak {name}", output.size(v)) for name, v in s["peak_bytes"].items()), ("tokens", f"{s['generated_tokens']:,}"),
        ("makespan", output.seconds(s["makespan_s"])),
    ]  # fmt: skip
    how = f"batch {s['policy']['batch']}; evict {s['evict']}, prefetch {s['prefetch']}, work {s['work']}"
    title = f"experts from disk: {s['model']} on {s['machine']}, {s['workload']}, {how}"
    output.print_table(title, ("", "value"), rows)
    for line in s.get("choice", {}).get("explanation", ()):
        print(f"  {line}")
