"""Calibration of N ranks on the computers at hand: ops alone, puts, and what whole layers show with all ranks at work."""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import cycle, permutations
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from exec.calibration import curves, host
from exec.calibration.insitu import LIMITS, _tamed
from exec.calibration.measure import on_thread, solo
from exec.calibration.profile import processor
from exec.cluster import machine as machines
from exec.cluster import transport
from exec.cluster.controller import Cluster
from exec.cluster.execute import Executed, execute
from exec.cluster.experts import run_experts, space_floats
from exec.cluster.job import Order
from exec.cluster.machine import Place
from exec.cluster.outputs import Outputs
from exec.cluster.prices import SPREAD, ClusterCosts, rows_of, simulate, size_of
from exec.cluster.profile import Unknown
from exec.cluster.rows import lasting
from exec.cluster.runs import Setup, layers_setup
from exec.cluster.shards import kept
from exec.weights import Weights, expert_floats, random_dense, random_weights
from sim import models
from sim.costs import ratio_at
from sim.engines.run import Run
from sim.machines.schema import Machine, OpRate, Resource
from sim.models.spec import ModelSpec
from sim.plan import Plan

Say = Callable[[str], None]

MEASURED = ("rms_norm", "router", "dispatch", "combine")
EXPERT_ROWS = (1, 2, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 256, 512)
TOGETHER = 4
"""Experts of the layer whose curve is measured."""
OPS = ("gate", "permute", "experts", "unpermute")
LAYERS = 4
WEIGHTS = 2
ROUNDS = 2
SLOWED, TAKEN = 1.1, 0.3
"""A run is disturbed where its ranks computed so many times longer than in the quickest run of the same setup, or others took
so much of a core's time; clock ticks of 10 ms leave a quiet computer well below."""
CORRECTED = "; corrected by "
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


def sized(hidden: int, ffn: int, experts: int, top_k: int, layers: int = WEIGHTS) -> ModelSpec:
    """MoE layers of these sizes; what else a model has is the bundled one's."""
    base = models.load("tiny-mixtral")
    return replace(base, name=f"moe-{hidden}x{ffn}x{experts}", hidden=hidden, ffn=ffn, experts=experts, top_k=top_k, layers=layers)


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


