"""Measured copies: seconds of CPU time by size for each copy lane, and what a paced transfer takes beyond its bytes."""

from __future__ import annotations

import time

import numpy as np

from exec.calibration.measure import Eviction, on_thread
from exec.links import Link, sharpen_sleep
from exec.runtime import Interrupt
from sim.machines.schema import OpRate

SIZES = (1 << 12, 1 << 14, 1 << 16, 1 << 18, 1 << 20, 1 << 22, 1 << 24, 1 << 26)


def measure(lane: str, bytes_per_s: float | None) -> OpRate:
    """The row of the op table for every copy on `lane`.

    The curve is the CPU time of a copy of so many bytes, native: what the core that copies is busy
    for. The latency is the median time that a paced copy takes beyond its bytes over the rate.
    """
    curve = tuple((float(n), s) for n, s in zip(SIZES, on_thread(_native, 1), strict=True))
    latency_s = 0.0 if bytes_per_s is None else on_thread(lambda: [_beyond(bytes_per_s)], 1)[0]
    return OpRate(op="*", lane=lane, latency_s=max(0.0, latency_s), curve=curve, source="calibrated: native copies from cold memory")


def _native() -> list[float]:
    source, target = np.ones(max(SIZES), np.uint8), np.ones(max(SIZES), np.uint8)
    link, evict, stop = Link("native"), Eviction(), Interrupt()
    medians = []
    for size in SIZES:
        samples = []
        for k in range(15 if size <= 1 << 22 else 5):
            evict()
            at = (k * size) % (max(SIZES) - size + 1)
            began = time.perf_counter()
            link.copy(target[at : at + size], source[at : at + size], stop)
            samples.append(time.perf_counter() - began)
        medians.append(float(np.median(samples)))
    return medians


def _beyond(bytes_per_s: float) -> float:
    sharpen_sleep()
    link, stop = Link("paced", bytes_per_s), Interrupt()
    source, target = np.ones(1 << 22, np.uint8), np.ones(1 << 22, np.uint8)
    beyond = []
    for size in (1 << 14, 1 << 16, 1 << 18, 1 << 20, 1 << 22) * 4:
        began = time.perf_counter()
        link.copy(target[:size], source[:size], stop)
        beyond.append(time.perf_counter() - began - size / bytes_per_s)
    return float(np.median(beyond))
