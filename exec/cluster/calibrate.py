"""Calibration of N ranks on the computers at hand: ops alone, puts, and what whole layers show with all ranks at work."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import cycle, permutations
from types import SimpleNamespace

import numpy as np
from numpy.typing import NDArray

from exec.calibration import curves, host
from exec.calibration.measure import on_thread, solo
from exec.calibration.profile import processor
from exec.cluster import machine as machines
from exec.cluster import transport
from exec.cluster.controller import Cluster
from exec.cluster.experts import run_experts, space_floats
from exec.cluster.fit import fitted
from exec.cluster.machine import Place
from exec.cluster.observe import observe
from exec.cluster.probes import PROBES, setup_of, sized, threads_of
from exec.cluster.rows import lasting
from exec.cluster.shards import kept
from exec.weights import Weights, expert_floats, random_dense, random_weights
from sim import models
from sim.machines.schema import Machine, OpRate, Resource
from sim.models.spec import ModelSpec

Say = Callable[[str], None]

MEASURED = ("rms_norm", "router", "dispatch", "combine")
EXPERT_ROWS = (1, 2, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 256, 512)
TOGETHER = 4
"""Experts of the layer whose curve is measured."""
OPS = ("gate", "permute", "experts", "unpermute")


def calibrate(cluster: Cluster, say: Say = lambda text: None) -> Machine:
    """A profile of the cluster's ranks. Takes about half a minute; nothing else should run meanwhile."""
    unfitted = draft(cluster, say)
    observed = []
    for k, probe in enumerate(PROBES):
        say(f"whole layers: {k + 1} of {len(PROBES)}, {probe.scheduler}")
        observed.append(observe(cluster, setup_of(probe, cluster.ranks)))
    return fitted(unfitted, observed)


def draft(cluster: Cluster, say: Say = lambda text: None) -> Machine:
    """A profile by ops and puts that were measured alone."""
    ranks, places = cluster.ranks, cluster.places
    threads = threads_of(ranks)
    say("cores")
    calibrated = f"calibrated on {processor()}"
    cores = Resource(kind="cores", capacity=host.cores(), source=f"{calibrated}: all cores at once against one alone")
    ops = [*_solo(threads, say), *(OpRate(op=f"task.{op}", lane="gpu", source="calibrated") for op in OPS)]
    ops += [OpRate(op=op, lane=lane, source="calibrated") for lane, op in (("host", "*"), ("comm", "*"), ("host", "barrier"))]
    say("puts")
    rows, links = _puts(cluster, places)
    return machines.of_ranks(f"{ranks}-ranks@{os.uname().nodename}", places, threads, cores, links, [*ops, *rows], processor())


def _solo(threads: int, say: Say) -> Iterator[OpRate]:
    spec = models.load("tiny-mixtral")
    weights = random_weights(replace(spec, experts=TOGETHER), 0)
    for row in curves.measure(spec, random_dense(spec, 0, weights.experts), "gpu", threads, MEASURED):
        say(f"{row.op} alone")
        yield row
    say("expert_ffn alone")
    yield on_thread(lambda: [_expert_ffn(spec, weights)], threads)[0]


def _expert_ffn(spec: ModelSpec, weights: Weights) -> OpRate:
    """Seconds per weight at so many rows an expert, the layers' weights being cold in turn."""
    sizes, space = SimpleNamespace(hidden=spec.hidden, ffn=spec.ffn, experts=TOGETHER), lasting("space", (space_floats(spec.ffn),))
    turn = cycle([kept(layer) for layer in weights.experts])
    curve = []
    for rows in EXPERT_ROWS:
        x, counts = lasting("rows", (rows * TOGETHER, spec.hidden)), np.full(TOGETHER, rows, np.int32)
        x[:] = 1.0

        def call(x: NDArray[np.float32] = x, counts: NDArray[np.int32] = counts) -> None:
            run_experts(sizes, next(turn), x, counts, space)
            x[:] = 1.0  # in place: without this the rows would shrink into denormals

        curve.append((float(rows), solo(call) / (TOGETHER * expert_floats(spec))))
    return OpRate(op="expert_ffn", lane="gpu", curve=tuple(curve), source="calibrated: solo, cold weights")


def _puts(cluster: Cluster, places: Sequence[Place]) -> tuple[list[OpRate], dict[int, Resource]]:
    """Rows of the op table for puts within a host and between two, and the hosts' links: each by the quickest of the puts from it."""
    spec = sized(512, 64, cluster.ranks, 1, 1)
    cluster.prepare(transport.order_of(cluster.ranks, spec))
    rows: dict[str, OpRate] = {}
    links: dict[int, Resource] = {}
    for a, b in permutations(range(cluster.ranks), 2):
        networked = places[a].host != places[b].host
        family = "put.network" if networked else "put.local"
        if places[a].host in links if networked else family in rows:
            continue
        timed = transport.time_puts(cluster, a, b, spec.hidden)
        rows.setdefault(family, transport.row_of(family, timed, networked))
        if networked:
            links[places[a].host] = transport.link_of(timed)
    return list(rows.values()), links
