"""Pictures of a description: one figure a kind of trace, as PNG or as a page that holds it and the tables."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from traces.describe import balance, locality
from traces.describe.summary import Description
from traces.files import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, GREY, RED = "#0072B2", "#E69F00", "#009E73", "#6B7280", "#D55E00"


def save(d: Description, out: str | Path) -> None:
    """Draw the description into OUT.png, OUT.svg or OUT.html; the file appears whole or not at all."""
    from traces.describe import page

    out = Path(out)
    figure = draw(d)
    with replacing(out) as part:
        if out.suffix == ".html":
            part.write_text(page.page(d, figure), encoding="utf-8")
        else:
            figure.savefig(part, format=out.suffix.removeprefix("."), dpi=150, metadata=_metadata(d, out.suffix))


def _metadata(d: Description, suffix: str) -> dict[str, Any]:
    about = f"{d.kind} trace, {d.provenance.made}: {d.provenance.origin}"
    return {"Description": about, "Date": None} if suffix == ".svg" else {"Description": about, "Software": None}


def draw(d: Description) -> Figure:
    """The figure of a description, with its origin on it."""
    from matplotlib.figure import Figure as Canvas
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    rows, columns, panels = _PANELS[d.kind]
    if d.kind == "requests" and "rate_per_s" not in d.figures["arrivals"]:  # nothing to show of arrivals that are all at once
        rows, panels = 1, [_prompts, _outputs]
    figure = Canvas(figsize=(5.2 * columns, 3.5 * rows + 0.9), layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1))
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for ax, panel in zip(axes, panels, strict=False):
        ax.spines[["top", "right"]].set_visible(False)
        ax.title.set_size(11)
        panel(ax, d)
    for ax in axes[len(panels) :]:
        ax.set_visible(False)
    p = d.provenance
    clock = f", {p.clock} clock" if p.clock else ""
    made = p.made.upper() if p.made == "synthetic" else p.made
    figure.suptitle(f"{d.path.name}\n{d.kind} trace, {made}{clock}: {p.origin}", fontsize=12, x=0.01, ha="left")
    return figure


def _nothing(ax: Axes, title: str, why: str) -> None:
    ax.set_title(title, loc="left")
    ax.text(0.5, 0.5, why, ha="center", va="center", color=GREY, transform=ax.transAxes)
    ax.set_axis_off()


def _heat(ax: Axes, d: Description) -> None:
    """Load of each expert over the layer's mean."""
    counts = d.arrays["counts"].sum(axis=0) if d.kind == "load" else d.arrays["counts"]
    mean = counts.mean(axis=1, keepdims=True)
    relative = np.divide(counts, mean, out=np.zeros(counts.shape), where=mean > 0)
    top = 2.0 ** np.ceil(np.log2(np.clip(relative.max(initial=0), 2, 16)))
    shown = {"cmap": "RdBu_r", "vmin": -np.log2(top), "vmax": np.log2(top), "aspect": "auto", "interpolation": "nearest"}
    image = ax.imshow(np.log2(np.clip(relative, 1 / top, top)), **shown)
    ticks = [t for t in (0.0625, 0.125, 0.25, 0.5, 1, 2, 4, 8, 16) if 1 / top <= t <= top]
    bar = ax.figure.colorbar(image, ax=ax, ticks=np.log2(ticks))
    bar.ax.set_yticklabels([("<" if t == ticks[0] else "") + (f"1/{1 / t:.0f}" if t < 1 else f"{t:g}") + "x" for t in ticks])
    ax.set(xlabel="expert (number)", ylabel="layer (number)")
    numbers = d.provenance.facts.get("layer_numbers", "").split(",")
    if len(numbers) == len(counts) > 0 and numbers[0]:
        ax.set_yticks(range(len(numbers)), numbers)
    ax.set_title("Hot experts: load over the layer's mean", loc="left")


