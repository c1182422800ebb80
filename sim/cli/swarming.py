"""`swarm`: a cluster serves a request trace, with what goes wrong, beside what a sane operator would run."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sim import units
from sim.cli import options, output
from sim.errors import UserError

if TYPE_CHECKING:
    from sim.placement import Policy
    from sim.swarm.plant import Plant
    from sim.swarm.study import Finished, Study
    from sim.swarm.trouble import Trouble
    from traces.requests import Requests

UNIFORM = 2.0
"""Requests a second without a request trace (Poisson): about those of the Azure code trace."""
SUSPECT_PERIODS = 7.5
"""Gossip periods without news after which a node is given up at the earliest: so many as the default's 15 s are of its 2 s."""
APART_FROM = 2000
"""Requests from which the designs are simulated at the same time: with fewer they are done before other processes have started."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """The flags of `swarm`."""

    machine: str
    model: str
    trace: Path
    requests: Path | None
    placement: str
    routing: str
    events: Path | None
    duration_s: float | None
    design: str
    spares: int
    limit: int | None
    everywhere: bool
    rebalance_s: float
    gossip_s: float
    fan_out: int
    adaptive: int
    loss: float
    tolerate: int
    silent: int
    seed: int
    autoscale: str
    prices: Path | None
    prices_from: str | None
    bid: float | None
    arbitrage: str


def swarm(wanted: Wanted, timeline: Path | None, html: Path | None, as_json: bool) -> None:
    """Simulate the design and the baselines, and print a table or one JSON object."""
    from sim.swarm.comparison import compare
    from sim.swarm.fleet import arbitrage, policy
    from sim.swarm.settings import Settings

    output.check_writable("--timeline", timeline, options.TIMELINE_SUFFIXES)
    output.check_writable("--html", html, (".html",))
    settings = Settings(
        design=wanted.design, routing=wanted.routing, spares=wanted.spares, gossip_s=wanted.gossip_s, fan_out=wanted.fan_out,
        adaptive=wanted.adaptive, loss=wanted.loss, tolerate=wanted.tolerate, silent=wanted.silent, rebalance_s=wanted.rebalance_s,
        suspect_s=max(Settings().suspect_s, SUSPECT_PERIODS * wanted.gossip_s),
        duration_s=wanted.duration_s, seed=wanted.seed, autoscale=policy.load(wanted.autoscale), arbitrage=arbitrage.load(wanted.arbitrage),
    )  # fmt: skip
    named = names(wanted)
    with output.steps("simulating") as tell:
        tell("reading traces")
        study = stated(wanted, *named)
        apart = len(study.requests) >= APART_FROM and (os.cpu_count() or 1) > 1
        first, rows, peak_mib = compare(study, settings, tell, apart)
    for remark in control_remarks(first):
        output.note(remark)
    if timeline is not None:
        write_timeline(first, study, timeline)
    found = summary(wanted, study, rows, peak_mib)
    if html is not None:
        from sim.swarm.report import write_report

        write_report(html, study, first, rows, found)
    if as_json:
        output.print_json(found)
    else:
        show(found)


def names(wanted: Wanted) -> tuple[Plant, Policy, tuple[Trouble, ...]]:
    """What the flags name, traces apart. Raises `UserError` for the first thing that is wrong, a trace that is not there included."""
    from sim import clusters, models
    from sim.placement.policy import load as load_policy
    from sim.swarm import choice, study, trouble
    from sim.swarm.plant import Plant

    for flag, path in named_files(wanted):
        if path is not None and not path.exists():
            raise UserError(f"{flag}: {path}: no such file")
    choice.load(wanted.routing)
    if wanted.design not in study.DESIGNS:
        raise UserError(f"--design: is {wanted.design!r}; have {', '.join(study.DESIGNS)}")
    plant = Plant(clusters.load(wanted.machine), models.load(wanted.model))
    check_market(wanted)
    policy = load_policy(wanted.placement, "--placement")
    if policy.whole_layers:
        raise UserError(f"--placement: {wanted.placement} places whole layers; a policy of experts is needed, as eplb or robust")
    with from_flag("--events"):
        troubles = trouble.load(wanted.events, plant) if wanted.events is not None else ()
    return plant, policy, tuple(sorted((*troubles, *market_events(wanted, plant)), key=lambda e: e.at_s))


@contextmanager
def from_flag(flag: str) -> Iterator[None]:
    """What is wrong with a file is said with the flag that named it."""
    try:
        yield
    except UserError as e:
        raise UserError(f"{flag}: {e}") from None


def named_files(wanted: Wanted) -> tuple[tuple[str, Path | None], ...]:
    return ("--trace", wanted.trace), ("--requests", wanted.requests), ("--events", wanted.events), ("--prices", wanted.prices)


def check_market(wanted: Wanted) -> None:
    """Flags of prices that say nothing without another one."""
    if wanted.prices is None and (wanted.bid is not None or wanted.prices_from is not None):
        raise UserError(f"{'--bid' if wanted.bid is not None else '--prices-from'}: there is no price trace; give --prices as well")
    if wanted.arbitrage != "none" and wanted.autoscale == "none":
        raise UserError("--arbitrage: all nodes are rented, there is nowhere to move; give --autoscale fixed, reactive or predictive")


def market_events(wanted: Wanted, plant: Plant) -> tuple[Trouble, ...]:
    """Prices of the trace, and nodes taken away by it."""
    if wanted.prices is None:
        return ()
    from sim.clusters.importers import spot_prices
    from sim.swarm.fleet import prices

    begin = None if wanted.prices_from is None else spot_prices.moment("--prices-from", wanted.prices_from)
    with from_flag("--prices"):
        quotes = spot_prices.read(wanted.prices)
    steps = prices.steps_of(plant, quotes, begin)
    return tuple(prices.events(plant, steps, wanted.bid, wanted.duration_s))


def stated(wanted: Wanted, plant: Plant, policy: Policy, troubles: tuple[Trouble, ...]) -> Study:
    """The study, its traces read. Raises `UserError` for what they lack."""
    from sim.placement.recorded import read
    from sim.swarm import study
    from sim.swarm.routes import Routes

    routes = Routes(read([wanted.trace], "--trace"), plant.model, wanted.seed)
    trace = requests_at(wanted)
    requests = study.requests_of(trace, wanted.limit, wanted.duration_s)
    if not requests:
        raise UserError(f"--requests: none of {len(trace):,} arrive within --duration; a longer one is needed")
    return study.Study(plant, routes, policy, requests, study.origins_of(plant, trace, wanted.everywhere, wanted.seed), troubles)


def requests_at(wanted: Wanted) -> Requests:
    """A request trace in our format, an Azure CSV, or without one a Poisson hour of the same lengths."""
    from traces.errors import TraceError
    from traces.importers import read as import_foreign
    from traces.requests import Requests, read_requests

    if wanted.requests is None:
        return poisson(wanted.duration_s or 600.0, wanted.seed)
    try:
        if wanted.requests.suffix != ".csv":
            return read_requests(wanted.requests)
        found = import_foreign("azure", wanted.requests)
    except TraceError as e:
        raise UserError(f"--requests: {e}; other formats: python -m traces import") from None
    assert isinstance(found, Requests), found
    return found


def poisson(duration_s: float, seed: int) -> Requests:
    """Poisson arrivals at `UNIFORM` a second; prompts of 512 and outputs of 64 tokens on average (geometric)."""
    import numpy as np

    from traces.files import Provenance
    from traces.requests import Requests

    rng = np.random.default_rng(seed)
    gaps = rng.exponential(1e9 / UNIFORM, max(1, int(duration_s * UNIFORM)))
    prompt, output_tokens = (rng.geometric(1 / mean, len(gaps)).astype(np.int32) for mean in (512, 64))
    provenance = Provenance("synthetic", f"Poisson arrivals, {UNIFORM:g} a second", command="")
    return Requests(np.arange(len(gaps)), np.cumsum(gaps).astype(np.int64), prompt, output_tokens, provenance)


def summary(wanted: Wanted, study: Study, rows: list[dict[str, Any]], peak_mib: int) -> dict[str, Any]:
    """The one JSON object: figures of the design asked for at the top, all designs in `results`."""
    return {
        **rows[0], "machine": wanted.machine, "model": wanted.model, "placement": wanted.placement, "replica_routing": wanted.routing,
        "trace": str(wanted.trace), "requests_from": str(wanted.requests) if wanted.requests else "synthetic: Poisson arrivals",
        "events": len(study.troubles), "seed": wanted.seed, "results": rows,
        "peak_rss_mib": peak_mib,
    }  # fmt: skip


def control_remarks(done: Finished) -> Iterator[str]:
    """What the control plane of the design asked for cannot do, although the flags ask for it or sound as if."""
    server, control = done.server, done.server.control
    asked, bears, silent = server.settings.tolerate, control.committee.f, server.settings.silent
    if bears < asked:
        kept = range(len(server.plant.nodes)) if server.fleet is None else server.fleet.pool.kept
        able = len({server.plant.cluster.coordinator, *(server.plant.nodes[n] for n in kept)})
        which = "" if server.fleet is None else ": the coordinator and those that --autoscale never gives back"
        why = f"that takes {3 * asked + 1} members, and {able} can be members{which}"
        yield f"--tolerate: the control plane bears {bears} faulty, not {asked}: {why}"
    if silent > bears:
        members = f"{silent} of the control plane's {len(control.names)} members are silent and it bears {bears}"
        yield f"--silent: {members}: no change is decided"


def write_timeline(done: Finished, study: Study, path: Path) -> None:
    """Parquet, or JSON for Perfetto: a lane for each region's GPUs and one for the wires."""
    from sim.timeline import timeline_of
    from traces.chrome import write_chrome
    from traces.files import Provenance
    from traces.timeline import write_timeline as write_parquet

    origin = f"simulated swarm of {study.plant.model.name} on {study.plant.cluster.name}"
    timeline = timeline_of(done.run, Provenance("synthetic", origin, "simulated"))
    (write_parquet if path.suffix == ".parquet" else write_chrome)(path, timeline)


