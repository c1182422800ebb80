"""The README's picture: some decode steps of one run, simulated above measured, lanes as rows."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sim.report.colours import MEASURED, OP_COLOURS, SIMULATED, colour, ink
from sim.report.figures import seconds_text, step_window
from traces.files import replacing
from traces.timeline import Timeline

if TYPE_CHECKING:
    from matplotlib.axes import Axes

STYLE = {
    "font.family": "sans-serif", "font.size": 9.5, "svg.fonttype": "none", "svg.hashsalt": "tandem", "axes.edgecolor": "#C4C8CF",
    "text.color": "#1B1F24", "xtick.color": "#5A6370", "ytick.color": "#1B1F24", "axes.labelcolor": "#5A6370",
}  # fmt: skip


def write_picture(
    path: str | Path, timelines: Mapping[str, Timeline], *, step: int | None = None, title: str = "", width_inches: float = 10.5
) -> None:
    """Draw one decode step of each timeline on a common scale; the suffix of `path` says SVG or PNG.

    timelines: label -> timeline, from above to below. step: which decode step; None takes one from
    the middle, where the pipeline has settled. Raises ValueError where a timeline lacks the step.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    step = _middle_step(list(timelines.values())) if step is None else step
    spans = {label: step_window(t, step) for label, t in timelines.items()}
    lacking = [label for label, span in spans.items() if span is None]
    if lacking:
        raise ValueError(f"step={step}: the {lacking[0]} timeline has no such step")
    longest = max(b - a for a, b in (s for s in spans.values() if s))
    lanes = {label: _lanes(t, spans[label]) for label, t in timelines.items()}
    heights = [len(found) for found in lanes.values()]
    with plt.rc_context(STYLE), replacing(path) as part:
        size = (width_inches, 1.15 + 0.33 * sum(heights) + 0.3 * len(heights))
        figure, axes = plt.subplots(len(heights), 1, sharex=True, squeeze=False, height_ratios=heights, figsize=size, layout="constrained")
        for axis, (label, t), tint in zip(axes[:, 0], timelines.items(), (SIMULATED, MEASURED) * len(timelines), strict=False):
            _draw(axis, t, spans[label], lanes[label], longest)
            a, b = spans[label] or (0, 0)
            axis.set_title(f"{label}: {seconds_text((b - a) / 1e12)}", loc="left", fontsize=10.5, fontweight="bold", color=tint)
        axes[-1, 0].set_xlabel(f"milliseconds since decode step {step} began")
        _legend(figure, timelines, spans)
        if title:
            figure.suptitle(title, x=0.012, ha="left", fontsize=12)
        kind = Path(path).suffix.lstrip(".") or "svg"
        figure.savefig(part, format=kind, dpi=160, metadata={"Date": None} if kind == "svg" else None)
        plt.close(figure)


def _middle_step(timelines: list[Timeline]) -> int:
    steps = sorted(set.intersection(*(set(np.unique(t.step[t.step > 0]).tolist()) for t in timelines)))
    if not steps:
        raise ValueError("timelines: have no decode step in common")
    return int(steps[len(steps) // 2])


def _inside(t: Timeline, span: tuple[int, int] | None) -> Any:
    begin, end = span or (0, 0)
    return np.flatnonzero(t.ran & ~t.inside & (t.lane != t.code("lane", "")) & (t.start_ps < end) & (t.end_ps > begin))


def _lanes(t: Timeline, span: tuple[int, int] | None) -> list[int]:
    """Codes of the lanes that run anything there, in the machine's order."""
    lanes: list[int] = np.unique(t.lane[_inside(t, span)]).tolist()
    return lanes


def _draw(axis: Axes, t: Timeline, span: tuple[int, int] | None, lanes: list[int], longest: int) -> None:
    begin, end = span or (0, 0)
    rows = _inside(t, span)
    for y, lane in enumerate(lanes):
        mine = rows[t.lane[rows] == lane]
        left = (np.maximum(t.start_ps[mine], begin) - begin) / 1e9
        wide = (np.minimum(t.end_ps[mine], end) - begin) / 1e9 - left
        names = [t.ops[o] for o in t.op[mine].tolist()]
        narrow = longest * 0.0016 / 1e9
        # White edges part neighbours, but would swallow a narrow bar.
        edges = ["white" if w > 3 * narrow else colour(n) for w, n in zip(wide.tolist(), names, strict=True)]
        axis.barh([y] * len(mine), np.maximum(wide, narrow), 0.78, left, color=[colour(n) for n in names], edgecolor=edges, linewidth=0.5)
        for i, x, w, name in zip(mine.tolist(), left.tolist(), wide.tolist(), names, strict=True):
            if w * 1e9 > longest * 0.022 and t.microbatch[i] >= 0:
                place = f"{t.layer[i]}.{t.microbatch[i]}" if t.layer[i] >= 0 else str(t.microbatch[i])
                axis.text(x + w / 2, y, place, ha="center", va="center", fontsize=7, color=ink(colour(name)))
    axis.set_yticks(range(len(lanes)), [t.lanes[lane] for lane in lanes])
    axis.set_ylim(len(lanes) - 0.45, -0.55)
    axis.set_xlim(0, longest * 1.005 / 1e9)
    axis.tick_params(length=0)
    axis.grid(axis="x", color="#E6E8EC", linewidth=0.7)
    axis.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axis.spines[side].set_visible(False)


def _legend(figure: Any, timelines: Mapping[str, Timeline], spans: Mapping[str, tuple[int, int] | None]) -> None:
    from matplotlib.patches import Patch

    used = {t.ops[o] for label, t in timelines.items() for o in np.unique(t.op[_inside(t, spans[label])]).tolist()}
    ordered = [op for op in OP_COLOURS if op in used] + sorted(used - set(OP_COLOURS))
    handles = [Patch(color=colour(op), label=op) for op in ordered]
    rows = -(-len(handles) // 8)
    look = {"frameon": False, "fontsize": 8.5, "handlelength": 1, "handleheight": 1}
    figure.legend(handles=handles, loc="outside lower left", ncols=-(-len(handles) // rows), **look)
