"""The pictures of the page: throughput of every cell, simulated over published, Fig. 9 and Fig. 10."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from sim.reproduce.moe_lightning import policy_map, published
from sim.reproduce.moe_lightning.ablation import CPU_ATTENTION, EXPERTS, KV_TRANSFER, LayerTime
from sim.reproduce.moe_lightning.cells import Simulated
from sim.reproduce.pages import FAINT, GRID, INK

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

COLOURS = {
    published.FLEXGEN: "#E69F00", published.FLEXGEN_C: "#CC79A7", published.DEEPSPEED: "#7F8793", published.PADDED: "#56B4E9",
    published.UNPADDED: "#0072B2",
}  # fmt: skip
NAMES = {"S1": "S1: one T4", "S2": "S2: one L4"}


def throughput(found: Sequence[Simulated]) -> Figure:
    """Bars as published, a mark where the simulator is; open marks are predictions."""
    import matplotlib.pyplot as plt

    figure: Figure
    figure, axes = plt.subplots(1, 2, figsize=(10.5, 3.9), layout="constrained")
    systems = list(COLOURS)
    width = 0.8 / len(systems)
    for axis, setting in zip(axes, NAMES, strict=True):
        for k, system in enumerate(systems):
            row = [s for s in found if (s.cell.setting, s.cell.system) == (setting, system)]
            x = np.arange(len(row)) + (k - (len(systems) - 1) / 2) * width
            axis.bar(x, [s.cell.tokens_per_s for s in row], 0.9 * width, color=COLOURS[system], alpha=0.75, label=system)
            for at, s in zip(x, row, strict=True):
                face = INK if s.cell.fitted else "white"
                axis.plot(at, s.tokens_per_s, "o", ms=4.5, mfc=face, mec=INK, mew=1.1)
        _other_runs(axis, setting, (len(systems) - 1) / 2 * width)
        axis.set_yscale("log")
        _plain(axis.yaxis, (10, 20, 50, 100, 200))
        axis.set_xticks(range(len(published.GENS)), [f"gen {g}" for g in published.GENS])
        axis.set_title(NAMES[setting], loc="left", fontweight="bold", fontsize=10)
        _frame(axis)
    axes[0].set_ylabel("tokens/s")
    axes[0].plot([], [], "o", ms=4.5, mfc=INK, mec=INK, label="simulated, a constant fitted to it")
    axes[0].plot([], [], "o", ms=4.5, mfc="white", mec=INK, label="simulated, predicted")
    axes[0].plot([], [], "_", ms=9, mec=INK, label="another published run")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    return figure


def _other_runs(axis: Axes, setting: str, offset: float) -> None:
    for k, tokens_per_s in enumerate(published.OTHER_RUNS[setting, published.UNPADDED]):
        if tokens_per_s is not None:
            axis.plot(k + offset, tokens_per_s, "_", ms=9, mec=INK)


def parity(found: Sequence[Simulated]) -> Figure:
    """Simulated over published, with a band of 20 %."""
    import matplotlib.pyplot as plt

    figure: Figure
    figure, axis = plt.subplots(figsize=(5.6, 5.0), layout="constrained")
    ends = np.array([5.0, 400.0])
    axis.fill_between(ends, ends * 0.8, ends * 1.2, color=GRID, lw=0, label="20 %")
    axis.plot(ends, ends, color=FAINT, lw=0.8)
    for s in found:
        colour = COLOURS[s.cell.system]
        face = colour if s.cell.fitted else "white"
        marker = "s" if s.cell.setting == "S1" else "o"
        axis.plot(s.cell.tokens_per_s, s.tokens_per_s, marker, ms=5.5, mec=colour, mfc=face, mew=1.3)
    for system, colour in COLOURS.items():
        axis.plot([], [], "o", color=colour, label=system)
    axis.plot([], [], "s", mfc="white", mec=FAINT, label="S1 (circles: S2)")
    axis.plot([], [], "o", color=FAINT, label="filled: a constant was fitted to it")
    axis.set(xscale="log", yscale="log", xlim=ends, ylim=ends, xlabel="published tokens/s", ylabel="simulated tokens/s")
    for scale in (axis.xaxis, axis.yaxis):
        _plain(scale, (5, 10, 20, 50, 100, 200, 400))
    axis.legend(frameon=False, fontsize=8.5)
    _frame(axis)
    return figure


def layer_times(times: Sequence[LayerTime]) -> Figure:
    """Fig. 9: dots as published, lines as simulated."""
    import matplotlib.pyplot as plt

    colours = {KV_TRANSFER: "#D55E00", CPU_ATTENTION: "#CC79A7", EXPERTS: "#0072B2"}
    figure: Figure
    figure, axes = plt.subplots(1, len(published.FIG_9), figsize=(10.5, 3.1), sharey=True, layout="constrained")
    for axis, mu in zip(axes, published.FIG_9, strict=True):
        for what in (KV_TRANSFER, CPU_ATTENTION):
            points = [t for t in times if (t.what, t.microbatch) == (what, mu)]
            x = [t.context for t in points]
            axis.plot(x, [t.simulated_ms for t in points], color=colours[what], lw=1.4, label=f"{what}, simulated")
            axis.plot(x, [t.published_ms for t in points], "o", ms=4.5, color=colours[what], label=f"{what}, published")
        (ffn,) = (t for t in times if (t.what, t.microbatch) == (EXPERTS, mu))
        axis.axhline(ffn.simulated_ms, color=colours[EXPERTS], lw=1.4, label=f"{EXPERTS}, simulated")
        axis.axhline(ffn.published_ms, color=colours[EXPERTS], lw=1.4, ls=":", label=f"{EXPERTS}, published")
        axis.set(xscale="log", yscale="log", xlabel="context")
        axis.set_xticks(published.FIG_9_CONTEXTS, list(map(str, published.FIG_9_CONTEXTS)))
        axis.minorticks_off()
        _plain(axis.yaxis, (1, 10, 100))
        axis.set_title(f"micro-batch {mu}", loc="left", fontweight="bold", fontsize=10)
        _frame(axis)
    axes[0].set_ylabel("one layer (ms)")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    return figure


def sweep(maps: dict[int, list[policy_map.Point]]) -> Figure:
    """Fig. 10: by how much either placement of attention wins, with a ring where the released code agrees not."""
    import matplotlib.pyplot as plt
    from matplotlib.colors import TwoSlopeNorm

    figure: Figure
    figure, axes = plt.subplots(1, len(maps), figsize=(10.0, 4.4), sharey=True, layout="constrained")
    norm = TwoSlopeNorm(0.0, -1.6, 1.6)  # beyond a factor of 2, so that its colour leaves the figures legible
    for axis, (gen, points) in zip(axes, maps.items(), strict=True):
        ratio = np.array([[p.cpu / p.gpu for p in points if p.ratio == r] for r in policy_map.RATIOS])
        image = axis.pcolormesh(np.log2(ratio).clip(-1.0, 1.0), cmap="RdBu_r", norm=norm, edgecolors="white", lw=1.5)
        for p in points:
            x, y = policy_map.LINKS.index(p.link) + 0.5, policy_map.RATIOS.index(p.ratio) + 0.5
            axis.text(x, y, f"{max(p.cpu, p.gpu):,.0f}", ha="center", va="center", fontsize=8, color=INK)
            told = published.CPU_ATTENTION_WINS[gen].get(p.ratio)
            if told is not None and (p.link in told) != p.on_cpu:
                axis.plot(x, y, "o", ms=30, mfc="none", mec=INK, mew=1.2)
        axis.set_xticks(np.arange(len(policy_map.LINKS)) + 0.5, list(map(str, policy_map.LINKS)))
        axis.set_yticks(np.arange(len(policy_map.RATIOS)) + 0.5, list(map(str, policy_map.RATIOS)))
        axis.set_xlabel("link (GB/s)")
        axis.set_title(f"{gen} tokens generated", loc="left", fontweight="bold", fontsize=10)
    axes[0].set_ylabel("host, times 200 GB, 100 GB/s, 1.6 TFLOP/s")
    bar = figure.colorbar(image, ax=axes, ticks=[-1, 0, 1], shrink=0.8)
    bar.ax.set_ylim(-1.0, 1.0)
    bar.ax.set_yticklabels(["attention on the GPU\ntwice as fast, or more", "equal", "attention on the CPU\ntwice as fast"])
    return figure


def _plain(axis: Axis, ticks: Sequence[int]) -> None:
    """Ticks of a logarithmic axis as ordinary numbers."""
    axis.set_ticks(ticks, [str(t) for t in ticks])
    axis.set_ticks([], minor=True)


def _frame(axis: Axes) -> None:
    axis.grid(True, which="major", color=GRID, lw=0.6)
    axis.set_axisbelow(True)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
