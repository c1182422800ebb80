"""Calibration of N ranks on the computers at hand: ops alone, puts, and what whole layers show with all ranks at work."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import cycle, permutations
from types import SimpleNamespace

import numpy as np
from numpy.typing import NDArray

from exec.calibration import curves, host
from exec.calibration.measure import together
from exec.calibration.profile import processor
from exec.calibration.reference import Reference
from exec.cluster import machine as machines
from exec.cluster import transport
from exec.cluster.controller import Cluster
from exec.cluster.experts import run_experts, space_floats
from exec.cluster.fit import fitted
from exec.cluster.job import Order
from exec.cluster.machine import LOCAL, NETWORK, Place
from exec.cluster.observe import against_the_best, observe
from exec.cluster.probes import probes_of, setup_of, sized, threads_of
from exec.cluster.rows import lasting
from exec.cluster.shards import drawn_expert, kept
from exec.weights import expert_floats, random_dense, random_weights
from sim import models
from sim.ep import names
from sim.machines.schema import Machine, OpRate, Resource
from sim.models.spec import ModelSpec

Say = Callable[[str], None]

MEASURED = ("rms_norm", "router", "dispatch", "combine")
EXPERT_ROWS = (1, 2, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 256, 512)
TOGETHER = 4
"""Experts of the layer whose curve is measured."""
TURNS = 3
"""How often all sizes are gone through: who disturbs one turn for a moment does not move the median."""
NARROW, MANY = 4, 64
"""How much narrower the other model is, and the rows from which an expert's time grows with them."""
DRAWN = 5
"""Experts that are loaded."""
OPS = ("gate", "permute", "experts", "unpermute")
WOKEN = ("host", (names.host(0),)), ("comm", (names.comm(0), names.host(0)))
"""Lanes on which tasks are timed in turn: launches follow one another, to enter a collective takes another thread."""
WORDS = ("word", "put"), ("barrier", "comm"), ("word", "comm"), ("word", "host"), ("word", "gpu")
"""What words between ranks are rows of. One table for all pairs: between hosts where there are several."""


def calibrate(cluster: Cluster, say: Say = lambda text: None, device: str = "") -> Machine:
    """A profile of the cluster's ranks, each with a device of that kind (empty: the cores are what computes). Takes under a
    minute on a quiet computer; one that is never calm is waited for up to two minutes more."""
    unfitted = draft(cluster, say, device)
    observed, reference, probes = [], Reference(), probes_of(device)
    for k, probe in enumerate(probes):
        say(f"whole layers: {k + 1} of {len(probes)}, {probe.scheduler}")
        observed.append(observe(cluster, setup_of(probe, cluster.ranks, device), reference))
    return fitted(unfitted, against_the_best(observed, reference.best_s))


def draft(cluster: Cluster, say: Say = lambda text: None, device: str = "") -> Machine:
    """A profile by ops and puts that were measured alone."""
    if device:
        from exec.cluster.device_calibrate import draft as of_devices

        return of_devices(cluster, device, say)
    ranks, places = cluster.ranks, cluster.places
    threads = threads_of(ranks)
    say("cores")
    calibrated = f"calibrated on {processor()}"
    cores = Resource(kind="cores", capacity=host.cores(), source=f"{calibrated}: all cores at once against one alone")
    ops = [*_ops(threads, cores.capacity, say), *(OpRate(op=f"task.{op}", lane="gpu", source="calibrated") for op in OPS)]
    say("words and puts")
    rows, links = passing(cluster, places)
    return machines.of_ranks(f"{ranks}-ranks@{os.uname().nodename}", places, threads, cores, links, [*ops, *rows], processor())


def _ops(threads: int, at_once: float, say: Say) -> Iterator[OpRate]:
    spec = models.load("tiny-mixtral")
    for row in curves.measure(spec, random_dense(spec, 0, ()), "gpu", threads, MEASURED):
        say(f"{row.op} alone")
        yield row
    say("an expert from where weights are kept")
    yield _load(spec)
    say("expert_ffn on all cores")
    yield from _experts(spec, threads, at_once)


