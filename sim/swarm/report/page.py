"""The page: cards, the map, load over time, the designs, and what went on between nodes. One file that works offline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from sim.report.figures import seconds_text
from sim.report.page import document
from sim.report.sections import table
from sim.swarm.report import atlas, heat
from sim.swarm.study import Finished, Study
from sim.units import energy, mass, size
from traces.files import replacing

BINS = 120
_CSS = """
.map, .heat { width: 100%; height: auto; display: block; margin-top: 8px; font: 13px system-ui, sans-serif; }
.map .halo { paint-order: stroke; stroke: #f4f7fa; stroke-width: 4px; }
.map g:hover { opacity: 1; filter: brightness(0.9); }
.kinds { display: flex; flex-wrap: wrap; gap: 4px 22px; margin: 10px 0 0; font-size: 13.5px; }
.kinds b { color: #b34f00; }
.scale { display: flex; margin: 8px 0 0 12.1%; font-size: 12px; } .scale span { padding: 1px 12px; }
input[name="flow"] { accent-color: #3d4653; margin: 0 5px 0 0; vertical-align: -1px; }
input[name="flow"] + label { margin-right: 20px; font-size: 13.5px; white-space: nowrap; cursor: pointer; }
"""


def write_report(path: Path, study: Study, done: Finished, rows: Sequence[Mapping[str, Any]], facts: Mapping[str, Any]) -> None:
    """Write the page of the first design, whole or not at all; rows: figures of all designs, the first one's first."""
    title = f"{facts['model']} on {facts['machine']}: {rows[0]['words']}"
    body = "\n".join([
        f"<h1>{escape(title)}</h1>", f'<p class="lead">{escape(_lead(rows[0], facts))}</p>', _cards(rows[0]), _map(study, done),
        _loads(study, done), _designs(rows), _between(rows[0]), _footer(rows[0], facts),
    ])  # fmt: skip
    with replacing(path) as part:
        part.write_text(document(title, body, style=_CSS + atlas.STYLE), encoding="utf-8")


def _lead(row: Mapping[str, Any], facts: Mapping[str, Any]) -> str:
    wrong = f"{facts['events']} events; " if facts["events"] else ""
    return (
        f"{row['requests']:,} requests in {seconds_text(row['seconds'])} of simulated time; experts placed by {facts['placement']}, "
        f"copies chosen by {facts['replica_routing']}; {wrong}seed {facts['seed']}."
    )


def _cards(row: Mapping[str, Any]) -> str:
    def time(value: float | None) -> str:
        return "&ndash;" if value is None else seconds_text(value)

    cards = [
        ("Throughput", f"{row['tokens_per_s']:.1f} tokens/s", f"{row['answered']:,} answered, {row['lost']} lost"),
        ("First token", time(row["ttft_s"]["p50"]), f"p99 {time(row['ttft_s']['p99'])}"),
        ("Each further token", time(row["tpot_s"]["p50"]), f"floor of distance {time(row['floor_s_per_token'])}"),
        ("Cost", _usd(row["usd_per_million_tokens"]), "a million tokens, all nodes that were rented"),
        ("Energy", _energy(row), _carbon(row)),
        ("Placement", f"{row['moves']:,} copies moved", f"{row['rebalances']} rebalances, {row['suspected']} nodes missed"),
    ]  # fmt: skip
    boxes = [
        f'<div class="card"><div class="label">{a}</div><div class="value">{b}</div><div class="more">{c}</div></div>' for a, b, c in cards
    ]
    return f'<div class="cards">{"".join(boxes)}</div>'


def _usd(value: float | None) -> str:
    return "&ndash;" if value is None else f"$ {value:,.0f}" if value >= 100 else f"$ {value:,.2f}"


def _energy(row: Mapping[str, Any]) -> str:
    return "&ndash;" if row["busy_energy_wh"] is None else energy(row["busy_energy_wh"])


def _carbon(row: Mapping[str, Any]) -> str:
    idle = row["idle_energy_wh"]
    said = f"of GPUs while they worked; {'idle power is not stated' if idle is None else f'idle {energy(idle)}'}"
    return said if row["carbon_g"] is None else f"{said}; {mass(row['carbon_g'])} CO&#8322;e"


def _map(study: Study, done: Finished) -> str:
    plant, tally = study.plant, done.server.tally
    share = tally.meter.busy_s / max(done.seconds, 1e-9)
    weight = np.bincount(plant.node_of, minlength=len(plant.nodes))
    masks = {r: plant.region_of == i for i, r in enumerate(plant.regions)}
    busy = {r: float(np.average(share[m], weights=weight[m])) for r, m in masks.items()}
    rtt_s = {(link.a, link.b): link.rtt_s for link in plant.cluster.links}
    drawn = atlas.svg(plant.cluster, tally.flows, busy, rtt_s)
    return f"""<section><h2>Where it went</h2>
<p class="note">Bytes on the wire between regions over the whole study, tunnels included: choose what is drawn. An arrow's width goes
with the root of its bytes, the widest of each choice being alike; all together have the colour of what is most. Discs say how much of
the GPUs' time was worked, labels on links are round trips. Point at an arrow for its bytes.</p>{drawn}</section>"""


def _loads(study: Study, done: Finished) -> str:
    history, plant = done.server.history, study.plant
    if len(history.at_s) < 4:
        return ""
    edges, last = history.bins(BINS, done.seconds)
    nodes, gpus = history.share(history.busy_s, last), history.share(history.gpu_s, last)
    dead = np.array([[n in history.dead[max(i, 0)] for i in last[1:]] for n in range(len(plant.nodes))])
    weight = np.bincount(plant.node_of, minlength=len(plant.nodes))
    groups = [plant.region_of == i for i in range(len(plant.regions))]
    regions = np.array([np.average(nodes[m], axis=0, weights=weight[m]) for m in groups])
    gone = np.array([dead[m].all(axis=0) for m in groups])
    marks = [(e.at_s, f"{e.what} {e.node or e.region}") for e in study.troubles if e.what != "price" and e.at_s <= done.seconds]
    names = [f"{g.name} {g.kind}" for g in plant.cluster.gpu]
    stretch = f"stretch of {seconds_text(float(edges[1]))}"
    small = 14 if len(names) <= 64 else 11
    return f"""<section><h2>Load over time</h2>
<p class="note">Share of each {stretch} that a region's GPUs worked, as their node was taken for a step. Dashed lines are events;
point at a cell for its share.</p>
{heat.svg(plant.regions, regions, gone, edges, marks, 26)}{heat.listed(marks, done.seconds)}</section>
<section><h2>Experts, GPU by GPU</h2>
<p class="note">Share of each {stretch} in which the GPU's own experts were computed: what a placement evens out. The colours reach as
far as the busiest GPU.</p>
{heat.svg(names, gpus, dead[plant.node_of], edges, marks, small)}</section>"""


def _designs(rows: Sequence[Mapping[str, Any]]) -> str:
    times = ["TTFT p50", "TTFT p99", "TPOT p50", "TPOT p99", "floor a token"]
    head = ["design", "tokens/s", *times, "between regions", "$ a million tokens", "answered", "lost"]
    body = []
    for r in rows:
        name = escape(r["words"])
        if "does_not_fit" in r:
            body.append([f"{name}: {escape(r['does_not_fit'])}", *["&ndash;"] * (len(head) - 1)])
            continue
        found = [r["ttft_s"]["p50"], r["ttft_s"]["p99"], r["tpot_s"]["p50"], r["tpot_s"]["p99"], r["floor_s_per_token"]]
        said = ["&ndash;" if t is None else seconds_text(t) for t in found]
        wan, usd = size(r["wire_bytes"].get("wan", 0.0)), _usd(r["usd_per_million_tokens"])
        body.append([name, f"{r['tokens_per_s']:.1f}", *said, wan, usd, f"{r['answered']:,}", str(r["lost"])])
    return f"<section><h2>Beside what a sane operator would run</h2>{table(head, body, range(1, len(head)))}</section>"


def _between(row: Mapping[str, Any]) -> str:
    quorum = row["quorum_s"]
    waits = f"{quorum['mean'] * 1e3:.0f} ms mean, {quorum['p99'] * 1e3:.0f} ms p99" if row["commits"] else "&ndash;"
    age = "&ndash;" if row["view_age_s"] is None else f"{row['view_age_s']:.2f} s"
    rows = [
        ["Control plane", f"{', '.join(escape(n) for n in row['control_members'])}; bears {row['control_tolerates']} faulty"],
        ["Changes decided", f"{row['commits']}, of which {row['superseded']} were out of date by then; {row['views']} view(s)"],
        ["From proposal to decision", waits],
        ["Control plane's messages", f"{row['control_messages']:,}, {size(row['control_bytes'])}"],
        ["Gossip", f"{row['gossip_messages']:,} messages, {size(row['gossip_bytes'])}, {row['gossip_lost']:,} lost"],
        ["Age of what policies looked at", age],
        ["Checkpoint chunks sent", f"{size(row['restored_bytes'])}, of it {size(row['from_store_bytes'])} from the coordinator's store"],
        ["Not sent again", f"{size(row['deduplicated_bytes'])}: on the node's disk, or for another of its GPUs"],
        ["Copies of messages thrown away", f"{row['discarded']:,}"],
    ]  # fmt: skip
    return f"<section><h2>Between nodes</h2>{table(['', ''], rows, ())}</section>"


def _footer(row: Mapping[str, Any], facts: Mapping[str, Any]) -> str:
    return (
        f"<footer>Simulated: {row['steps']:,} steps, {row['tasks']:,} tasks, {row['tokens_simulated']:,} tokens; routing from "
        f"{escape(str(facts['trace']))}, requests from {escape(str(facts['requests_from']))}.</footer>"
    )
