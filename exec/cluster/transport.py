"""Calibration of puts: their latency, their rate, and the seconds of the cores that they take, by size."""

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
from sim.ep import names
from sim.events import Event, Started
from sim.machines.schema import OpRate, Resource
from sim.models.spec import ModelSpec
from sim.plan import Plan, PlanBuilder
from sim.tasks import Command, Time, Work

SIZES = (0, 1 << 14, 1 << 16, 1 << 18, 1 << 20, 1 << 22)
"""Bytes of the puts that are timed."""

REPEATS = 15


@dataclass(frozen=True, slots=True)
class Handing:
    """A scheduler that hands out one Plan at once."""

    made: Plan

    def on(self, now: Time, event: Event) -> Sequence[Command]:
        return [self.made] if isinstance(event, Started) else ()


class Timed(NamedTuple):
    """Median seconds of a put of so many bytes alone, and seconds of the cores at both ends."""

    bytes: int
    seconds: float
    cpu_s: float


def order_of(ranks: int, model: ModelSpec) -> Order:
    """Ranks that are ready for probes: hardly any weights, rows as long as the model's."""
    return Order(model, ranks, 0, tokens=(8,) * ranks, most_rows=max(SIZES) // (4 * model.hidden))


def time_puts(cluster: Cluster, source: int, target: int, width: int, sizes: Sequence[int] = SIZES) -> list[Timed]:
    """Puts one after another from `source` to `target`, on a cluster prepared by `order_of`."""
    return [_time(cluster, source, target, size // (4 * width), width) for size in sizes]


def _time(cluster: Cluster, source: int, target: int, rows: int, width: int) -> Timed:
    builder = PlanBuilder()
    before: list[int] = []
    for _ in range(REPEATS):
        work = Work("put", tokens=rows, bytes=(rows + 1) * width * 4, variant=PROBE)
        before = [builder.add(work, names.put(source, target), before, writes=[f"{PROBE}.{target}"], rank=source, page=target)]
    plan = builder.build()
    engine = ClusterEngine(cluster, Unknown(), (), plan.lanes)
    drive(Handing(plan), engine)
    run = engine.run()
    spans = (run.end_ps - run.start_ps)[2:] / 1e12  # the first ones find caches and windows cold
    cpu_s = sum(engine.outputs[r].cpu_s for r in (source, target)) / REPEATS
    return Timed(work.bytes, float(np.median(spans)), cpu_s)


def row_of(family: str, timed: Sequence[Timed], networked: bool) -> OpRate:
    """The row of the op table. On one computer copying is all that a put takes: the cores are charged its whole time beyond
    the latency. Over a network they are charged what they computed, and the link its bytes."""
    latency_s = timed[0].seconds
    spent = [t.cpu_s if networked else t.seconds - latency_s for t in timed]
    curve = tuple((float(t.bytes), max(1e-7, s)) for t, s in zip(timed, np.maximum.accumulate(spent).tolist(), strict=True))
    return OpRate(op="put", lane=family, latency_s=max(0.0, latency_s), curve=curve, source="calibrated: puts one after another")


def link_of(timed: Sequence[Timed]) -> Resource:
    """Rate of a link by the slope between the two largest puts."""
    (a, b) = timed[-2:]
    rate = (b.bytes - a.bytes) / max(1e-9, b.seconds - a.seconds)
    return Resource(kind="link", capacity=rate, source="calibrated: slope between the two largest puts alone")
