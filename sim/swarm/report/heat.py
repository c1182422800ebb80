"""Load over time as a heat map in SVG: rows of regions or GPUs, one column a stretch of time, and what went wrong as marks."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np
from numpy.typing import NDArray

from sim.report.colours import ink

STOPS = ("#f3f6f9", "#cfe3f2", "#8cc0e0", "#3f8fc4", "#14568f", "#0b2f57")
"""From idle to busy, one hue and ever darker, so that it reads in grey as well."""
GONE, MARK = "#f0d9cf", "#b34f00"
LEFT, WIDTH, TOP = 150, 1240, 44
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
    """What the colours mean, and the map. share [rows, bins] in 0..1; gone [rows, bins]: given up or off; edges_s [bins + 1]; marks:
    (when, what), numbered as given."""
    height = TOP + len(labels) * row_px + 30
    end_s, top = float(edges_s[-1]), _top(share)
    width = (WIDTH - LEFT - 12) / share.shape[1]
    parts = [_row(i, label, share[i], gone[i], width, row_px, edges_s, top) for i, label in enumerate(labels)]
    parts += [_tick(t, end_s, height) for t in _ticks(end_s)]
    parts += _marks(marks, end_s, height)
    drawn = f'<svg viewBox="0 0 {WIDTH} {height}" class="heat" role="img" aria-label="Load over time">{"".join(parts)}</svg>'
    return _scale(top, bool(gone.any())) + drawn


def _top(share: Floats) -> float:
    """The darkest colour's share: a round one that nothing exceeds, so that small loads can be told apart."""
    most = min(float(share.max(initial=0.0)), 1.0)
    if most <= 0:
        return 1.0
    tenfold = 10.0 ** np.floor(np.log10(most))
    return float(next(t * tenfold for t in (1, 2, 5, 10) if t * tenfold >= most * (1 - 1e-9)))


def _row(i: int, label: str, share: Floats, gone: NDArray[np.bool_], width: float, px: int, edges_s: Floats, top: float) -> str:
    y = TOP + i * px
    cells = []
    for k, value in enumerate(share):
        fill = GONE if gone[k] else shade(float(value) / top)
        said = "given up or off" if gone[k] else f"{100 * value:.3g}%"
        title = f"{label}, {edges_s[k]:.0f} to {edges_s[k + 1]:.0f} s: {said}"
        box = f'x="{LEFT + k * width:.2f}" y="{y}" width="{width + 0.3:.2f}" height="{px - 2}" fill="{fill}"'
        cells.append(f"<rect {box}><title>{escape(title)}</title></rect>")
    text = f'<text x="{LEFT - 8}" y="{y + px / 2 + 3:.1f}" text-anchor="end" font-size="{min(12.5, px - 2):.1f}">{escape(label)}</text>'
    return text + "".join(cells)


def _x(when_s: float, end_s: float) -> float:
    return LEFT + (WIDTH - LEFT - 12) * when_s / end_s


def _ticks(end_s: float) -> list[float]:
    """About ten round times."""
    step = next(s for s in (1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200, 14400, 86400, 1e9) if end_s / s <= 12)
    return [k * step for k in range(int(end_s // step) + 1)]


def _clock(when: float, end_s: float) -> str:
    return f"{when / 60:.3g} min" if end_s > 300 else f"{when:g} s"


def _tick(when: float, end_s: float, height: int) -> str:
    x, said = _x(when, end_s), _clock(when, end_s)
    anchor = "end" if x > WIDTH - 40 else "middle"
    return f'<text x="{x:.1f}" y="{height - 8}" text-anchor="{anchor}" font-size="12" fill="#5a6370">{said}</text>'


def _marks(marks: Sequence[tuple[float, str]], end_s: float, height: int) -> list[str]:
    """Numbered events; one that would cover the one before stands a row higher."""
    out: list[str] = []
    last, row = -100.0, 0
    for number, (when, what) in enumerate(marks, 1):
        if when > end_s:
            continue
        x = _x(when, end_s)
        row = (row + 1) % 2 if x - last < 18 else 0
        last, y = x, TOP - 12 - 18 * row
        out.append(
            f'<g><title>{escape(f"{when:g} s: {what}")}</title><path d="M{x:.1f} {y}V{height - 24}" stroke="{MARK}" stroke-width="1.2" '
            f'stroke-dasharray="4 3"/><circle cx="{x:.1f}" cy="{y}" r="8" fill="{MARK}"/><text x="{x:.1f}" y="{y + 3.8:.1f}" '
            f'text-anchor="middle" font-size="11" fill="#fff">{number}</text></g>'
        )
    return out


def listed(marks: Sequence[tuple[float, str]], end_s: float) -> str:
    """The events by their numbers."""
    items = "".join(f"<span><b>{n}</b> {_clock(when, end_s)}: {escape(what)}</span>" for n, (when, what) in enumerate(marks, 1))
    return f'<p class="kinds">{items}</p>' if items else ""


def _scale(top: float, gone: bool) -> str:
    """What the colours mean."""
    steps = [(shade(v), f"{100 * v * top:.3g}%") for v in (0.0, 0.05, 0.15, 0.3, 0.5, 0.75, 1.0)] + [(GONE, "given up or off")] * gone
    spans = (f'<span style="background:{fill};color:{ink(fill)}">{said}</span>' for fill, said in steps)
    return f'<p class="scale">{"".join(spans)}</p>'
