"""How far off the simulator is: mean errors by system, and whether systems come in the published order."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any

from sim.reproduce.moe_lightning.cells import Simulated

APART = 0.15
"""Systems that are published closer than this are not put in order."""


def mean_errors(found: Sequence[Simulated]) -> dict[str, dict[str, float | int | None]]:
    """By system: mean absolute error of all cells, of fitted ones and of predictions, and their number."""
    systems = dict.fromkeys(s.cell.system for s in found)
    out: dict[str, dict[str, float | int | None]] = {}
    for system in systems:
        mine = [s for s in found if s.cell.system == system]
        out[system] = {
            "all": _mean(mine), "fitted": _mean([s for s in mine if s.cell.fitted]),
            "predicted": _mean([s for s in mine if not s.cell.fitted]),
            "cells": len(mine), "cells_fitted": sum(s.cell.fitted for s in mine),
        }  # fmt: skip
    return out


def _mean(found: Sequence[Simulated]) -> float | None:
    return sum(abs(s.error) for s in found) / len(found) if found else None


def order(found: Sequence[Simulated]) -> dict[str, Any]:
    """Over pairs of systems in one setting and generation length that are published 15 % apart: how many
    the simulator puts in the published order, and which it does not."""
    pairs, wrong = 0, []
    for a, b in combinations(found, 2):
        if (a.cell.setting, a.cell.gen) != (b.cell.setting, b.cell.gen):
            continue
        low, high = sorted((a, b), key=lambda s: s.cell.tokens_per_s)
        if high.cell.tokens_per_s < (1 + APART) * low.cell.tokens_per_s:
            continue
        pairs += 1
        if high.tokens_per_s <= low.tokens_per_s:
            wrong.append(f"{high.cell.setting} gen {high.cell.gen}: {high.cell.system} over {low.cell.system}")
    return {"pairs": pairs, "right": pairs - len(wrong), "wrong": wrong}
