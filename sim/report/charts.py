"""The small charts of the report as Vega-Lite specifications, made with Altair."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

from sim.report.colours import MEASURED, SIMULATED, colour
from sim.report.figures import LaneUse, OpError

_SNIPPET = "window.vegaEmbed = vegaEmbed;"
FONT = "system-ui, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
POLICY_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#3B424C", "#8C6D46", "#7A73B8", "#A3D39C")
"""Okabe and Ito's, as in `colours`, and four more."""
_SERIES = {"simulated": SIMULATED, "measured": MEASURED, "emulated": MEASURED}


@cache
def bundle() -> str:
    """The JavaScript of vega, vega-lite and vega-embed, to be put into the page (about 0.9 MB).

    Mentions of web addresses are cut out, so that nothing in the page points outside. XML namespaces
    and schema names stay: they are compared, never fetched.
    """
    import vl_convert

    script: str = vl_convert.javascript_bundle(_SNIPPET)
    return re.sub(r"https?://(?!www\.w3\.org|vega\.github\.io/schema)[^\s\"'`)\\]+", "about:blank", script)


def _finish(chart: Any, height: int) -> dict[str, Any]:
    chart = chart.properties(width="container", height=height).configure_view(stroke=None)
    chart = chart.configure(font=FONT, background="transparent").configure_axis(
        labelFontSize=12, titleFontSize=12, titleFontWeight="normal", labelColor="#3B424C", titleColor="#5A6370", gridColor="#E6E8EC",
        domainColor="#C4C8CF", tickColor="#C4C8CF",
    )  # fmt: skip
    chart = chart.configure_legend(labelFontSize=12, orient="top", title=None, symbolType="square")
    spec: dict[str, Any] = chart.to_dict()
    spec.pop("$schema", None)
    return spec


def _clock_colour(alt: Any, names: list[str]) -> Any:
    scale = alt.Scale(domain=names, range=[_SERIES[n] for n in names])
    return alt.Color("clock:N", scale=scale, legend=alt.Legend(title=None) if len(names) > 1 else None)


def lanes(uses: dict[str, list[LaneUse]]) -> dict[str, Any]:
    """Share of the makespan in which each lane was busy, one bar a clock."""
    import altair as alt

    rows = [
        {"clock": clock, "lane": u.lane, "utilization": u.utilization, "busy": round(u.busy_s, 6), "tasks": u.tasks}
        for clock, found in uses.items() for u in found
    ]  # fmt: skip
    names = list(uses)
    order = list(dict.fromkeys(r["lane"] for r in rows))
    chart = alt.Chart(alt.Data(values=rows)).mark_bar(cornerRadiusEnd=2).encode(
        x=alt.X("utilization:Q", title="busy share of the makespan", axis=alt.Axis(format="%"), scale=alt.Scale(domain=[0, 1])),
        y=alt.Y("lane:N", sort=order, title=None), yOffset=alt.YOffset("clock:N", sort=names), color=_clock_colour(alt, names),
        tooltip=["clock:N", "lane:N", alt.Tooltip("utilization:Q", format=".1%"), alt.Tooltip("busy:Q", title="busy s"), "tasks:Q"],
    )  # fmt: skip
    return _finish(chart, 30 + 20 * len(names) * len(order))


def steps(curves: dict[str, tuple[list[int], list[float]]]) -> dict[str, Any]:
    """Seconds of each decode step, one line a clock."""
    import altair as alt

    unit, scale = ("seconds", 1.0) if max((max(ys, default=0) for _, ys in curves.values()), default=0) >= 2 else ("milliseconds", 1e3)
    rows = [{"clock": c, "step": s, "time": v * scale} for c, (xs, ys) in curves.items() for s, v in zip(xs, ys, strict=True)]
    few = max((len(xs) for xs, _ in curves.values()), default=0) <= 40
    chart = alt.Chart(alt.Data(values=rows)).mark_line(point=few, strokeWidth=2).encode(
        x=alt.X("step:Q", title="decode step", axis=alt.Axis(tickMinStep=1, format="d"), scale=alt.Scale(nice=False, padding=8)),
        y=alt.Y("time:Q", title=unit, scale=alt.Scale(zero=True)), color=_clock_colour(alt, list(curves)),
        tooltip=["clock:N", "step:Q", alt.Tooltip("time:Q", title=unit, format=".4~g")],
    )  # fmt: skip
    return _finish(chart, 230)