def show(found: dict[str, Any]) -> None:
    """The table for people, with the floor that distance sets."""
    columns = (
        "design", "tokens/s", "TTFT p50", "p99", "TPOT p50", "p99", "floor a token", "WAN", "$ / M tokens", "answered", "under way", "lost",
        "moves",
    )  # fmt: skip
    rows = []
    for r in found["results"]:
        name = r["words"]
        if "does_not_fit" in r:
            rows.append((name, r["does_not_fit"], *[""] * (len(columns) - 2)))
            continue
        ttft, tpot = r["ttft_s"], r["tpot_s"]
        rows.append((
            name, f"{r['tokens_per_s']:.1f}", _s(ttft["p50"]), _s(ttft["p99"]), _s(tpot["p50"]), _s(tpot["p99"]),
            _s(r["floor_s_per_token"]),
             output.size(r["wire_bytes"].get("wan", 0.0)),
            "-" if r["usd_per_million_tokens"] is None else f"{r['usd_per_million_tokens']:,.0f}",
            f"{r['answered']:,}", f"{r['under_way']:,}", r["lost"], f"{r['moves']:,}",
        ))  # fmt: skip
    title = f"{found['model']} on {found['machine']}, {found['requests']:,} requests, experts placed by {found['placement']}"
    output.print_table(title, columns, rows, columns[1:])
    print("floor a token: layers that cross regions x the longest round trip of each; no schedule gets below it")
    if any(r.get("under_way") for r in found["results"]):
        print("under way: begun and not answered when --duration was over; tokens/s and $ count what was answered")
    for r in found["results"]:
        if "steps" in r:
            counts = f"{r['steps']:,} steps, {r['tasks']:,} tasks, {r['tokens_simulated']:,} tokens simulated in {r['wall_s']:.1f} s"
            print(f"{r['words']}: {counts}; {r['suspected']} nodes missed, {r['rejoined']} back")
            print(f"  {between_nodes(r)}")
            print(f"  {spent(r)}")


