"""Placement of work: which missing experts are computed where their weights are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from sim.tasks import Time

WORK = ("gpu", "cpu-expert", "hybrid")


class Missing(NamedTuple):
    """An expert that is not on the GPU. rows: tokens that want it. ready: when its weights are in host memory, from now."""

    key: int
    rows: int
    ready: Time


class Times(NamedTuple):
    """Estimates in ps. load: one expert over the link. gpu, cpu: experts with these rows. back: rows to the host and results back."""

    load: Time
    gpu: Callable[[tuple[int, ...]], Time]
    cpu: Callable[[tuple[int, ...]], Time]
    back: Time


def split(hits: tuple[int, ...], missing: Sequence[Missing], times: Times, link_free: Time = 0) -> frozenset[int]:
    """Keys that the CPU computes so that the layer ends earliest, as HybriMoE (arXiv 2504.05897, 4.2) does by simulation.

    A load costs the same whatever an expert's rows, so the CPU takes those with the fewest; every number of
    them is tried. hits: rows of the experts that are here. Of equally fast splits the one with fewer on the CPU.
    O(len(missing)^2).
    """
    ordered = sorted(missing, key=lambda m: (-m.rows, m.ready, m.key))
    best, on_cpu = None, 0
    for n in range(len(ordered) + 1):
        there = ordered[len(ordered) - n :]
        end = max(_gpu_end(hits, ordered[: len(ordered) - n], times, link_free), _cpu_end(there, times))
        if best is None or end < best:
            best, on_cpu = end, n
    return frozenset(m.key for m in ordered[len(ordered) - on_cpu :])


def _gpu_end(hits: tuple[int, ...], loads: Sequence[Missing], times: Times, link_free: Time) -> Time:
    """Experts that are here first, then each as it arrives."""
    arrived, end = link_free, times.gpu(hits) if hits else 0
    for m in loads:
        arrived = max(arrived, m.ready) + times.load
        end = max(end, arrived) + times.gpu((m.rows,))
    return end


def _cpu_end(there: Sequence[Missing], times: Times) -> Time:
    if not there:
        return 0
    return max(m.ready for m in there) + times.cpu(tuple(sorted((m.rows for m in there), reverse=True))) + times.back
