"""The map as SVG: regions with their load, and what went over the links between them, by kind of traffic."""

from __future__ import annotations

import math
from collections.abc import Mapping
from html import escape

from sim.clusters import Cluster
from sim.report.colours import ink
from sim.swarm.report.geography import HEIGHT, WIDTH, Point, positions
from sim.swarm.report.heat import shade
from sim.units import size

KINDS = {
    "activations": ("#009E73", "activations to experts elsewhere"), "requests": ("#0072B2", "requests and answers"),
    "experts": ("#E69F00", "experts and dense weights"), "gossip": ("#CC79A7", "gossip"), "control": ("#555B66", "control plane"),
}  # fmt: skip
THINNEST, WIDEST = 1.2, 13.0
Flows = Mapping[tuple[str, str], float]


def svg(cluster: Cluster, flows: Flows, busy: Mapping[str, float], rtt_s: Mapping[tuple[str, str], float]) -> str:
    """flows: (kind, resource `wan.A.B`) -> bytes; busy: share of each region's GPU time that was worked; rtt_s: of each link."""
    at, real = positions(cluster)
    most = max(flows.values(), default=1.0)
    parts = [_water(real)]
    parts += [_line(at[a], at[b]) for a, b in rtt_s]
    parts += _arrows(at, flows, most)
    parts += [_latency(at[a], at[b], s) for (a, b), s in rtt_s.items()]
    parts += [_region(cluster, name, at[name], busy.get(name)) for name in cluster.regions]
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" class="map" role="img" aria-label="Map of the cluster with traffic between its regions">'
        f"{''.join(parts)}</svg>{_legend(flows)}"
    )


def _water(real: bool) -> str:
    """Meridians and parallels, only where positions are those of the globe."""
    lines = "".join(f'<path d="M{x} 0V{HEIGHT}"/>' for x in range(62, WIDTH, 124)) if real else ""
    rows = "".join(f'<path d="M0 {y}H{WIDTH}"/>' for y in range(62, HEIGHT, 124)) if real else ""
    return f'<rect width="{WIDTH}" height="{HEIGHT}" rx="6" fill="#f4f7fa"/><g stroke="#e3e9ef" fill="none">{lines}{rows}</g>'


def _line(a: Point, b: Point) -> str:
    return f'<path d="M{a[0]:.1f} {a[1]:.1f}L{b[0]:.1f} {b[1]:.1f}" stroke="#c3cad3" stroke-dasharray="3 4" fill="none"/>'


def _arrows(at: Mapping[str, Point], flows: Flows, most: float) -> list[str]:
    """Curves, the widest first; kinds of one direction lie side by side, the two directions on two sides."""
    lanes: dict[str, float] = {}
    out: list[tuple[float, str]] = []
    for kind in KINDS:
        for (found, resource), value in flows.items():
            if found == kind and value > 0:
                width = max(THINNEST, WIDEST * math.sqrt(value / most))
                offset = lanes.get(resource, 5.0) + width / 2
                lanes[resource] = offset + width / 2 + 2.0
                _, a, b = resource.split(".")
                out.append((width, _arrow(at[a], at[b], offset, width, KINDS[kind][0], f"{a} to {b}, {KINDS[kind][1]}: {size(value)}")))
    return [text for _, text in sorted(out, key=lambda o: -o[0])]


def _arrow(a: Point, b: Point, offset: float, width: float, colour: str, title: str) -> str:
    """A curve that bends away from the straight line to its right-hand side, and ends in a head outside of the circle."""
    dx, dy = b[0] - a[0], b[1] - a[1]
    length = math.hypot(dx, dy)
    ux, uy = dx / length, dy / length
    nx, ny = -uy, ux
    start = (a[0] + ux * 34 + nx * offset * 0.6, a[1] + uy * 34 + ny * offset * 0.6)
    head = max(7.0, width * 1.5)
    tip = (b[0] - ux * 36 + nx * offset * 0.6, b[1] - uy * 36 + ny * offset * 0.6)
    end = (tip[0] - ux * head, tip[1] - uy * head)
    bend = offset * 1.7 + 0.05 * length
    mid = ((start[0] + end[0]) / 2 + nx * bend, (start[1] + end[1]) / 2 + ny * bend)
    curve = f"M{start[0]:.1f} {start[1]:.1f}Q{mid[0]:.1f} {mid[1]:.1f} {end[0]:.1f} {end[1]:.1f}"
    wing = max(3.6, width * 0.85)
    corners = (tip, (end[0] + nx * wing, end[1] + ny * wing), (end[0] - nx * wing, end[1] - ny * wing))
    points = " ".join(f"{x:.1f},{y:.1f}" for x, y in corners)
    return (
        f'<g opacity=".85"><title>{escape(title)}</title><path d="{curve}" stroke="{colour}" stroke-width="{width:.1f}" fill="none"/>'
        f'<polygon points="{points}" fill="{colour}"/></g>'
    )


def _latency(a: Point, b: Point, rtt_s: float) -> str:
    """A link's round trip, a little off the middle, where long links cross less."""
    x, y = a[0] + (b[0] - a[0]) * 0.44, a[1] + (b[1] - a[1]) * 0.44
    return (
        f'<g><rect x="{x - 25:.1f}" y="{y - 10:.1f}" width="50" height="19" rx="9" fill="#fff" stroke="#c3cad3"/>'
        f'<text x="{x:.1f}" y="{y + 4:.1f}" text-anchor="middle" font-size="11.5" fill="#5a6370">{rtt_s * 1e3:.0f} ms</text></g>'
    )


def _region(cluster: Cluster, name: str, at: Point, busy: float | None) -> str:
    """A disc in the colour of its load, and what is there."""
    kinds: dict[str, int] = {}
    for gpu in cluster.gpu:
        if gpu.region == name:
            kinds[gpu.kind] = kinds.get(gpu.kind, 0) + 1
    what = ", ".join(f"{n} × {kind}" for kind, n in kinds.items()) or "coordinator"
    fill = shade(busy) if busy is not None and kinds else "#ffffff"
    said = f"{busy:.1%}" if busy is not None and kinds else "&#9679;"
    x, y = at
    below = y + 48 if y < HEIGHT - 70 else y - 44
    middle = f'text-anchor="middle" x="{x:.1f}"'
    return (
        f'<g><circle cx="{x:.1f}" cy="{y:.1f}" r="29" fill="{fill}" stroke="#3d4653" stroke-width="1.6"/>'
        f'<text {middle} y="{y - 2:.1f}" font-size="13.5" font-weight="600" fill="{ink(fill)}">{escape(name)}</text>'
        f'<text {middle} y="{y + 14:.1f}" font-size="12" fill="{ink(fill)}">{said}</text>'
        f'<text {middle} y="{below:.1f}" font-size="12.5" fill="#1b1f24" class="halo">{escape(what)}</text></g>'
    )


def _legend(flows: Flows) -> str:
    total = {kind: sum(v for (k, _), v in flows.items() if k == kind) for kind in KINDS}
    items = [
        f'<span><span class="swatch" style="background:{colour}"></span>{escape(words)}: <b>{size(total[kind])}</b></span>'
        for kind, (colour, words) in KINDS.items() if total[kind]
    ]  # fmt: skip
    return f'<p class="kinds">{"".join(items) or "No traffic between regions."}</p>'
