"""Load over time as a heat map in SVG: rows of regions or GPUs, one column a stretch of time, and what went wrong as marks."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np
from numpy.typing import NDArray

from sim.report.colours import ink

STOPS = ("#f3f6f9", "#cfe3f2", "#8cc0e0", "#3f8fc4", "#14568f", "#0b2f57")
"""From idle to busy, one hue and ever darker, so that it reads in grey as well."""
GONE = "#f0d9cf"
LEFT, WIDTH, TOP = 150, 1240, 22
Floats = NDArray[np.float64]


def shade(share: float) -> str:
    """Colour of a share in 0..1; small shares differ more, as most are small."""
    place = float(np.sqrt(min(max(share, 0.0), 1.0))) * (len(STOPS) - 1)
    i = min(int(place), len(STOPS) - 2)
    channels = [[int(c[k : k + 2], 16) for k in (1, 3, 5)] for c in STOPS[i : i + 2]]
    mixed = [round(a + (b - a) * (place - i)) for a, b in zip(*channels, strict=True)]
    return "#" + "".join(f"{v:02x}" for v in mixed)


def svg(
    labels: Sequence[str], share: Floats, gone: NDArray[np.bool_], edges_s: Floats, marks: Sequence[tuple[float, str]], row_px: int = 20
) -> str:
    """share [rows, bins] in 0..1; gone [rows, bins]: given up or off; edges_s [bins + 1]; marks: (when, what)."""
    height = TOP + len(labels) * row_px + 30
    end_s = float(edges_s[-1])
    width = (WIDTH - LEFT - 12) / share.shape[1]
    parts = [_row(i, label, share[i], gone[i], width, row_px, edges_s) for i, label in enumerate(labels)]
    parts += [_tick(t, end_s, height) for t in _ticks(end_s)]
    parts += [_mark(when, what, end_s, height) for when, what in marks if when <= end_s]
    return f'<svg viewBox="0 0 {WIDTH} {height}" class="heat" role="img" aria-label="Load over time">{"".join(parts)}</svg>'


def _row(i: int, label: str, share: Floats, gone: NDArray[np.bool_], width: float, px: int, edges_s: Floats) -> str:
    y = TOP + i * px
    cells = []
    for k, value in enumerate(share):
        fill = GONE if gone[k] else shade(float(value))
        said = "given up or off" if gone[k] else f"{value:.1%}"
        title = f"{label}, {edges_s[k]:.0f} to {edges_s[k + 1]:.0f} s: {said}"
        box = f'x="{LEFT + k * width:.2f}" y="{y}" width="{width + 0.3:.2f}" height="{px - 2}" fill="{fill}"'
        cells.append(f"<rect {box}><title>{escape(title)}</title></rect>")
    text = f'<text x="{LEFT - 8}" y="{y + px / 2 + 3:.1f}" text-anchor="end" font-size="{min(12.5, px - 3):.1f}">{escape(label)}</text>'
    return text + "".join(cells)


def _x(when_s: float, end_s: float) -> float:
    return LEFT + (WIDTH - LEFT - 12) * when_s / end_s


def _ticks(end_s: float) -> list[float]:
    """About ten round times."""
    step = next(s for s in (1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200, 14400, 86400, 1e9) if end_s / s <= 12)
    return [k * step for k in range(int(end_s // step) + 1)]


def _tick(when: float, end_s: float, height: int) -> str:
    x = _x(when, end_s)
    said = f"{when / 60:g} min" if end_s > 300 else f"{when:g} s"
    anchor = "end" if x > WIDTH - 40 else "middle"
    return f'<text x="{x:.1f}" y="{height - 8}" text-anchor="{anchor}" font-size="12" fill="#5a6370">{said}</text>'


def _mark(when: float, what: str, end_s: float, height: int) -> str:
    x = _x(when, end_s)
    return (
        f'<g><title>{escape(f"{when:g} s: {what}")}</title><path d="M{x:.1f} {TOP - 6}V{height - 24}" stroke="#b34f00" stroke-width="1.4" '
        f'stroke-dasharray="4 3"/><circle cx="{x:.1f}" cy="{TOP - 9}" r="4" fill="#b34f00"/></g>'
    )


def scale() -> str:
    """What the colours mean."""
    steps = [(shade(v), f"{v:.0%}") for v in (0.0, 0.05, 0.15, 0.3, 0.5, 0.75, 1.0)] + [(GONE, "given up or off")]
    spans = (f'<span style="background:{fill};color:{ink(fill)}">{said}</span>' for fill, said in steps)
    return f'<p class="scale">{"".join(spans)}</p>'