def _skew(ax: Axes, d: Description) -> None:
    """Load of the experts by rank: mean of the layers and their range."""
    counts = d.arrays["counts"].sum(axis=0) if d.kind == "load" else d.arrays["counts"]
    used = counts[counts.sum(axis=1) > 0]
    if not len(used):
        return _nothing(ax, "Skew of the load", "no activations")
    ordered = -np.sort(-used, axis=1) / used.mean(axis=1, keepdims=True)
    rank = np.arange(1, ordered.shape[1] + 1)
    ax.fill_between(rank, ordered.min(axis=0), ordered.max(axis=0), color=BLUE, alpha=0.2, lw=0, label="range of the layers")
    ax.plot(rank, ordered.mean(axis=0), color=BLUE, lw=2, label="mean of the layers")
    ax.axhline(1, color=GREY, lw=1, ls="--", label="even load")
    ax.set(xlabel="expert by load (rank)", ylabel="load / layer's mean", ylim=(0, None), xlim=(1, len(rank)))
    load = d.figures["load"]
    ax.set_title(f"Skew: busiest {load['max_over_mean']:.2f}x the mean, Gini {load['gini']:.2f}", loc="left")
    ax.legend(frameon=False, fontsize=9)


def _balance(ax: Axes, d: Description) -> None:
    """Balancedness by the number of GPUs: how far contiguous placement is from even."""
    counts = d.arrays["counts"].sum(axis=0) if d.kind == "load" else d.arrays["counts"]
    used = counts[counts.sum(axis=1) > 0]
    sizes = [g for g in (1, 2, 4, 8, 16, 32, 64, 128, 256) if g <= counts.shape[1]]
    if not len(used):
        return _nothing(ax, "Balance", "no activations")
    found = [balance.balancedness(used, g) for g in sizes]
    ax.fill_between(sizes, [f.min() for f in found], [f.max() for f in found], color=GREEN, alpha=0.2, lw=0, label="range of the layers")
    ax.plot(sizes, [f.mean() for f in found], color=GREEN, lw=2, marker="o", label="mean of the layers")
    ax.set_xscale("log", base=2)
    ax.set_xticks(sizes, [str(s) for s in sizes])
    ax.set(xlabel="GPUs, experts in contiguous blocks", ylabel="balancedness (mean / max GPU load)", ylim=(0, 1.05))
    load = d.figures["load"]
    ax.set_title(f"Balance: {load['balancedness']:.2f} on {load['gpus']} GPUs", loc="left")
    ax.legend(frameon=False, fontsize=9)


def _overlap(ax: Axes, d: Description) -> None:
    found = d.figures.get("overlap")
    if found is None or not np.isfinite(found["mean"]):
        return _nothing(ax, "Consecutive tokens", "no two tokens follow each other")
    layers, k = d.arrays["layers"], d.figures["k"]
    ax.plot(layers, found["by_layer"], color=BLUE, lw=2, marker="o", ms=3.5, label="consecutive tokens")
    ax.plot(layers, found["independent_by_layer"], color=GREY, lw=1.5, ls="--", label="independent tokens")
    ax.set(xlabel="layer (number)", ylabel=f"experts in common (of {k})", ylim=(0, k))
    ax.set_title(f"Consecutive tokens share {found['mean']:.2f} of {k} experts", loc="left")
    ax.legend(frameon=False, fontsize=9)


def _sets(ax: Axes, d: Description) -> None:
    found = d.figures.get("working_set")
    values = np.array(list(found.values()), np.float64) if found else np.empty(0)
    if not np.isfinite(values).any():
        return _nothing(ax, "Working set", "no request is long enough")
    windows = np.array(locality.WINDOWS)
    ax.plot(windows, values, color=ORANGE, lw=2, marker="o", ms=4, label="consecutive tokens of a request")
    ax.plot(windows, d.arrays["independent_sets"], color=GREY, lw=1.5, ls="--", label="independent tokens")
    ax.axhline(d.figures["experts"], color=GREY, lw=1, ls=":")
    ax.text(1, d.figures["experts"], f" all {d.figures['experts']} experts", va="bottom", color=GREY, fontsize=9)
    ax.set_xscale("log", base=2)
    ax.set_xticks(windows, [str(w) for w in windows])
    ax.set(xlabel="window (tokens)", ylabel="distinct experts of a layer", ylim=(0, d.figures["experts"] * 1.12))
    last = int(np.flatnonzero(np.isfinite(values))[-1])
    ax.set_title(f"Working set: {values[last]:.1f} of {d.figures['experts']} experts in {windows[last]} tokens", loc="left")
    ax.legend(frameon=False, fontsize=9, loc="lower right")


