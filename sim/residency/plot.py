"""The picture of `cache`: hit rates by capacity, and what they are worth in tokens/s."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sim.report.picture import STYLE
from traces.files import replacing

MARKS = {"gpu": ("o", 9), "cpu-expert": ("s", 11), "hybrid": ("^", 6)}
"""Mark and size: hybrid often lies upon cpu-expert."""
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#8C6D46", "#D55E00")
"""Okabe and Ito's, as in the other figures."""


def write_plot(path: Path, found: Mapping[str, Any]) -> None:
    """Draw the object that the command prints; the suffix of `path` says SVG or PNG. With one capacity there is only the right
    half, without a machine only the left."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    timed = found["machine"] is not None
    rows: Sequence[Mapping[str, Any]] = found["rows"]
    colour = {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(dict.fromkeys(r["evict"] for r in rows))}
    with plt.rc_context(STYLE), replacing(path) as part:
        several = len({r["capacity"] for r in rows}) > 1
        halves = (several or not timed) + timed
        figure, axes = plt.subplots(1, halves, figsize=(0.8 + 5.4 * halves, 4.3), layout="constrained", squeeze=False)
        if several or not timed:
            _by_capacity(axes[0, 0], rows, colour, found["experts"])
        if timed:
            _worth(axes[0, -1], rows, colour, several)
        figure.suptitle(f"{found['model']}{' on ' + found['machine'] if timed else ''}, batch {found['batch']}, {found['tokens']:,} tokens")
        figure.savefig(part, format=path.suffix[1:], dpi=120)
        plt.close(figure)


def _by_capacity(axes: Any, rows: Sequence[Mapping[str, Any]], colour: Mapping[str, str], experts: int) -> None:
    """Prefetch and work elsewhere change a hit rate too: this half shows the policies alone, where they were run alone."""
    plain = [r for r in rows if r["prefetch"] == "none" and r["work"] == "gpu"] or rows
    for name, shade in colour.items():
        points = sorted((r["capacity"], r["hit_rate"]) for r in plain if r["evict"] == name)
        if points:
            axes.plot(*zip(*points, strict=True), "o-", color=shade, label=name)
    bound = sorted({(r["capacity"], r["belady_hit_rate"]) for r in plain if r["admit"] == "always"})
    if bound and "belady" not in colour:
        axes.plot(*zip(*bound, strict=True), "--", color="black", label="Belady")
    axes.set(xlabel=f"experts of {experts} that stay, each layer", ylabel="hit rate", title="What a policy hits")
    axes.set_xticks(sorted({r["capacity"] for r in rows}))
    axes.grid(alpha=0.3)
    axes.legend()


def _worth(axes: Any, rows: Sequence[Mapping[str, Any]], colour: Mapping[str, str], several: bool) -> None:
    for r in rows:
        mark, size = MARKS[r["work"]]
        filled, shade = r["prefetch"] == "none", colour[r["evict"]]
        inside = shade if filled else "none"
        axes.plot(r["hit_rate"], r["tokens_per_s"], mark, color=shade, markersize=size, markerfacecolor=inside, markeredgecolor="black")
        what = [str(r["capacity"])] * several + [r["prefetch"]] * (not filled)
        axes.annotate(" ".join(what), (r["hit_rate"], r["tokens_per_s"]), xytext=(6, 4), textcoords="offset points", fontsize=7)
    for name, shade in colour.items():
        axes.plot([], [], "o", color=shade, label=name)
    for work in dict.fromkeys(r["work"] for r in rows):
        axes.plot([], [], MARKS[work][0], color="grey", label=f"misses: {work}")
    axes.set(xlabel="hit rate", ylabel="tokens/s", title="What a hit rate is worth" + " (number: capacity)" * several)
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend()
