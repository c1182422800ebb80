"""Scores of a placement: balance, reach, moves.

Who serves a token is the same everywhere here. A token starts in a region (in proportion to the regions' speed); an
expert with copies in that region is served by one of them, each as often as the others; any other expert by one of all
its copies. With one region that is the even split that EPLB assumes.
"""

from __future__ import annotations

import numpy as np

from sim.placement.placement import Placement
from sim.placement.problem import Floats, Gpus, Ints, Problem, Sample
from sim.placement.sets import token_sets


def served(held: np.ndarray, gpus: Gpus) -> tuple[Floats, Floats]:
    """Share of an expert's tokens that each GPU serves, by region of origin [regions, experts, gpus]; the regions' weights."""
    inside = gpus.region == np.arange(gpus.regions)[:, None]
    weight = np.array([gpus.speed[row].sum() for row in inside])
    local = held[None] & inside[:, None, :]
    chosen = np.where(local.any(axis=2, keepdims=True), local, held[None])
    return chosen / chosen.sum(axis=2, keepdims=True), weight / weight.sum()


def gpu_loads(placement: Placement, counts: Floats, gpus: Gpus) -> Floats:
    """Tokens that each GPU serves [layers, gpus]; counts [layers, experts]."""
    found = np.empty((len(counts), len(gpus)))
    for layer, count in enumerate(counts):
        share, weight = served(placement.held[layer], gpus)
        found[layer] = np.einsum("e,reg,r->g", count, share, weight, optimize=True)
    return found


def balancedness(placement: Placement, counts: Floats, gpus: Gpus) -> float:
    """Mean over the layers of mean / max GPU load; where speeds differ, of the ideal time over that of the slowest GPU.

    counts [layers, experts]. Layers without tokens do not count. As SGLang's recorder defines it.
    """
    time = gpu_loads(placement, counts, gpus) / gpus.speed
    total, most = counts.sum(axis=1), time.max(axis=1)
    some = total > 0
    return float((total[some] / gpus.speed.sum() / most[some]).mean()) if some.any() else 1.0


def touched(placement: Placement, sample: Sample, gpus: Gpus, unit: Ints) -> float:
    """Different units (GPUs, or regions, by `unit` [gpus]) that serve a token in a layer: mean over tokens and layers.

    With several copies the expected number, when each expert's copy is drawn independently.
    """
    found = []
    units = int(unit.max()) + 1
    member = np.eye(units)[unit]
    for layer in range(sample.experts.shape[1]):
        chosen, share = token_sets(sample, layer)
        by_region, weight = served(placement.held[layer], gpus)
        for rows, w in zip(by_region @ member, weight, strict=True):
            miss = np.ones((len(share), units))
            for column in chosen.T:
                miss *= 1.0 - rows[column]
            found.append(w * float(share @ (1.0 - miss).sum(axis=1)))
    return float(np.sum(found) / sample.experts.shape[1])


def gpus_touched(placement: Placement, sample: Sample, gpus: Gpus) -> float:
    return touched(placement, sample, gpus, np.arange(len(gpus)))


def regions_touched(placement: Placement, sample: Sample, gpus: Gpus) -> float:
    return touched(placement, sample, gpus, gpus.region)


def moved(placement: Placement, problem: Problem) -> int:
    """Copies to be loaded, against the current placement."""
    return placement.moved(problem.current)
