"""Calibration of N ranks on the computers at hand: ops alone, puts, and what whole layers show with all ranks at work."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from exec.calibration import curves, host
from exec.calibration.insitu import LIMITS, _ratios
from exec.calibration.profile import processor
from exec.cluster import machine as machines
from exec.cluster import transport
from exec.cluster.controller import Cluster
from exec.cluster.execute import Executed, execute
from exec.cluster.job import Order
from exec.cluster.prices import ClusterCosts, rows_of, size_of
from exec.cluster.profile import Unknown
from exec.cluster.runs import Setup, layers_setup
from exec.weights import random_weights
from sim import models
from sim.costs import ratio_at
from sim.engines.run import Run
from sim.machines.schema import Machine, OpRate, Resource
from sim.models.spec import ModelSpec
from sim.plan import Plan

Say = Callable[[str], None]

MEASURED = ("rms_norm", "router", "dispatch", "expert_ffn", "combine")
OPS = ("gate", "permute", "experts", "unpermute")
LAYERS = 3
ROUNDS = 2
RUNS = 3


class Probe(NamedTuple):
    """Layers to calibrate with: none of them is one of the grid that validates."""

    scheduler: str
    tokens: int
    hidden: int
    ffn: int
    experts: int
    top_k: int
    skew: float


PROBES = (
    Probe("bulk-sync", 384, 512, 1792, 8, 2, 0.0),
    Probe("overlapped", 800, 512, 1024, 8, 2, 0.4),
    Probe("chunked", 640, 384, 1536, 8, 2, 0.0),
    Probe("bulk-sync", 200, 640, 1280, 16, 4, 0.3),
    Probe("overlapped", 1300, 256, 768, 16, 2, 0.0),
    Probe("chunked", 320, 768, 1024, 8, 1, 0.2),
    Probe("overlapped", 96, 512, 1792, 8, 2, 0.0),
    Probe("bulk-sync", 1100, 384, 640, 8, 3, 0.0),
)


def sized(hidden: int, ffn: int, experts: int, top_k: int, layers: int = LAYERS) -> ModelSpec:
    """MoE layers of these sizes; what else a model has is the bundled one's."""
    base = models.load("tiny-mixtral")
    return replace(base, name=f"moe-{hidden}x{ffn}x{experts}", hidden=hidden, ffn=ffn, experts=experts, top_k=top_k, layers=layers)