def ops(errors: list[OpError]) -> dict[str, Any]:
    """Simulated less measured seconds of each op: where the makespan's error may come from."""
    import altair as alt

    rows = [
        {"op": f"{e.op} ({e.phase})" if e.phase else e.op, "name": e.op, "difference": (e.simulated_s - e.measured_s) * 1e3,
         "relative": e.error}
        for e in sorted(errors, key=lambda e: -abs(e.simulated_s - e.measured_s)) if e.error is not None
    ]  # fmt: skip
    names = list(dict.fromkeys(str(r["name"]) for r in rows))
    scale = alt.Scale(domain=names, range=[colour(n) for n in names])
    chart = alt.Chart(alt.Data(values=rows)).mark_bar(cornerRadiusEnd=2).encode(
        x=alt.X("difference:Q", title="simulated minus measured, milliseconds in all (left of 0: the simulation was too fast)"),
        y=alt.Y("op:N", sort=[r["op"] for r in rows], title=None, axis=alt.Axis(labelLimit=220)),
        color=alt.Color("name:N", scale=scale, legend=None),
        tooltip=["op:N", alt.Tooltip("difference:Q", title="ms", format="+.4~g"), alt.Tooltip("relative:Q", title="error", format="+.1%")],
    )  # fmt: skip
    return _finish(chart, 40 + 22 * len(rows))


def front(points: list[tuple[str, float, float]]) -> dict[str, Any]:
    """GPUs touched and balancedness, one point a placement policy."""
    import altair as alt

    rows = [{"policy": name, "touched": touched, "balancedness": balance} for name, touched, balance in points]
    names = [name for name, _, _ in points]
    chart = alt.Chart(alt.Data(values=rows)).mark_point(size=110, filled=True, opacity=0.9).encode(
        x=alt.X("touched:Q", title="GPUs touched by a token in a layer", scale=alt.Scale(zero=False, padding=20)),
        y=alt.Y("balancedness:Q", scale=alt.Scale(zero=False, padding=20)),
        color=_placements(alt, names), shape=alt.Shape("policy:N", sort=names, legend=None),
        tooltip=["policy:N", alt.Tooltip("touched:Q", format=".3f"), alt.Tooltip("balancedness:Q", format=".3f")],
    )  # fmt: skip
    return _finish(chart, 260)


def layers(balance: dict[str, list[float]]) -> dict[str, Any]:
    """Balancedness of each layer, one line a placement policy."""
    import altair as alt

    rows = [{"policy": n, "layer": i, "balancedness": v} for n, values in balance.items() for i, v in enumerate(values)]
    chart = alt.Chart(alt.Data(values=rows)).mark_line(point=len(next(iter(balance.values()))) <= 40, strokeWidth=2).encode(
        x=alt.X("layer:Q", axis=alt.Axis(tickMinStep=1, format="d"), scale=alt.Scale(nice=False, padding=8)),
        y=alt.Y("balancedness:Q", scale=alt.Scale(domain=[0, 1])), color=_placements(alt, list(balance)),
        tooltip=["policy:N", "layer:Q", alt.Tooltip("balancedness:Q", format=".3f")],
    )  # fmt: skip
    return _finish(chart, 260)


def _placements(alt: Any, names: list[str]) -> Any:
    """One colour a policy in every chart."""
    scale = alt.Scale(domain=names, range=[POLICY_COLOURS[i % len(POLICY_COLOURS)] for i in range(len(names))])
    return alt.Color("policy:N", scale=scale, legend=alt.Legend(columns=4))