def _recall(ax: Axes, d: Description) -> None:
    found = d.figures.get("next_layer_recall")
    if found is None or not np.isfinite(found["markov"]):
        return _nothing(ax, "Predicting the next layer", "one layer, or too few tokens")
    layers = d.arrays["layers"][1:]
    ax.plot(layers, found["markov_by_layer"], color=RED, lw=2, marker="o", ms=3.5, label="from the layer before (Markov)")
    ax.plot(layers, found["popularity_by_layer"], color=GREY, lw=1.5, ls="--", label="from popularity alone")
    ax.set(xlabel="layer predicted (number)", ylabel="recall of its k experts", ylim=(0, 1))
    ax.locator_params(axis="x", integer=True)
    ax.set_title(f"Predicting the next layer: {found['markov']:.2f} against {found['popularity']:.2f}", loc="left")
    ax.legend(frameon=False, fontsize=9)


def _drift(ax: Axes, d: Description) -> None:
    matrix: NDArray[np.float64] = d.arrays["drift"]
    if not len(matrix):
        return _nothing(ax, "Drift", "one window")
    names = d.names["windows"]
    image = ax.imshow(matrix, vmin=-1, vmax=1, cmap="PuOr_r", interpolation="nearest")
    ax.figure.colorbar(image, ax=ax).set_label("correlation of the load (Pearson)")
    ax.set_xticks(range(len(names)), names, rotation=45, ha="right")
    ax.set_yticks(range(len(names)), names)
    for (i, j), value in np.ndenumerate(matrix):
        if len(matrix) <= 12:
            ax.text(j, i, f"{value:.2f}", ha="center", va="center", fontsize=8, color="white" if abs(value) > 0.6 else "black")
    ax.set(xlabel="window", ylabel="window")
    ax.set_title("Drift: how alike the windows' popularity is", loc="left")


def _rate(ax: Axes, d: Description) -> None:
    found = d.figures["arrivals"]
    arrival_s = d.arrays["arrival_ns"] / 1e9
    bins = 180
    unit, scale = ("h", 3600) if found["span_s"] > 2 * 3600 else ("min", 60) if found["span_s"] > 120 else ("s", 1)
    counts, edges = np.histogram(arrival_s, bins=bins)
    ax.stairs(counts / np.diff(edges), edges / scale, color=BLUE, fill=True, alpha=0.75)
    ax.axhline(found["rate_per_s"], color=RED, lw=1.5, ls="--", label=f"mean {found['rate_per_s']:.3g} requests/s")
    ax.set(xlabel=f"time since the trace began ({unit})", ylabel="requests/s", ylim=(0, None))
    ax.set_title(f"Arrivals, in bins of {found['span_s'] / bins:.3g} s", loc="left")
    ax.legend(frameon=False, fontsize=9)


def _gaps(ax: Axes, d: Description) -> None:
    found = d.figures["arrivals"]
    gaps = np.sort(np.diff(d.arrays["arrival_ns"]) / 1e9)
    survive = 1 - np.arange(len(gaps)) / len(gaps)
    mean = gaps.mean()
    ax.plot(gaps, survive, color=BLUE, lw=2, drawstyle="steps-post", label="this trace")
    x = np.geomspace(max(gaps[gaps > 0].min(initial=mean), mean * 1e-4), max(gaps.max(), mean), 300)
    ax.plot(x, np.exp(-x / mean), color=GREY, lw=1.5, ls="--", label="Poisson arrivals of the same rate")
    ax.set(xscale="log", yscale="log", xlabel="gap between arrivals (s)", ylabel="share of gaps that are longer")
    ax.set_ylim(0.5 / len(gaps), 1.5)
    ax.set_xlim(x[0], 1.5 * gaps.max())
    ax.set_title(f"Burstiness: CV of the gaps {found['gap_cv']:.2f} (Poisson: 1)", loc="left")
    ax.legend(frameon=False, fontsize=9, loc="lower left")


