"""The hierarchical roofline of a run as a picture: MoE-Lightning's figures 4 and 5, op by op."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sim.explain.explanation import Explanation
from sim.explain.roofline import Roofline, Turning
from sim.report.picture import STYLE
from traces.files import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes

DEVICE, HOST, LINK = "#0072B2", "#CC79A7", "#BF7A0A"
INK, RUN = "#1B1F24", "#009E73"


def write_plot(path: Path, e: Explanation) -> None:
    """Draw it; the suffix of `path` says SVG or PNG. The explanation must have a roofline."""
    assert e.roofline is not None, e.outcome.job.machine.name
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    with plt.rc_context(STYLE), replacing(path) as part:
        r, s = e.roofline, e.outcome.summary
        figure, axes = plt.subplots(1, len(r.ops), figsize=(0.6 + 4.9 * len(r.ops), 4.6), sharey=True, squeeze=False, layout="constrained")
        for axis, op in zip(axes[0], r.ops, strict=True):
            _frame(axis, r, op)
        axes[0, 0].set_ylabel("performance (FLOP/s)")
        sizes = f"N = {r.tokens:,}, \N{GREEK SMALL LETTER MU} = {r.microbatch:,}"
        figure.suptitle(f"{s['model']} on {s['machine']}, {s['scheduler']}: decode, {sizes}", x=0.01, ha="left", fontsize=11)
        figure.draw_without_rendering()  # slopes are known once the panels have their sizes
        for axis, op in zip(axes[0], r.ops, strict=True):
            _roof_labels(axis, r)
            _points(axis, r, op)
        kind = path.suffix.lstrip(".")
        figure.savefig(part, format=kind, dpi=200, metadata={"Date": None} if kind == "svg" else None)
        plt.close(figure)


def _frame(axis: Axes, r: Roofline, op: Turning) -> None:
    """Scales and roofs of one op's panel."""
    ridge = r.device.peak_flops / r.link_bytes_per_s
    low, high = min(op.intensity_host, op.intensity_device, op.p1) / 10, max(op.intensity_host, op.p2, ridge) * 15
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.set_xlim(low, high)
    lowest = min(min(o.attained_flops, r.link_bytes_per_s * min(o.intensity_host, o.p1) / 4) for o in r.ops)
    axis.set_ylim(lowest / 3, r.device.peak_flops * 3)
    x = np.geomspace(low, high, 400)
    for slope, top, colour, width in _roofs(r):
        axis.plot(x, np.minimum(slope * x, top), color=colour, lw=width)
    axis.set_title(op.op, loc="left", fontweight="bold", fontsize=10)
    axis.set_xlabel("FLOP per byte from the host")
    axis.grid(True, which="major", color="#E6E8EC", lw=0.6)
    axis.set_axisbelow(True)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)


def _roofs(r: Roofline) -> list[tuple[float, float, str, float]]:
    """Slope, top, colour and width of the device's, the host's and the link's roof."""
    return [
        (r.device.bytes_per_s, r.device.peak_flops, DEVICE, 1.6), (r.host.bytes_per_s, r.host.peak_flops, HOST, 1.6),
        (r.link_bytes_per_s, r.device.peak_flops, LINK, 2.2),
    ]  # fmt: skip


def _roof_labels(axis: Axes, r: Roofline) -> None:
    for level, name, colour in ((r.device, "device", DEVICE), (r.host, "host", HOST)):
        kind = "reached" if level.measured else "peak"
        axis.annotate(f"{name} {kind} {_rate(level.peak_flops, 'FLOP/s')}", (axis.get_xlim()[1], level.peak_flops), xytext=(-2, 4),
                      textcoords="offset points", ha="right", color=colour, fontsize=8)  # fmt: skip
    _along(axis, r.device.bytes_per_s, r.device.peak_flops, f"device memory {_rate(r.device.bytes_per_s, 'B/s')}", DEVICE, 0.04, 5)
    if r.host.bytes_per_s != r.device.bytes_per_s:
        _along(axis, r.host.bytes_per_s, r.host.peak_flops, f"host memory {_rate(r.host.bytes_per_s, 'B/s')}", HOST, 0.05, -11)
    _along(axis, r.link_bytes_per_s, r.device.peak_flops, f"link {_rate(r.link_bytes_per_s, 'B/s')}", LINK, 0.78, -12)


