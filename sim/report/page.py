"""The report: one HTML file that works offline, of a simulated run, a measured one, or both.

The timelines are drawn by `timeline.js` on a canvas, because Vega takes seconds for thousands of
bars; the small charts are Vega-Lite.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from html import escape
from importlib.resources import files as resources
from pathlib import Path
from typing import Any

from sim.report import charts, embed
from sim.report.colours import MEASURED, OP_COLOURS, SIMULATED, colour, ink
from sim.report.critical import CriticalPath, Dependencies, critical_path
from sim.report.figures import lane_use, op_errors, seconds_text, step_times
from sim.report.sections import cards, critical_table, facts_tables, lanes_table, ops_table
from traces.files import replacing
from traces.timeline import Timeline

_NAMES = {"simulated": "Simulated", "measured": "Measured", "emulated": "Measured (paced links)", "": "Measured"}


def write_report(
    path: str | Path,
    sim_timeline: Timeline | None,
    exec_timeline: Timeline | None,
    facts: Mapping[str, Any],
    dependencies: Dependencies | None = None,
) -> None:
    """Write the page to `path`, whole or not at all; raises `traces.errors.TraceError` where it cannot be written.

    Parameters
    ----------
    sim_timeline, exec_timeline: either may be None.
    facts: what is known of the run, as `run --json` prints it: model, machine, workload, scheduler,
        policy, routing, sources, ...; nested mappings and lists become tables. `title` heads the page.
        `simulated` and `measured` may hold each clock's own figures (`tokens_per_s`, ...).
    dependencies: who waited for whom (`sim.timeline.dependencies_of`), valid for both clocks.
    """
    timelines = {"simulated": sim_timeline, "measured": exec_timeline}
    given = {clock: t for clock, t in timelines.items() if t is not None}
    assert given, "write_report() needs at least one timeline"
    paths = {clock: critical_path(t, dependencies) for clock, t in given.items()}
    specs = _charts(given)
    page = _page(given, paths, facts, specs)
    with replacing(path) as part:
        part.write_text(page, encoding="utf-8")


def _charts(given: Mapping[str, Timeline]) -> dict[str, dict[str, Any]]:
    specs = {"lanes": charts.lanes({clock: lane_use(t) for clock, t in given.items()})}
    curves = {clock: tuple(c.tolist() for c in step_times(t)) for clock, t in given.items()}
    if any(len(xs) > 1 for xs, _ in curves.values()):
        specs["steps"] = charts.steps(curves)
    errors = op_errors(given["simulated"], given["measured"]) if len(given) == 2 else []
    if any(e.error is not None for e in errors):
        specs["ops"] = charts.ops(errors)
    return specs


def _data(given: Mapping[str, Timeline], paths: Mapping[str, CriticalPath], specs: Mapping[str, Any]) -> dict[str, Any]:
    """What timeline.js reads."""
    timelines = list(given.values())
    shown = embed.windows(timelines)
    clocks = []
    for k, (clock, timeline) in enumerate(given.items()):
        rows = embed.chosen(timeline, [w.spans[k] for w in shown])
        name = "Simulated" if clock == "simulated" else _NAMES[timeline.clock]
        packed = embed.pack(timeline, rows, paths[clock], name)
        clocks.append({**packed, "colour": SIMULATED if clock == "simulated" else MEASURED})
    used = {op for c in clocks for op in c["ops"]}
    ordered = [op for op in OP_COLOURS if op in used] + sorted(used - set(OP_COLOURS))
    return {
        "clocks": clocks, "colours": {op: (colour(op), ink(colour(op))) for op in ordered}, "charts": specs,
        "first": embed.opening(shown, timelines), "few": embed.FEW,
        "windows": [{"label": w.label, "spans": [(a / 1e6, b / 1e6) for a, b in w.spans]} for w in shown],
    }  # fmt: skip


def _page(given: Mapping[str, Timeline], paths: Mapping[str, CriticalPath], facts: Mapping[str, Any], specs: Mapping[str, Any]) -> str:
    title = str(facts.get("title") or _title(given, facts))
    data = _data(given, paths, specs)
    body = "\n".join([
        f"<h1>{escape(title)}</h1>", f'<p class="lead">{escape(_lead(given, facts))}</p>', _warning(given, facts), cards(given, facts),
        _timeline_section(given, data), _sections(given, paths, facts, specs), _footer(given),
    ])  # fmt: skip
    return document(title, body, scripts(data, "timeline.js"))


def document(title: str, body: str, scripts: str = "", style: str = "") -> str:
    """One HTML file that needs nothing else: `body` in the report's style and in the page's own `style`, then `scripts`."""
    css = (resources("sim.report") / "report.css").read_text("utf-8") + style
    return _SHELL.format(title=escape(title), css=css, body=body, scripts=scripts)


def scripts(data: Mapping[str, Any], script: str) -> str:
    """What `script` of this package reads, the charts' library, and the script."""
    return _SCRIPTS.format(
        data=json.dumps(data).replace("</", "<\\/"), vega=charts.bundle().replace("</script", "<\\/script"),
        script=(resources("sim.report") / script).read_text("utf-8"),
    )  # fmt: skip