def _lengths(ax: Axes, d: Description, name: str, words: str, colour: str) -> None:
    values = d.arrays[name]
    if not len(values):
        return _nothing(ax, words, "no requests")
    edges = np.unique(np.round(np.geomspace(max(1, values.min()), values.max() + 1, 50)))
    counts, edges = np.histogram(values, bins=edges if len(edges) > 1 else 1)
    ax.stairs(counts / np.diff(np.log10(edges)) / len(values), edges, color=colour, fill=True, alpha=0.75)
    found = d.figures[name]
    for q, style in (("p50", "-"), ("p99", "--")):
        ax.axvline(found[q], color="black", lw=1.2, ls=style, label=f"{q} {found[q]:,.0f}")
    ax.axvline(found["mean"], color=RED, lw=1.2, ls=":", label=f"mean {found['mean']:,.0f}")
    ax.set(xscale="log", xlabel=f"{words.lower()} (tokens)", ylabel="share of requests per decade")
    ax.set_xlim(max(1, np.quantile(values, 0.001)) * 0.9, values.max() * 1.1)
    ax.set_title(words, loc="left")
    ax.legend(frameon=False, fontsize=9)


def _prompts(ax: Axes, d: Description) -> None:
    _lengths(ax, d, "prompt_tokens", "Prompt length", GREEN)


def _outputs(ax: Axes, d: Description) -> None:
    _lengths(ax, d, "output_tokens", "Output length", ORANGE)


def _activity(ax: Axes, d: Description) -> None:
    shares, names = d.arrays["activity"], d.names["lanes"]
    if not len(shares):
        return _nothing(ax, "Activity", "no task ran")
    box = (0, d.figures["makespan_s"], len(names) - 0.5, -0.5)
    image = ax.imshow(shares, aspect="auto", cmap="Blues", vmin=0, vmax=1, interpolation="nearest", extent=box)
    ax.figure.colorbar(image, ax=ax).set_label("busy share")
    ax.set_yticks(range(len(names)), names)
    ax.set(xlabel=f"{d.provenance.clock or 'run'} time (s)", ylabel="lane")
    ax.set_title("When each lane was busy", loc="left")


def _busy(ax: Axes, d: Description) -> None:
    rows = d.figures["lanes"]
    names = d.names["lanes"]
    bars = ax.barh(names, [100 * r["busy_share"] for r in rows], color=BLUE)
    ax.bar_label(bars, labels=[f"{100 * r['busy_share']:.2g} %" for r in rows], padding=3, fontsize=9)
    ax.invert_yaxis()
    ax.set(xlabel="busy share of the makespan (%)", ylabel="lane", xlim=(0, 112))
    ax.set_title(f"Busy lanes over {d.figures['makespan_s']:.4g} s", loc="left")


def _ops(ax: Axes, d: Description) -> None:
    rows = d.figures["ops"][:12]
    bars = ax.barh([r["op"] for r in rows], [r["seconds"] for r in rows], color=ORANGE)
    ax.bar_label(bars, labels=[f"{r['tasks']:,} tasks" for r in rows], padding=3, fontsize=9)
    ax.invert_yaxis()
    ax.margins(x=0.25)
    ax.set(xlabel="time summed over tasks (s)", ylabel="op")
    ax.set_title("Where the time goes", loc="left")


_PANELS: dict[str, tuple[int, int, list[Callable[[Any, Description], None]]]] = {
    "routing": (2, 3, [_heat, _skew, _balance, _overlap, _sets, _recall]),
    "load": (2, 2, [_heat, _skew, _balance, _drift]),
    "requests": (2, 2, [_rate, _gaps, _prompts, _outputs]),
    "timeline": (1, 3, [_activity, _busy, _ops]),
}
