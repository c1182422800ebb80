"""A picture of one step: over time, how much of a rank's GPU computes and how much of its links is used, a panel a system."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from sim.ep.measures import COMPUTE, ends
from sim.ep.study import Outcome
from sim.fabric import topology_of
from sim.report.picture import STYLE
from sim.tasks import PS_PER_S
from traces.files import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COMPUTING, SENDING = "#0072B2", "#D55E00"
BINS = 600


def write_picture(path: Path, outcomes: Sequence[Outcome], rank: int = 0) -> None:
    """Draw the median step of each; the suffix of `path` says SVG or PNG."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    with plt.rc_context(STYLE), replacing(path) as part:
        size = (9.0, 0.9 + 0.95 * len(outcomes))
        figure, axes = plt.subplots(len(outcomes), 1, figsize=size, sharex=True, sharey=True, squeeze=False, layout="constrained")
        last_ms = max(outcome.run.makespan_ps for outcome in outcomes) / 1e9
        edges = np.linspace(0.0, last_ms * 1e9, BINS + 1)
        for axis, outcome in zip(axes[:, 0], outcomes, strict=True):
            _panel(axis, outcome, rank, edges)
        axes[-1, 0].set_xlabel("ms")
        axes[0, 0].set_xlim(0, last_ms)
        axes[0, 0].set_ylim(0, 1.05)
        handles, labels = axes[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper right", ncols=2, frameon=False)
        kind = path.suffix.lstrip(".")
        figure.savefig(part, format=kind, dpi=200, metadata={"Date": None} if kind == "svg" else None)
        plt.close(figure)


def _panel(axis: Axes, outcome: Outcome, rank: int, edges: NDArray[np.float64]) -> None:
    ms = (edges[1:] + edges[:-1]) / 2e9
    axis.fill_between(ms, computing(outcome, rank, edges), step="mid", color=COMPUTING, alpha=0.75, lw=0, label=f"rank {rank} computes")
    axis.step(ms, sending(outcome, rank, edges), where="mid", color=SENDING, lw=1.2, label="bytes it sends, of what its link carries")
    axis.set_title(f"{outcome.prepared.system.name}, {outcome.run.makespan_ps / 1e9:.3g} ms", loc="left", fontsize=9)
    axis.axvline(outcome.run.makespan_ps / 1e9, color="#1B1F24", lw=0.8, ls=":")
    axis.set_yticks([0, 1], ["0", "all"])


def computing(outcome: Outcome, rank: int, edges: NDArray[np.float64]) -> NDArray[np.float64]:
    """[bins], share of the rank's blocks that compute; a kernel keeps all of them."""
    plan = outcome.priced.plan
    lanes = np.array([not name.startswith("gpu.") for name in plan.lanes] + [False])[plan.lane]
    weight = np.where(lanes, 1.0 / outcome.prepared.costs.prices.kernels.resident, 1.0)
    chosen = (plan.rank == rank) & np.array([work.op in COMPUTE for work in plan.works])[plan.work]
    return _mean(outcome.run.start_ps[chosen], outcome.run.end_ps[chosen], weight[chosen], edges)


def sending(outcome: Outcome, rank: int, edges: NDArray[np.float64]) -> NDArray[np.float64]:
    """[bins], bytes that leave the rank over what its first link carries. A task's bytes are spread over its time."""
    plan, run = outcome.priced.plan, outcome.run
    moved = np.array([work.bytes for work in plan.works])[plan.work]
    source, _ = ends(plan)
    chosen = (source == rank) & (moved > 0)
    start, end = run.start_ps[chosen], run.end_ps[chosen]
    rate = moved[chosen] / np.maximum(end - start, 1) * PS_PER_S
    links = [link for link in topology_of(outcome.prepared.costs.machine).links if link.ends[0].startswith("gpu")]
    return _mean(start, end, rate / max(link.bytes_per_s for link in links), edges)


def _mean(start: NDArray[np.int64], end: NDArray[np.int64], weight: NDArray[np.float64], edges: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean over each bin of the summed weights of the intervals that cover it."""
    so_far = _integral(start, weight, edges) - _integral(end, weight, edges)
    return np.asarray(np.diff(so_far) / np.diff(edges))


def _integral(begin: NDArray[np.int64], weight: NDArray[np.float64], edges: NDArray[np.float64]) -> NDArray[np.float64]:
    """Up to each edge, of steps that begin at `begin` and never end."""
    order = np.argsort(begin, kind="stable")
    at = np.searchsorted(begin[order], edges, "right")
    height = np.concatenate([[0.0], np.cumsum(weight[order])])
    before = np.concatenate([[0.0], np.cumsum(weight[order] * begin[order])])
    return np.asarray(height[at] * edges - before[at])