def between_nodes(r: dict[str, Any]) -> str:
    """What gossip, the control plane and checkpoints did, in a line."""
    quorum = r["quorum_s"]
    waits = f", decided in {_s(quorum['mean'])} (p99 {_s(quorum['p99'])})" if r["commits"] else ""
    seats, bears = len(r["control_members"]), r["control_tolerates"]
    age = f", views {r['view_age_s']:.1f} s old" if r["view_age_s"] is not None else ""
    return "; ".join((
        f"control plane: {r['commits']} changes by {seats} members that bear {bears} faulty{waits}",
        f"gossip: {output.size(r['gossip_bytes'])} in {r['gossip_messages']:,} messages{age}",
        f"checkpoints: {output.size(r['restored_bytes'])} restored, {output.size(r['deduplicated_bytes'])} deduplicated",
    ))  # fmt: skip


def spent(r: dict[str, Any]) -> str:
    """What was rented and burnt, in a line."""
    idle = r["idle_energy_wh"]
    watts = "idle power left out: not stated" if idle is None else f"{units.energy(idle)} idle"
    energy = "" if r["busy_energy_wh"] is None else f"; energy: {units.energy(r['busy_energy_wh'])} of work, {watts}"
    moves = f"; {r['price_moves']} moves to cheaper nodes for $ {r['migration_usd']:,.2f}" if r["arbitrage"] else ""
    scaled = f", {r['scale_ups']} up, {r['scale_downs']} down, {r['wasted_starts']} started in vain" if r["autoscale"] != "none" else ""
    return f"rented: {r['node_hours']:,.2f} node-hours, $ {r['cost_usd']:,.2f}{scaled}{moves}{energy}"


def _s(value: float | None) -> str:
    return "-" if value is None else output.seconds(value)
