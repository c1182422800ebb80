"""The map as SVG: regions with their load, and what went over the links between them: all of it, or one kind of traffic at a time."""

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
THINNEST, WIDEST = 1.2, 11.0
STYLE = "\n.layer { display: none; }\n" + "".join(f"#flow-{k}:checked ~ svg .layer.{k} {{ display: inline; }}\n" for k in ("all", *KINDS))
"""Which layer of arrows is seen is a choice among radio buttons; no script is needed."""
Flows = Mapping[tuple[str, str], float]


def svg(cluster: Cluster, flows: Flows, busy: Mapping[str, float], rtt_s: Mapping[tuple[str, str], float]) -> str:
    """flows: (kind, resource `wan.A.B`) -> bytes; busy: share of each region's GPU time that was worked; rtt_s: of each link."""
    at, real = positions(cluster)
    parts = [_water(real)]
    parts += [_line(at[a], at[b]) for a, b in rtt_s]
    parts += [_layer(kind, at, flows) for kind in ("all", *KINDS)]
    parts += _latencies(at, rtt_s)
    parts += [_region(cluster, name, at[name], busy.get(name), _above(at, name, rtt_s)) for name in cluster.regions]
    return (
        f'{_choices(flows)}<svg viewBox="0 0 {WIDTH} {HEIGHT}" class="map" role="img" '
        f'aria-label="Map of the cluster with traffic between its regions">{"".join(parts)}</svg>'
    )


def _water(real: bool) -> str:
    """Meridians and parallels, only where positions are those of the globe."""
    lines = "".join(f'<path d="M{x} 0V{HEIGHT}"/>' for x in range(62, WIDTH, 124)) if real else ""
    rows = "".join(f'<path d="M0 {y}H{WIDTH}"/>' for y in range(62, HEIGHT, 124)) if real else ""
    return f'<rect width="{WIDTH}" height="{HEIGHT}" rx="6" fill="#f4f7fa"/><g stroke="#e3e9ef" fill="none">{lines}{rows}</g>'


def _line(a: Point, b: Point) -> str:
    return f'<path d="M{a[0]:.1f} {a[1]:.1f}L{b[0]:.1f} {b[1]:.1f}" stroke="#c3cad3" stroke-dasharray="3 4" fill="none"/>'


def _layer(kind: str, at: Mapping[str, Point], flows: Flows) -> str:
    """An arrow for each direction of a link, the widest first: one kind's bytes, or all together in the colour of the kind with most."""
    totals: dict[str, dict[str, float]] = {}
    for (found, resource), value in flows.items():
        if value > 0 and kind in ("all", found):
            totals.setdefault(resource, {})[found] = value
    most = max((sum(parts.values()) for parts in totals.values()), default=1.0)
    out = []
    for resource, parts in sorted(totals.items(), key=lambda r: -sum(r[1].values())):
        _, a, b = resource.split(".")
        width = max(THINNEST, WIDEST * math.sqrt(sum(parts.values()) / most))
        largest = sorted(parts, key=lambda k: -parts[k])
        said = f"{a} to {b}: " + "; ".join(f"{KINDS[k][1]} {size(parts[k])}" for k in largest)
        out.append(_arrow(at[a], at[b], 5.0 + width / 2, width, KINDS[largest[0]][0], said))
    return f'<g class="layer {kind}">{"".join(out)}</g>'


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


def _latencies(at: Mapping[str, Point], rtt_s: Mapping[tuple[str, str], float]) -> list[str]:
    """Round trips on their links, near the middle, where no region and no other label is in the way."""
    taken, out = list(at.values()), []
    for (a, b), seconds in sorted(rtt_s.items(), key=lambda link: math.dist(at[link[0][0]], at[link[0][1]])):
        (ax, ay), (bx, by) = at[a], at[b]
        along = [(ax + (bx - ax) * t, ay + (by - ay) * t) for t in (0.5, 0.42, 0.58, 0.34, 0.66, 0.28, 0.72)]
        x, y = max(along, key=lambda p: min(1.0, min(abs(p[0] - u) / 56 + abs(p[1] - v) / 24 for u, v in taken)))
        taken.append((x, y))
        out.append(
            f'<g><rect x="{x - 25:.1f}" y="{y - 10:.1f}" width="50" height="19" rx="9" fill="#fff" stroke="#c3cad3"/>'
            f'<text x="{x:.1f}" y="{y + 4:.1f}" text-anchor="middle" font-size="11.5" fill="#3d4653">{seconds * 1e3:.0f} ms</text></g>'
        )
    return out


def _above(at: Mapping[str, Point], name: str, rtt_s: Mapping[tuple[str, str], float]) -> bool:
    """Whether a region's label stands above it: on the side to which fewer links go, and inside of the map."""
    ends = [at[b if a == name else a] for a, b in rtt_s if name in (a, b)]
    down = sum((y - at[name][1]) / max(math.dist((x, y), at[name]), 1.0) for x, y in ends)
    return at[name][1] > HEIGHT - 70 or (down > 0 and at[name][1] > 60)


def _region(cluster: Cluster, name: str, at: Point, busy: float | None, above: bool) -> str:
    """A disc in the colour of its load, and what is there."""
    kinds: dict[str, int] = {}
    for gpu in cluster.gpu:
        if gpu.region == name:
            kinds[gpu.kind] = kinds.get(gpu.kind, 0) + 1
    what = ", ".join(f"{n} × {kind}" for kind, n in kinds.items()) or "coordinator"
    fill = shade(busy) if busy is not None and kinds else "#ffffff"
    said = f"{busy:.1%}" if busy is not None and kinds else "&#9679;"
    x, y = at
    beside = y - 39 if above else y + 48
    middle = f'text-anchor="middle" x="{x:.1f}"'
    return (
        f'<g><circle cx="{x:.1f}" cy="{y:.1f}" r="29" fill="{fill}" stroke="#3d4653" stroke-width="1.6"/>'
        f'<text {middle} y="{y - 2:.1f}" font-size="13.5" font-weight="600" fill="{ink(fill)}">{escape(name)}</text>'
        f'<text {middle} y="{y + 14:.1f}" font-size="12" fill="{ink(fill)}">{said}</text>'
        f'<text {middle} y="{beside:.1f}" font-size="12.5" fill="#1b1f24" class="halo">{escape(what)}</text></g>'
    )


def _choices(flows: Flows) -> str:
    """What was sent, by kind; the one that is chosen is drawn."""
    total = {kind: sum(v for (k, _), v in flows.items() if k == kind) for kind in KINDS}
    if not any(total.values()):
        return '<p class="kinds">No traffic between regions.</p>'
    buttons = ['<input type="radio" name="flow" id="flow-all" checked><label for="flow-all">all together</label>']
    buttons += [
        f'<input type="radio" name="flow" id="flow-{kind}"><label for="flow-{kind}"><span class="swatch" '
        f'style="background:{colour}"></span>{escape(words)}: <b>{size(total[kind])}</b></label>'
        for kind, (colour, words) in KINDS.items() if total[kind]
    ]  # fmt: skip
    return "".join(buttons)
