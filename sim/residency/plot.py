"""The picture of `cache`: hit rates by capacity, and what they are worth in tokens/s."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sim.report.picture import STYLE
from traces.files import replacing

MARKS = {"gpu": "o", "cpu-expert": "s", "hybrid": "^"}
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#8C6D46", "#D55E00")
"""Okabe and Ito's, as in the other figures."""


def write_plot(path: Path, found: Mapping[str, Any]) -> None:
    """Draw the object that the command prints; the suffix of `path` says SVG or PNG. Without a machine there is only the left half."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    timed = found["machine"] is not None
    rows: Sequence[Mapping[str, Any]] = found["rows"]
    colour = {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(dict.fromkeys(r["evict"] for r in rows))}
    with plt.rc_context(STYLE), replacing(path) as part:
        figure, axes = plt.subplots(1, 2 if timed else 1, figsize=(11 if timed else 6, 4.3), layout="constrained", squeeze=False)
        _by_capacity(axes[0, 0], rows, colour, found["experts"])
        if timed:
            _worth(axes[0, 1], rows, colour)
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
    axes.grid(alpha=0.3)
    axes.legend()


def _worth(axes: Any, rows: Sequence[Mapping[str, Any]], colour: Mapping[str, str]) -> None:
    for r in rows:
        filled = r["prefetch"] == "none"
        shade = colour[r["evict"]]
        inside = shade if filled else "none"
        axes.plot(r["hit_rate"], r["tokens_per_s"], MARKS[r["work"]], color=shade, markersize=9, markerfacecolor=inside)
        what = "" if filled else f" {r['prefetch']}"
        axes.annotate(f"{r['capacity']}{what}", (r["hit_rate"], r["tokens_per_s"]), xytext=(6, 4), textcoords="offset points", fontsize=7)
    for work in dict.fromkeys(r["work"] for r in rows):
        axes.plot([], [], MARKS[work], color="grey", label=f"missing experts: {work}")
    axes.set(xlabel="hit rate", ylabel="tokens/s", title="What a hit rate is worth (number: capacity)")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend()