_SHELL = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<link rel="icon" href="data:,">
<style>
{css}
</style>
</head>
<body>
<main>
{body}
</main>
{scripts}
</body>
</html>
"""

_SCRIPTS = """<script type="application/json" id="data">{data}</script>
<script type="module">
{vega}
</script>
<script type="module">
{script}
</script>"""


def _title(given: Mapping[str, Timeline], facts: Mapping[str, Any]) -> str:
    what = "Simulated and measured" if len(given) == 2 else "Simulated" if "simulated" in given else "Measured"
    run = [str(facts[k]) for k in ("scheduler", "model") if facts.get(k)]
    machine = f" on {facts['machine']}" if facts.get("machine") else ""
    return f"{what}: {', '.join(run)}{machine}" if run else f"{what} run{machine}"


def _lead(given: Mapping[str, Timeline], facts: Mapping[str, Any]) -> str:
    tasks = " and ".join(f"{int(t.ran.sum()):,} {clock}" for clock, t in given.items())
    words = [f"{tasks} tasks"]
    if facts.get("workload"):
        words.append(f"workload {_inline(facts['workload'])}")
    if facts.get("policy"):
        words.append(f"policy {_inline(facts['policy'])}")
    return "; ".join(words) + "."


def _inline(value: Any) -> str:
    """A policy by what everybody asks for first; the rest is in its table."""
    if not isinstance(value, Mapping):
        return str(value)
    known = {k: value[k] for k in ("batch", "microbatch") if k in value}
    return ", ".join(f"{k} {v}" for k, v in (known or value).items())


def _warning(given: Mapping[str, Timeline], facts: Mapping[str, Any]) -> str:
    """Synthetic data and paced links say so wherever they are shown."""
    says = []
    if str(facts.get("routing", "")).startswith("synthetic"):
        says.append("The routing is synthetic: no trace told which experts the tokens went to.")
    if any(t.clock == "emulated" for t in given.values()):
        says.append("Links were paced to the rig's bandwidth: times are emulated, the numbers really computed.")
    return f'<p class="warn">{escape(" ".join(says))}</p>' if says else ""


def _timeline_section(given: Mapping[str, Timeline], data: Mapping[str, Any]) -> str:
    labels = [w["label"] for w in data["windows"]]
    parted = [f"{c['name'].lower()} {c['count']:,} of {c['total']:,}" for c in data["clocks"] if c["count"] < c["total"]]
    note = f"Of a run this long the page carries {', '.join(labels)} (tasks: {'; '.join(parted)}). " if parted else ""
    both = "Both clocks begin the chosen stretch at 0. " if len(given) == 2 else ""
    names = " and ".join(_NAMES[t.clock].lower() for t in given.values())
    return f"""<section>
<h2>Timeline</h2>
<p class="note">{note}{both}Bars say op and layer.micro-batch; point at one for its times{' on both clocks' if len(given) == 2 else ''}.</p>
<div class="tools">
<label>Show <select id="window"></select></label>
<span><button type="button" id="in" aria-label="Zoom in">+</button> <button type="button" id="out" aria-label="Zoom out">&minus;</button>
<button type="button" id="all">Fit</button></span>
<label><input type="checkbox" id="critical"> Only the critical path</label>
<span class="hint">Drag to pan, Ctrl + wheel or double-click to zoom; keys + &minus; 0 and arrows</span>
</div>
<div id="frame"><div id="tip"></div>
<canvas id="timeline" tabindex="0" role="img" aria-label="Timeline of the {escape(names)} run, lanes as rows"></canvas></div>
<div id="legend" aria-label="Ops: press one to see only its bars"></div>
</section>"""


def _sections(given: Mapping[str, Timeline], paths: Mapping[str, CriticalPath], facts: Mapping[str, Any], specs: Mapping[str, Any]) -> str:
    lanes = f'<section><h2>Lanes</h2><div class="chart" id="lanes"></div>{lanes_table(given)}</section>'
    critical = f"<section><h2>Critical path</h2>{critical_table(given, paths)}</section>"
    steps = '<section><h2>Decode, step by step</h2><div class="chart" id="steps"></div></section>' if "steps" in specs else ""
    ops = ""
    if len(given) == 2:
        chart = '<div class="chart" id="ops"></div>' if "ops" in specs else ""
        ops = f"<section><h2>Error by op</h2>{chart}{ops_table(given['simulated'], given['measured'])}</section>"
    return f'<div class="pair">{lanes}{critical}</div>\n{ops}\n{steps}\n{facts_tables(facts)}'


def _footer(given: Mapping[str, Timeline]) -> str:
    rows = []
    for clock, t in given.items():
        p = t.provenance
        rows.append(f"{clock.capitalize()}: {escape(p.origin)} ({p.made}), version {escape(p.version)}, <code>{escape(p.command)}</code>, "
                    f"makespan {seconds_text(t.makespan_ps / 1e12)}.")  # fmt: skip
    return f"<footer>{'<br>'.join(rows)}</footer>"