def _load(spec: ModelSpec) -> OpRate:
    """Seconds of a core by bytes: what a rank does for an expert that nobody else holds."""
    sizes = [replace(spec, hidden=spec.hidden // k) for k in (4, 1)]
    curve = tuple((float(one.expert_bytes), _drawn_s(Order(one, 1, 0))) for one in sizes)
    return OpRate(op="load", lane="host", curve=curve, source="calibrated: weights drawn, one core alone")


def _drawn_s(order: Order) -> float:
    """Median."""
    took = []
    for expert in range(DRAWN):
        start = time.perf_counter()
        drawn_expert(order, 0, expert)
        took.append(time.perf_counter() - start)
    return float(np.median(took))


def _experts(spec: ModelSpec, threads: int, at_once: float) -> Iterator[OpRate]:
    """Seconds per weight at so many rows an expert, and seconds for each row and column of its intermediate, which count more
    the narrower a model is: told apart by one of a quarter of the width.

    With all cores at the same, because that is when ranks compute their experts: at few rows they wait for memory, of which each
    then gets its share. at_once: cores' worth of work that all cores do together, by which the rest of the profile counts.
    """
    narrow = replace(spec, hidden=spec.hidden // NARROW)
    wide_s, narrow_s = (at_once * s for s in _per_weight_s([spec, narrow], threads))
    rows = np.array(EXPERT_ROWS, np.float64)
    many = rows >= MANY
    column_s = max(0.0, float(np.median(3 * spec.hidden * (narrow_s - wide_s)[many] / rows[many])) / (NARROW - 1))
    own_s = np.maximum(wide_s - rows * column_s / (3 * spec.hidden), 1e-13)
    source = "calibrated: cold weights, all cores at the same"
    yield OpRate(op="expert_ffn", lane="gpu", curve=tuple(zip(rows.tolist(), own_s.tolist(), strict=True)), source=source)
    yield OpRate(op="expert_columns", lane="gpu", curve=((1.0, column_s),), source=source)


def _per_weight_s(specs: Sequence[ModelSpec], threads: int) -> NDArray[np.float64]:
    """[specs, EXPERT_ROWS], as a share of what all cores together take a second. Models in turn, and only while the computer is
    about as quick as at its best: they are compared with each other."""
    ranks, reference = max(1, (os.cpu_count() or 1) // threads), Reference()
    benches = [[_Bench(spec, seed) for seed in range(ranks)] for spec in specs]

    def once(spec: int, rows: int) -> float:
        reference.calm_s()
        seconds = together([partial(bench, rows) for bench in benches[spec]], budget_s=0.05, threads=[threads] * ranks)
        return float(np.mean(seconds)) / (ranks * threads * TOGETHER * expert_floats(specs[spec]))

    turns = [[[once(k, rows) for k in range(len(specs))] for rows in EXPERT_ROWS] for _ in range(TURNS)]
    found: NDArray[np.float64] = np.median(turns, axis=0).T
    return found


class _Bench:
    """Experts of a few layers, on a thread of its own."""

    def __init__(self, spec: ModelSpec, seed: int) -> None:
        weights = random_weights(replace(spec, experts=TOGETHER), seed)
        self.sizes = SimpleNamespace(hidden=spec.hidden, ffn=spec.ffn, experts=TOGETHER)
        self.turn = cycle([kept(layer) for layer in weights.experts])
        self.space = lasting("space", (space_floats(spec.ffn),))
        self.x = lasting("rows", (max(EXPERT_ROWS) * TOGETHER, spec.hidden))

    def __call__(self, rows: int) -> None:
        x = self.x[: rows * TOGETHER]
        x[:] = 1.0  # in place: without this the rows would shrink into denormals
        run_experts(self.sizes, next(self.turn), x, np.full(TOGETHER, rows, np.int32), self.space)


def passing(
    cluster: Cluster, places: Sequence[Place], device: str = "", sizes: Sequence[int] = transport.SIZES
) -> tuple[list[OpRate], dict[int, Resource]]:
    """Rows of the op table for waking a thread, for words and barriers, and for puts within a host and between two; and the
    hosts' links, each by the puts from it."""
    spec = sized(512, 64, cluster.ranks, 1, 1)
    cluster.prepare(transport.order_of(cluster.ranks, spec, device, max(sizes)))
    rows = [transport.row_of("*", lane, [transport.time_tasks(cluster, lanes)]) for lane, lanes in WOKEN]
    links: dict[int, Resource] = {}
    words: dict[str, list[OpRate]] = {}
    for a, b in permutations(range(cluster.ranks), 2):
        networked = places[a].host != places[b].host
        family = NETWORK if networked else LOCAL
        if places[a].host in links if networked else family in words:
            continue
        word = transport.time_words(cluster, a, b)
        timed = transport.time_puts(cluster, a, b, spec.hidden, word, sizes)
        if family not in words:
            words[family] = [transport.row_of(op, lane, [word], networked) for op, lane in WORDS]
            rows.append(transport.row_of("put", family, timed, networked))
        if networked:
            links[places[a].host] = transport.link_of(timed)
    return [*rows, *(words.get(NETWORK) or words.get(LOCAL, []))], links