def _along(axis: Axes, slope: float, top: float, text: str, colour: str, at: float, off: float) -> None:
    """A label along a roof's sloped part, `at` of the way that can be seen of it, `off` points above it."""
    (left, right), (bottom, _) = axis.get_xlim(), axis.get_ylim()
    first, last = max(left, bottom / slope), min(right, top / slope)
    if last < 10 * first:  # too short for words
        return
    x = first * (last / first) ** at
    (x0, y0), (x1, y1) = axis.transData.transform([(x, slope * x), (2 * x, 2 * slope * x)])
    angle = float(np.arctan2(y1 - y0, x1 - x0))
    by = (-off * np.sin(angle), off * np.cos(angle))
    _note(axis, text, x, slope * x, by, colour, rotation=np.degrees(angle), rotation_mode="anchor", bbox=None)


def _points(axis: Axes, r: Roofline, op: Turning) -> None:
    """The op's intensity, its turning points and what the run reached."""
    bottom, top = axis.get_ylim()
    axis.plot([op.intensity_host] * 2, [bottom, top], color=INK, lw=0.9, ls=(0, (4, 2)))
    _note(axis, f"I = {_count(op.intensity_host)}", op.intensity_host, bottom, (4, 5), INK)
    kernels = ((op.p1 * r.link_bytes_per_s, op.intensity_kernel_host, op.p1, HOST), (op.device_flops, op.intensity_device, op.p2, DEVICE))
    for y, kernel, turn, colour in kernels:
        axis.plot([kernel, turn], [y, y], color=colour, lw=1.2, ls=":")
        axis.plot(kernel, y, marker="|", ms=9, color=colour, mew=1.6, zorder=5)
        axis.plot(turn, y, marker="o", ms=6, color=colour, mec="white", mew=0.9, zorder=5)
    _note(axis, f"P1 = {_count(op.p1)}", op.p1, kernels[0][0], (-6, -13), HOST, ha="right", fontweight="bold")
    _note(axis, f"P2 = {_count(op.p2)}", op.p2, kernels[1][0], (8, -12), DEVICE, fontweight="bold")
    _balance(axis, r, op)
    axis.plot(op.intensity_host, op.attained_flops, marker="D", ms=6.5, color=RUN, mec="white", mew=0.9, zorder=6)
    _note(axis, f"this run: {_rate(op.attained_flops, 'FLOP/s')}", op.intensity_host, op.attained_flops, (8, -12), RUN)


def _balance(axis: Axes, r: Roofline, op: Turning) -> None:
    if op.balance_tokens is None:
        return
    at = op.balance_tokens * op.intensity_host / r.tokens
    y = min(r.link_bytes_per_s * at, r.device.peak_flops)
    axis.plot(at, y, marker="s", ms=10, mfc="none", mec=INK, mew=1.2, zorder=6)
    _note(axis, f"balance: N = {op.balance_tokens:,.0f}", at, y, (8, -24), INK)


def _note(axis: Axes, text: str, x: float, y: float, by: tuple[float, float], colour: str, **style: Any) -> None:
    """Words beside a point, `by` so many typographic points."""
    ground = {"boxstyle": "square,pad=0.06", "facecolor": "white", "edgecolor": "none", "alpha": 0.75}
    axis.annotate(text, (x, y), xytext=by, textcoords="offset points", color=colour, fontsize=8.5, **{"bbox": ground, **style})


def _rate(value: float, unit: str) -> str:
    scale, name = next((f, n) for f, n in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1.0, "")) if value >= f)
    return f"{value / scale:.3g} {name}{unit}"


def _count(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