def calibrate(cluster: Cluster, say: Say = lambda text: None) -> Machine:
    """A profile of the cluster's ranks. Takes about a minute; nothing else should run meanwhile."""
    ranks, hosts = cluster.ranks, cluster.hosts
    threads = max(1, (os.cpu_count() or 1) // ranks)
    say("cores")
    calibrated = f"calibrated on {processor()}"
    cores = Resource(kind="cores", capacity=host.cores(), source=f"{calibrated}: all cores at once against one alone")
    ops = [*_solo(threads, say), *(OpRate(op=f"task.{op}", lane="gpu", source="calibrated") for op in OPS)]
    ops += [OpRate(op="*", lane=lane, latency_s=5e-6, source="guessed before whole runs") for lane in ("host", "comm")]
    say("puts")
    rows, links = _puts(cluster, hosts)
    draft = machines.of_ranks(f"{ranks}-ranks@{os.uname().nodename}", hosts, threads, cores, links, [*ops, *rows], processor())
    runs = list(_runs(cluster, threads, say))
    for _ in range(ROUNDS):
        draft = _corrected(draft, runs)
    return draft


def _solo(threads: int, say: Say) -> Iterator[OpRate]:
    spec = models.load("tiny-mixtral")
    for row in curves.measure(spec, random_weights(spec, 0), "gpu", threads, MEASURED):
        say(f"{row.op} alone")
        yield row


def _puts(cluster: Cluster, hosts: Sequence[int]) -> tuple[list[OpRate], dict[tuple[int, int], Resource]]:
    """Rows of the op table for puts within a computer and between two, and the links between computers."""
    spec = sized(512, 64, cluster.ranks, 1, 1)
    cluster.prepare(transport.order_of(cluster.ranks, spec))
    rows: dict[str, OpRate] = {}
    links: dict[tuple[int, int], Resource] = {}
    for a in range(cluster.ranks):
        for b in range(cluster.ranks):
            networked = hosts[a] != hosts[b]
            known = (hosts[a], hosts[b]) in links if networked else "put.local" in rows
            if a == b or known:
                continue
            family = "put.network" if networked else "put.local"
            timed = transport.time_puts(cluster, a, b, spec.hidden)
            rows.setdefault(family, transport.row_of(family, timed, networked))
            if networked:
                links[hosts[a], hosts[b]] = transport.link_of(timed)
    return list(rows.values()), links


# Whole layers -----------------------------------------------------------------------------------

Observed = tuple[Order, Plan, Executed]


def setup_of(probe: Probe, ranks: int, threads: int) -> Setup:
    spec = sized(probe.hidden, probe.ffn, probe.experts, probe.top_k)
    return layers_setup(spec, [probe.tokens] * ranks, probe.scheduler, skew=probe.skew, seed=17, threads=threads)


def _runs(cluster: Cluster, threads: int, say: Say) -> Iterator[Observed]:
    for k, probe in enumerate(PROBES):
        say(f"whole layers: {k + 1} of {len(PROBES)}, {probe.scheduler}")
        setup = setup_of(probe, cluster.ranks, threads)
        cluster.prepare(setup.order)
        for done in (once(cluster, setup) for _ in range(RUNS)):
            yield setup.order, plan_of(done.run), done


def once(cluster: Cluster, setup: Setup) -> Executed:
    """One run of a prepared setup."""
    scheduler = setup.fresh()
    return execute(cluster, scheduler, setup.requests, Unknown(), scheduler.lanes)


def plan_of(run: Run) -> Plan:
    """The one Plan that a run came of."""
    (source,) = run.sources
    assert isinstance(source, Plan), source
    return source


def _corrected(machine: Machine, runs: Sequence[Observed]) -> Machine:
    """The machine with each op's ratio, by octaves of its size, of what whole layers took over what the simulator says."""
    from sim.engines.compiled import run_compiled  # numba

    found: dict[tuple[str, str], list[NDArray[np.float64]]] = defaultdict(list)
    for order, plan, done in runs:
        costs = ClusterCosts(machine, order, rows_of(done.outputs))
        simulated = run_compiled(costs.bind(plan), machine.lanes, machine.pools)
        for key, rows in _durations(machine, costs.routed(plan), done.run, simulated):
            found[key].append(rows)
    rows = {(r.lane, r.op): r for r in machine.ops}
    for (family, op), parts in found.items():
        _correct(rows, family, op, np.concatenate(parts))
    return machine.model_copy(update={"ops": tuple(rows.values())})


def _durations(machine: Machine, plan: Plan, measured: Run, simulated: Run) -> Iterator[tuple[tuple[str, str], NDArray[np.float64]]]:
    """By (family of lanes, op): [tasks, 3] size, seconds measured, seconds simulated."""
    assert np.array_equal(measured.number, simulated.number), "the simulator ran other tasks"
    sizes = np.array([size_of(work) for work in plan.works])[plan.work]
    ops = np.array([work.op for work in plan.works])[plan.work]
    families = np.array([machine.lane[lane].families[0] for lane in plan.lanes] + [""])[plan.lane]
    spans = [(run.end_ps - run.start_ps) / 1e12 for run in (measured, simulated)]
    for family, op in sorted({(f, o) for f, o in zip(families.tolist(), ops.tolist(), strict=True) if f}):
        at = (families == family) & (ops == op)
        yield (family, op), np.stack([sizes[at], *(s[at] for s in spans)], axis=1)


def _correct(rows: dict[tuple[str, str], OpRate], family: str, op: str, tasks: NDArray[np.float64]) -> None:
    size, measured, simulated = tasks.T
    if family in ("host", "comm"):
        rows[family, "*"] = rows[family, "*"].model_copy(update={"latency_s": float(np.median(measured)), "source": "calibrated"})
        return
    name = op if op == "put" else f"task.{op}"
    row = rows[family, name]
    found = _ratios(np.maximum(size, 1.0), measured, np.maximum(simulated, 1e-9), np.ones(len(size)))
    ratio = tuple((x, float(np.clip(r * ratio_at(row.ratio, x), *LIMITS))) for x, r in found)
    rows[family, name] = row.model_copy(update={"ratio": ratio, "source": f"calibrated: {len(size)} tasks of whole layers"})
