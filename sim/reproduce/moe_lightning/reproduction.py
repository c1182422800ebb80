"""Everything at once: cells, ablations, map, and refined policies, as one object that pages and JSON are made of."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from sim.reproduce.moe_lightning import ablation, policy_map, published, score
from sim.reproduce.moe_lightning.ablation import LayerTime
from sim.reproduce.moe_lightning.cells import Cell, Simulated, cells, run
from sim.reproduce.moe_lightning.refined import SYSTEMS, Refined, refine


@dataclass(frozen=True, slots=True)
class Reproduction:
    """cells: Fig. 7. table_5: (name, run). fig_9: solo times. maps: Fig. 10 by generation length."""

    cells: list[Simulated]
    table_5: list[tuple[str, Simulated]]
    fig_9: list[LayerTime]
    maps: dict[int, list[policy_map.Point]]
    refined: list[Refined]
    wall_s: float

    @property
    def fitted(self) -> int:
        """Cells that a constant was fitted to."""
        return sum(s.cell.fitted for s in self.cells)

    def as_dict(self) -> dict[str, Any]:
        """The object of `reproduce moe-lightning --json`."""
        return {
            "cells": [s.row() for s in self.cells],
            "mean_absolute_error": score.mean_errors(self.cells),
            "order": score.order(self.cells),
            "fitted": {
                "cells": self.fitted, "of": len(self.cells),
                "constants": [{"constant": c, "value": v, "fitted_to": to} for c, v, to in published.CONSTANTS],
            },
            "table_5": [{"name": name, **s.row()} for name, s in self.table_5],
            "fig_9": {"points": [{**t._asdict(), "error": t.error} for t in self.fig_9], "median_error": ablation.errors(self.fig_9)},
            "fig_10": {str(gen): _map(points) for gen, points in self.maps.items()},
            "refined": [r.row() for r in self.refined],
            "wall_s": self.wall_s,
        }  # fmt: skip


def _map(points: list[policy_map.Point]) -> dict[str, Any]:
    right, known = policy_map.agreement(points)
    shown = [
        {"ratio": p.ratio, "link": p.link, "cpu_attention_tokens_per_s": p.cpu, "gpu_attention_tokens_per_s": p.gpu, "cpu_wins": p.on_cpu}
        for p in points
    ]
    return {"agree": right, "known": known, "points": shown}


def reproduce(say: Callable[[str], None] = lambda text: None) -> Reproduction:
    """Simulate all that was published. `say` hears what is done."""
    began = time.perf_counter()
    found: list[Simulated] = []
    for cell in cells():
        say(f"Fig. 7: {cell.setting}, {cell.system}, gen {cell.gen}")
        found.append(run(cell))
    rows = []
    for name, cell in ablation.table_5():
        say(f"Table 5: {name}")
        same = next((s for s in found if _key(s.cell) == _key(cell)), None)
        rows.append((name, run(cell) if same is None else replace(same, cell=cell)))
    say("Fig. 9 and Fig. 10")
    maps = {gen: policy_map.sweep(gen) for gen in policy_map.GENS}
    refined = []
    for s in found:
        if s.cell.system in SYSTEMS:
            say(f"policy search: {s.cell.setting}, {s.cell.system}, gen {s.cell.gen}")
            refined.append(refine(s))
    return Reproduction(found, rows, ablation.fig_9(), maps, refined, time.perf_counter() - began)


def _key(cell: Cell) -> tuple[str, str, int, published.Sizes | None]:
    return cell.setting, cell.system, cell.gen, cell.sizes
