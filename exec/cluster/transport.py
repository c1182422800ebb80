"""Calibration of what passes between tasks and ranks: how long it takes, and what the cores do meanwhile."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from exec.cluster.conductor import ClusterEngine
from exec.cluster.controller import Cluster
from exec.cluster.experts import PROBE
from exec.cluster.job import Order
from exec.cluster.profile import Unknown
from sim.drive import drive
from sim.engines.run import Run
from sim.ep import names
from sim.events import Event, Started
from sim.machines.schema import OpRate, Resource
from sim.models.spec import ModelSpec
from sim.plan import Plan, PlanBuilder
from sim.tasks import PS_PER_S, Command, Time, Work

SIZES = (0, 1 << 14, 1 << 16, 1 << 18, 1 << 20, 1 << 22)
"""Bytes of the puts that are timed."""

REPEATS = 25
HOPS = 200

HARDLY = 1.2
"""A put of four times the bytes that takes less than so many times longer tells nothing of its link."""

Probe = tuple[Work, str, Sequence[str]]
"""Work, lane, and what is written."""


@dataclass(frozen=True, slots=True)
class Handing:
    """A scheduler that hands out one Plan at once."""

    made: Plan

    def on(self, now: Time, event: Event) -> Sequence[Command]:
        return [self.made] if isinstance(event, Started) else ()


class Timed(NamedTuple):
    """Median seconds of one message of so many bytes alone, and seconds of the cores that it takes on all ranks."""

    bytes: int
    seconds: float
    cpu_s: float


def order_of(ranks: int, model: ModelSpec, device: str = "", most_bytes: int = max(SIZES)) -> Order:
    """Ranks that are ready for probes: hardly any weights, rows as long as the model's."""
    return Order(model, ranks, 0, tokens=(8,) * ranks, most_rows=most_bytes // (4 * model.hidden), device=device)


def time_tasks(cluster: Cluster, lanes: Sequence[str]) -> Timed:
    """Tasks that do nothing, on lanes of one rank in turn."""
    return _hops(cluster, [(Work("launch"), lanes[k % len(lanes)], ()) for k in range(HOPS)])


def time_words(cluster: Cluster, a: int, b: int) -> Timed:
    """Tasks that do nothing, on two ranks in turn: each is told of the one before. The task itself is in it."""
    ranks = a, b
    return _hops(cluster, [(Work("launch"), names.host(ranks[k % 2]), ()) for k in range(HOPS)])


def _hops(cluster: Cluster, tasks: Sequence[Probe]) -> Timed:
    run, cpu_s = _in_turn(cluster, tasks)
    return Timed(0, float(np.median(np.diff(run.end_ps))) / PS_PER_S, cpu_s)


def time_puts(cluster: Cluster, source: int, target: int, width: int, word: Timed, sizes: Sequence[int] = SIZES) -> list[Timed]:
    """Puts one after another from `source` to `target`, on a cluster prepared by `order_of`. word: of the target to the source,
    that the put before has come; what it takes is taken off."""
    return [_put(cluster, source, target, size // (4 * width), width, word) for size in sizes]


def _put(cluster: Cluster, source: int, target: int, rows: int, width: int, word: Timed) -> Timed:
    work = Work("put", tokens=rows, bytes=(rows + 1) * width * 4, variant=PROBE)
    run, cpu_s = _in_turn(cluster, [(work, names.put(source, target), (f"{PROBE}.{target}",))] * REPEATS)
    spans = (run.end_ps - run.start_ps)[2:] / PS_PER_S  # the first ones find caches and windows cold
    return Timed(work.bytes, float(np.median(spans)), max(0.0, cpu_s - word.cpu_s))


def _in_turn(cluster: Cluster, tasks: Sequence[Probe]) -> tuple[Run, float]:
    """(run, seconds of the cores for each) of tasks each of which waits for the one before."""
    builder = PlanBuilder()
    before: list[int] = []
    for work, lane, writes in tasks:
        before = [builder.add(work, lane, before, writes=writes)]
    plan = builder.build()
    engine = ClusterEngine(cluster, Unknown(), (), plan.lanes)
    drive(Handing(plan), engine)
    return engine.run(), sum(out.cpu_s for out in engine.outputs.values()) / len(tasks)


# Rows of the op table ---------------------------------------------------------------------------


def row_of(op: str, family: str, timed: Sequence[Timed], networked: bool = False) -> OpRate:
    """curve: seconds; ratio: cores that are busy meanwhile.

    On one computer all that a message takes is time of a core, or of several. Over a network what they do not account for is
    latency, and a link is charged the bytes.
    """
    seconds = np.maximum.accumulate([t.cpu_s if networked else t.seconds for t in timed])
    cores = [1.0 if networked else max(1.0, t.cpu_s / t.seconds) for t in timed]
    sizes = [float(max(1, t.bytes)) for t in timed]
    latency_s = max(0.0, timed[0].seconds - timed[0].cpu_s) if networked else 0.0
    return OpRate(
        op=op, lane=family, latency_s=latency_s, curve=tuple(zip(sizes, np.maximum(1e-7, seconds).tolist(), strict=True)),
        ratio=tuple(zip(sizes, cores, strict=True)), source="calibrated: one after another",
    )  # fmt: skip


def link_of(timed: Sequence[Timed]) -> Resource:
    """Rate of a link by the slope between the two largest puts; by the largest alone where the other, of a quarter of its bytes, was
    hardly quicker: something disturbed it."""
    (a, b) = timed[-2:]
    rate = (b.bytes - a.bytes) / (b.seconds - a.seconds) if b.seconds > HARDLY * a.seconds else b.bytes / b.seconds
    return Resource(kind="link", capacity=rate, source="calibrated: slope between the two largest puts alone")
