"""Pictures of the page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from sim.reproduce.flashdmoe.cells import Bar, Contest
from sim.reproduce.flashdmoe.low_latency import Exchanged
from sim.reproduce.pages import FAINT, INK

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = {
    "FlashMoE": "#1F77B4", "Comet": "#2CA02C", "FasterMoE": "#D62728", "Megatron-CUTLASS": "#9467BD", "Megatron-TE": "#FF7F0E",
    "flashdmoe": "#1F77B4", "static-wave": "#2CA02C", "graph-replayed": "#9467BD", "bulk-sync:te": "#FF7F0E",
}  # fmt: skip


def latency(bars: Sequence[Bar]) -> Figure:
    """Columns of GPUs and tokens; a line a system, printed numbers as rings."""
    import matplotlib.pyplot as plt

    figure: Figure
    figure, axes = plt.subplots(1, 2, figsize=(9, 4), sharey=True)
    for axis, count in zip(axes, (4, 8), strict=True):
        for system in dict.fromkeys(b.system for b in bars if b.gpus == count):
            mine = [b for b in bars if (b.gpus, b.system) == (count, system)]
            x = [b.tokens for b in mine]
            axis.plot(x, [b.ms for b in mine], marker=".", color=COLOURS[system], label=system)
            axis.plot(x, [b.published_ms for b in mine], "o", mfc="none", mec=COLOURS[system], ms=8)
        axis.set_xscale("log", base=2)
        axis.set_yscale("log")
        axis.set_xticks([4096, 8192, 16384], ["4K", "8K", "16K"])
        axis.set_title(f"{count} GPUs", color=INK)
        axis.set_xlabel("tokens a GPU")
    axes[0].set_ylabel("ms a layer (rings: printed in the paper)")
    axes[0].legend(frameon=False, labelcolor=FAINT, fontsize=8)
    figure.tight_layout()
    return figure


def fusion(contests: Sequence[Contest]) -> Figure:
    import matplotlib.pyplot as plt

    names = list(dict.fromkeys(c.jitter for c in contests))
    figure: Figure
    figure, axes = plt.subplots(1, len(names), figsize=(9, 3.6), sharey=True, squeeze=False)
    for axis, name in zip(axes[0], names, strict=True):
        mine = [c for c in contests if c.jitter == name]
        for system in mine[0].ms:
            axis.plot([c.tokens for c in mine], [c.ms[system] for c in mine], marker=".", color=COLOURS[system], label=system)
        axis.set_xscale("log", base=2)
        axis.set_yscale("log")
        axis.set_title({"none": "no jitter"}.get(name, f"jitter: {name}"), color=INK)
        axis.set_xlabel("tokens a GPU")
    axes[0, 0].set_ylabel("median ms a layer")
    axes[0, -1].legend(frameon=False, labelcolor=FAINT, fontsize=8)
    figure.tight_layout()
    return figure


def low_latency(found: Sequence[Exchanged]) -> Figure:
    import matplotlib.pyplot as plt

    figure: Figure
    figure, axis = plt.subplots(figsize=(6, 3.6))
    for what, colour in (("dispatch", "#1F77B4"), ("combine", "#D62728")):
        mine = [x for x in found if x.what == what]
        axis.plot([x.ranks for x in mine], [x.us for x in mine], marker=".", color=colour, label=what)
        axis.plot([x.ranks for x in mine], [x.published_us for x in mine], "o", mfc="none", mec=colour, ms=8)
    axis.set_xscale("log", base=2)
    axis.set_xticks([x.ranks for x in found if x.what == "dispatch"], [str(x.ranks) for x in found if x.what == "dispatch"])
    axis.set_ylim(bottom=0)
    axis.set_xlabel("ranks")
    axis.set_ylabel("us (rings: published)")
    axis.legend(frameon=False, labelcolor=FAINT)
    figure.tight_layout()
    return figure
