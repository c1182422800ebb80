"""What the whole computer can do: cores that really run at once, memory bandwidth, and who slows whom."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from exec.calibration.curves import Workbench
from exec.calibration.measure import Work, together
from exec.products import product
from exec.weights import Weights

BIG = 1 << 25
"""float32 elements of a buffer that no cache holds (128 MiB)."""

NOTICED = 1.04
"""Slowdowns below this are within the spread of repeated measurements."""


def threads_of_lanes() -> tuple[int, int]:
    """Threads of the "gpu" and the "cpu" lane: half of the cores each, the device getting the odd one."""
    cores = os.cpu_count() or 1
    cpu = max(1, cores // 2)
    return max(1, cores - cpu), cpu


def cores() -> float:
    """Cores that run at once: how much more of a compute-bound kernel all of them do than one does alone."""
    count = os.cpu_count() or 1

    def spin() -> Work:
        x, out = np.ones((96, 512), np.float32), np.empty((96, 512), np.float32)
        weight = np.ones((512, 512), np.float32)
        return lambda: [product(x, weight, out) for _ in range(4)]

    alone = together([spin()], threads=[1])[0]
    beside = together([spin() for _ in range(count)], threads=[1] * count)
    return float(sum(alone / t for t in beside))


def _reader() -> Work:
    memory = np.ones(BIG, np.float32)
    return lambda: memory.sum()


def _copier() -> Work:
    source, target = np.ones(BIG, np.float32), np.zeros(BIG, np.float32)
    return lambda: np.copyto(target, source)


def memory_bytes_per_s() -> tuple[float, float]:
    """(one thread copying, most that readers and copiers together move) in bytes/s; a copied byte counts twice."""
    count = os.cpu_count() or 1
    one = 8 * BIG / together([_copier()])[0]
    copies = sum(8 * BIG / t for t in together([_copier() for _ in range(count)]))
    reads = sum(4 * BIG / t for t in together([_reader() for _ in range(count)]))
    return one, max(one, copies, reads)


def traffic(spec: Any, weights: Weights, gpu_threads: int, cpu_threads: int, capacity: float) -> dict[str, tuple[float, float]]:
    """Fitted memory traffic: by component, (bytes per byte of its work formula, slowdown beside a copying thread).

    Each op runs beside a thread that copies memory as fast as it can. The bytes that the op must be
    moving for weighted max-min sharing of `capacity` to give the slowdown seen are its traffic. An op
    that is not slowed down by the strongest user of memory there is competes for cores alone.
    """
    found = {}
    for op, threads, rows in (("expert_ffn", gpu_threads, 8), ("qkv_proj", gpu_threads, 16), ("attn_decode", cpu_threads, 256)):
        bench = Workbench(spec, weights, threads)
        piece = bench.pieces()[op][1](rows)
        alone = together([piece.call], threads=[threads])[0]
        beside, copy_s = together([piece.call, _copier()], threads=[threads, 1])
        found[op] = (_fit(_formula_bytes(spec, op, rows) / alone, 8 * BIG / copy_s, beside / alone, capacity), beside / alone)
    return found


def _formula_bytes(spec: Any, op: str, rows: int) -> float:
    from kernels import attention, expert_ffn, linear

    if op == "expert_ffn":
        return expert_ffn.work(rows, spec.hidden, spec.ffn, spec.dtype_bytes).bytes * spec.experts
    if op == "qkv_proj":
        return linear.work(rows, spec.hidden, spec.qkv_dim, spec.dtype_bytes).bytes
    return attention.decode_work(16, 16 * rows, spec.heads, spec.kv_heads, spec.head_dim, spec.dtype_bytes).bytes


def _fit(rate: float, other: float, slowdown: float, capacity: float) -> float:
    """Bytes per formula byte, between 0 and 4, such that an op that would move `scale * rate` bytes/s
    alone is slowed down by `slowdown` beside a copy at `other` bytes/s."""
    if slowdown < NOTICED:
        return 0.0
    scales = np.linspace(0.05, 4, 400)
    wants = scales * rate
    share = np.where(wants + other <= capacity, wants, np.maximum(capacity - other, np.minimum(wants, capacity / 2)))
    return float(scales[np.argmin(np.abs(wants / share - slowdown))])
