"""How far off the bars are, whether systems come in the published order, and weak scaling."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

from sim.reproduce.flashdmoe import published
from sim.reproduce.flashdmoe.cells import Bar

APART = 0.02
"""Bars that are printed closer than this are not put in order."""


def within(bars: Sequence[Bar], share: float = 0.15) -> dict[str, Any]:
    """Of the bars at 4 and 8 GPUs: how many lie within `share`, and which do not."""
    asked = [b for b in bars if b.gpus > 2]
    out = [f"{b.gpus} GPUs {b.system} {b.tokens}" for b in asked if b.error is not None and abs(b.error) > share]
    return {"bars": len(asked), "within": len(asked) - len(out), "not": out}


def order(bars: Sequence[Bar]) -> dict[str, Any]:
    """Over pairs of systems in one column; the outlier is in none."""
    pairs, wrong = 0, []
    for a, b in combinations([b for b in bars if not b.outlier], 2):
        if (a.gpus, a.tokens) != (b.gpus, b.tokens) or a.published_ms is None or b.published_ms is None:
            continue
        fast, slow = sorted((a, b), key=lambda bar: bar.published_ms or 0.0)
        assert fast.published_ms is not None and slow.published_ms is not None
        if slow.published_ms < (1 + APART) * fast.published_ms:
            continue
        pairs += 1
        if slow.ms <= fast.ms:
            wrong.append(f"{a.gpus} GPUs {a.tokens}: {fast.system} before {slow.system}")
    return {"pairs": pairs, "right": pairs - len(wrong), "wrong": wrong}


def weak_scaling(bars: Sequence[Bar]) -> list[dict[str, Any]]:
    """T(2 GPUs) / T(N GPUs) at 8192 tokens a GPU, published and simulated."""
    found: list[dict[str, Any]] = []
    at: Mapping[tuple[str, int], Bar] = {(b.system, b.gpus): b for b in bars if b.tokens == 8192}
    for system in dict.fromkeys(b.system for b in bars if b.gpus == 2):
        for n in (4, 8):
            two, many = at[system, 2], at[system, n]
            printed, ours = published.WEAK_SCALING[system][n], two.ms / many.ms
            found.append({"system": system, "gpus": n, "published": printed, "simulated": ours, "outlier": many.outlier})
    return found
