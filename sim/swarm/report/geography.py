"""Where regions are on the map: by their coordinates, cut where the longest gap between them is, or on a circle."""

from __future__ import annotations

import math
from collections.abc import Mapping

from sim.clusters import Cluster

WIDTH, HEIGHT, MARGIN = 1240, 560, 110
Point = tuple[float, float]


def positions(cluster: Cluster) -> tuple[dict[str, Point], bool]:
    """(x, y) of each region in pixels, and whether that is where it is on the globe (equirectangular)."""
    found = {n: (r.east_deg, r.north_deg) for n, r in cluster.regions.items() if r.east_deg is not None and r.north_deg is not None}
    if len(found) < len(cluster.regions):
        return _circle(list(cluster.regions)), False
    west = _cut([east for east, _ in found.values()])
    plain = {name: ((east - west) % 360.0, -north) for name, (east, north) in found.items()}
    return _apart(_scaled(plain)), True


def _cut(easts: list[float]) -> float:
    """The longitude at which the map begins: after the longest gap."""
    order = sorted(e % 360.0 for e in easts)
    gaps = [((b - a) % 360.0 or 360.0, b) for a, b in zip(order, [*order[1:], order[0]], strict=True)]
    return max(gaps)[1]


def _scaled(plain: Mapping[str, Point]) -> dict[str, Point]:
    """One scale both ways, as large as fits."""
    xs, ys = [x for x, _ in plain.values()], [y for _, y in plain.values()]
    wide, high = max(max(xs) - min(xs), 1e-6), max(max(ys) - min(ys), 1e-6)
    scale = min((WIDTH - 2 * MARGIN) / wide, (HEIGHT - 2 * MARGIN) / high)
    left, top = (WIDTH - scale * wide) / 2, (HEIGHT - scale * high) / 2
    return {n: (left + (x - min(xs)) * scale, top + (y - min(ys)) * scale) for n, (x, y) in plain.items()}


def _apart(at: Mapping[str, Point], least: float = 150.0) -> dict[str, Point]:
    """Neighbours are pushed apart until their circles and labels have room."""
    out = dict(at)
    for _ in range(60):
        for a in out:
            for b in out:
                dx, dy = out[b][0] - out[a][0], out[b][1] - out[a][1]
                d = math.hypot(dx, dy)
                if a >= b or d >= least:
                    continue
                ux, uy = (dx / d, dy / d) if d else (1.0, 0.0)
                push = (least - d) / 2
                out[a] = _inside(out[a][0] - ux * push, out[a][1] - uy * push)
                out[b] = _inside(out[b][0] + ux * push, out[b][1] + uy * push)
    return out


def _inside(x: float, y: float) -> Point:
    return min(max(x, MARGIN), WIDTH - MARGIN), min(max(y, MARGIN * 0.7), HEIGHT - MARGIN * 0.7)


def _circle(names: list[str]) -> dict[str, Point]:
    turn = 2 * math.pi / len(names)
    far = HEIGHT / 2 - MARGIN * 0.8
    return {n: (WIDTH / 2 + 1.6 * far * math.sin(i * turn), HEIGHT / 2 - far * math.cos(i * turn)) for i, n in enumerate(names)}