def threads_of(ranks: int) -> int:
    """Threads of each rank's compute lane, where all ranks run on this computer."""
    return max(1, (os.cpu_count() or 1) // ranks)


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


# Whole layers -----------------------------------------------------------------------------------

class Sample(NamedTuple):
    """One run. durations_s [tasks] in order of task numbers, see `elapsed_s`; cpu_s: of all ranks; others_s: CPU seconds that
    the rest of the computer took meanwhile, as far as the system tells."""

    makespan_s: float
    durations_s: NDArray[np.float64]
    cpu_s: float
    others_s: float


@dataclass(frozen=True, slots=True)
class Observed:
    """A setup that was run several times."""

    order: Order
    plan: Plan
    outputs: Mapping[int, Outputs]
    samples: tuple[Sample, ...]

    @property
    def settled(self) -> tuple[Sample, ...]:
        """Runs that nothing else disturbed: no other process took a share of the cores, and the cores were not slowed down by
        what this computer cannot see (the same work took them no longer). At least the calmest third."""
        least = min(s.cpu_s for s in self.samples)
        calm = sorted(self.samples, key=lambda s: max(s.cpu_s / least / SLOWED, s.others_s / s.makespan_s / TAKEN))
        found = [s for s in calm if s.cpu_s <= SLOWED * least and s.others_s <= TAKEN * s.makespan_s]
        return tuple(max(found, calm[: -(-len(calm) // 3)], key=len))

    @property
    def durations_s(self) -> NDArray[np.float64]:
        """Medians of each task, [tasks]."""
        found: NDArray[np.float64] = np.median([s.durations_s for s in self.settled], axis=0)
        return found


def setup_of(probe: Probe, ranks: int) -> Setup:
    spec = sized(probe.hidden, probe.ffn, probe.experts, probe.top_k)
    return layers_setup(
        spec, [probe.tokens] * ranks, probe.scheduler, layers=LAYERS, skew=probe.skew, seed=17, threads=threads_of(ranks)
    )


def observe(cluster: Cluster, setup: Setup, runs: int = RUNS) -> Observed:
    """Prepare a setup and run it; a first run, which finds caches and connections cold, does not count."""
    cluster.prepare(setup.order)
    done = once(cluster, setup)
    return Observed(setup.order, plan_of(done.run), done.outputs, tuple(_sample(cluster, setup) for _ in range(runs)))


def _sample(cluster: Cluster, setup: Setup) -> Sample:
    busy_s, own_s = _busy_s(), time.process_time()
    done = once(cluster, setup)
    cpu_s = sum(o.cpu_s for o in done.outputs.values())
    others_s = max(0.0, _busy_s() - busy_s - cpu_s - (time.process_time() - own_s))
    return Sample(done.run.makespan_ps / 1e12, elapsed_s(done.run), cpu_s, others_s)


def elapsed_s(run: Run) -> NDArray[np.float64]:
    """What each task took [tasks]. A put counts from when it could have started: word that the other side is ready has to
    reach the sender. A barrier takes as long as what waits for it, and for nothing else any more, starts after it."""
    plan = plan_of(run)
    late = _late_s(plan, run)
    found = (run.end_ps - run.start_ps) / 1e12
    ops = np.array([work.op for work in plan.works])[plan.work]
    found[ops == "put"] += late[ops == "put"]
    waiters: dict[int, list[float]] = defaultdict(list)
    for i in range(len(plan)):
        for dep in plan.dep[plan.dep_ptr[i] : plan.dep_ptr[i + 1]] - plan.first:
            if plan.lane[dep] < 0:
                waiters[int(dep)].append(late[i])
    for i, starts in waiters.items():
        found[i] = np.mean(starts)
    return found


def _late_s(plan: Plan, run: Run) -> NDArray[np.float64]:
    """Time from when what each task waited for had ended, and its lane was free, to its start [tasks]."""
    ready = np.zeros(len(plan), np.int64)
    for i in range(len(plan)):
        deps = plan.dep[plan.dep_ptr[i] : plan.dep_ptr[i + 1]] - plan.first
        ready[i] = run.end_ps[deps].max(initial=0)
    for lane in range(len(plan.lanes)):
        mine = np.flatnonzero(plan.lane == lane)
        mine = mine[np.argsort(run.start_ps[mine], kind="stable")]
        ready[mine[1:]] = np.maximum(ready[mine[1:]], run.end_ps[mine[:-1]])
    return np.maximum(0, run.start_ps - ready) / 1e12


def _busy_s() -> float:
    """CPU seconds that everything on this computer has taken; 0 where the system does not tell."""
    if not os.path.exists("/proc/stat"):
        return 0.0
    with open("/proc/stat") as f:
        user, nice, system, _, _, interrupts, soft, stolen, *_ = map(int, f.readline().split()[1:])
    return (user + nice + system + interrupts + soft + stolen) / os.sysconf("SC_CLK_TCK")


def once(cluster: Cluster, setup: Setup) -> Executed:
    """One run of a prepared setup."""
    scheduler = setup.fresh()
    return execute(cluster, scheduler, setup.requests, Unknown(), scheduler.lanes)


def plan_of(run: Run) -> Plan:
    """The one Plan that a run came of."""
    (source,) = run.sources
    assert isinstance(source, Plan), source
    return source


def fitted(machine: Machine, observed: Sequence[Observed]) -> Machine:
    """The machine with each op corrected by what whole layers took over what the simulator says. The second round corrects
    what the first left, ops being beside others then."""
    for _ in range(ROUNDS):
        found: dict[tuple[str, str], list[NDArray[np.float64]]] = defaultdict(list)
        for seen in observed:
            for key, rows in _durations(machine, seen):
                found[key].append(rows)
        rows = {(r.lane, r.op): r for r in machine.ops}
        for (family, op), parts in found.items():
            _correct(rows, family, op, np.concatenate(parts))
        machine = machine.model_copy(update={"ops": tuple(rows.values())})
    found = ((1.0, _spread(observed)),)
    spread = OpRate(op=SPREAD, lane="gpu", ratio=found, source="calibrated: experts tasks of whole layers, from run to run")
    return machine.model_copy(update={"ops": (*(row for row in machine.ops if row.op != SPREAD), spread)})


def _spread(observed: Sequence[Observed]) -> float:
    """Standard deviation of the logarithm of what the same experts task took in different runs."""
    squares, freedoms = 0.0, 0
    for seen in observed:
        experts = np.array([work.op == "experts" for work in seen.plan.works])[seen.plan.work]
        runs = seen.settled if len(seen.settled) > 1 else seen.samples
        logs = np.log([np.maximum(s.durations_s[experts], 1e-9) for s in runs])
        squares += float(_tamed(((logs - logs.mean(axis=0)) ** 2).ravel()).sum())
        freedoms += (len(logs) - 1) * int(experts.sum())
    return float(np.sqrt(squares / max(1, freedoms)))


def _durations(machine: Machine, seen: Observed) -> Iterator[tuple[tuple[str, str], NDArray[np.float64]]]:
    """By (family of lanes, op): [tasks, 3] size, seconds measured, seconds simulated."""
    costs = ClusterCosts(machine, seen.order, rows_of(seen.outputs))
    plan, run = costs.routed(seen.plan), simulate(machine, seen.order, seen.plan, seen.outputs, draws=0)
    sizes = np.array([size_of(work) for work in plan.works])[plan.work]
    ops = np.array([work.op for work in plan.works])[plan.work]
    families = np.array([machine.lane[lane].families[0] for lane in plan.lanes] + ["host"])[plan.lane]
    spans = (run.end_ps - run.start_ps) / 1e12
    for family, op in sorted(set(zip(families.tolist(), ops.tolist(), strict=True))):
        at = (families == family) & (ops == op)
        yield (family, op), np.stack([sizes[at], seen.durations_s[at], spans[at]], axis=1)


def _correct(rows: dict[tuple[str, str], OpRate], family: str, op: str, tasks: NDArray[np.float64]) -> None:
    """Compute ops by a latency and a ratio: few parameters, fitted to medians, because a shared computer disturbs single tasks
    much. What waits rather than computes by a latency, the mean, because the long waits are part of it."""
    _, measured, simulated = tasks.T
    name = op if op in ("put", "barrier") else f"task.{op}" if family == "gpu" else "*"
    row = rows[family, name]
    update: dict[str, Any] = {"source": f"{row.source.partition(CORRECTED)[0]}{CORRECTED}{len(measured)} tasks of whole layers"}
    if family == "gpu":
        before = ratio_at(row.ratio, 1.0)
        base = simulated - row.latency_s
        update["latency_s"] = latency_s = max(0.0, float(np.median(measured - _slope(base, measured) * base)))
        ratio = float(np.median((measured - latency_s) / np.maximum(base, 1e-9)))
        update["ratio"] = ((1.0, float(np.clip(ratio * before, *LIMITS))),)
    else:
        update["latency_s"] = max(0.0, row.latency_s + float(_tamed(measured - simulated).mean()))
    rows[family, name] = row.model_copy(update=update)


def _slope(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    """Median of the slopes between all pairs (Theil 1950, Sen 1968): half of the points may be far off."""
    i, j = np.triu_indices(len(x), 1)
    apart = np.abs(x[i] - x[j]) > 1e-6
    slopes = (y[i] - y[j])[apart] / (x[i] - x[j])[apart]
    return float(np.clip(np.median(slopes), *LIMITS)) if len(slopes) else 1.0
