"""Study: one MoE layer under one system on one machine, over many steps with jitter."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sim.costs import PricedPlan, pack
from sim.engines.run import Run
from sim.ep import measures
from sim.ep.costs import EpCosts, with_lanes
from sim.ep.delays import Delays
from sim.ep.layer import MoELayer
from sim.ep.prices import Kernels
from sim.ep.routing import Counts
from sim.ep.systems import System
from sim.errors import UserError
from sim.events import Arrived, Request
from sim.fabric import expand, ranks, topology_of
from sim.jitter import Jitter
from sim.machines.schema import Machine
from sim.plan import Plan
from sim.plan import plan_of as plan_of_tasks
from sim.schedulers.ep import registry
from sim.schedulers.ep.base import ExpertParallel
from sim.schedulers.ep.deepep_ll import DeepEPLowLatency
from sim.schedulers.ep.kernels import Kernels as KernelScheduler
from sim.schedulers.ep.packets import capacity
from sim.schedulers.ep.tiled import Tiled
from sim.schedulers.policy import Policy
from sim.tasks import Task, Work


@dataclass(frozen=True, slots=True)
class Prepared:
    """A system's Plan for one layer, priced. build_s: real time that took."""

    system: System
    scheduler: ExpertParallel
    costs: EpCosts
    priced: PricedPlan
    useful_flops: float
    build_s: float

    @property
    def plan(self) -> Plan:
        return self.priced.plan

    def run(self, priced: PricedPlan | None = None) -> Run:
        """One step, by the compiled engine."""
        from sim.engines.compiled import run_compiled  # numba

        return run_compiled(priced or self.priced, self.costs.lanes, self.scheduler.pools)


def prepare(
    system: System, machine: Machine, layer: MoELayer, tokens: Sequence[int], counts: Counts, *, capacity_factor: float | None = None,
    seed: int = 0,
) -> Prepared:  # fmt: skip
    """machine: one with a topology. tokens [ranks], counts [ranks, experts]: rows that each rank sends to each expert, after drops.
    capacity_factor: what a system that pads makes room for; None: for the fullest expert (nothing is dropped).

    Raises UserError where the system does not fit the machine or the layer.
    """
    began = time.perf_counter()
    topology = topology_of(machine)
    if len(tokens) != ranks(machine):
        raise UserError(f"tokens: of {len(tokens)} ranks; machine {machine.name} has {ranks(machine)}")
    layer = layer if system.dtype is None else layer.with_dtype(system.dtype)
    scheduler = make(system, layer, tokens, counts, topology.gpu.sms, topology.gpus, seed)
    plan = plan_of(scheduler, tokens)
    expanded = with_lanes(expand(machine), scheduler)
    expanded = expanded.model_copy(update={"ops": (*expanded.ops, *system.ops)})
    sent = padded(counts, layer, tokens, capacity_factor) if system.padded else counts
    chunks = scheduler.chunks if isinstance(scheduler, KernelScheduler) else 1
    costs = EpCosts(expanded, layer, sent, kernels_of(system, scheduler), chunks=chunks)
    priced = costs.bind(plan)
    gate = sum(tokens) * 2 * layer.hidden * layer.experts
    return Prepared(system, scheduler, costs, priced, gate + int(counts.sum()) * layer.expert_flops, time.perf_counter() - began)


def compile_engine() -> None:
    """Load or compile the engine, so that no system's time includes it."""
    from sim.engines.compiled import run_compiled  # numba

    plan = plan_of_tasks([Task(0, Work("join"))])
    run_compiled(PricedPlan(plan, np.zeros(1, np.int32), pack([(0, [])]), (), np.zeros(0)), (), {})


def make(
    system: System, layer: MoELayer, tokens: Sequence[int], counts: Counts, sms: int, gpus_per_node: int, seed: int = 0
) -> ExpertParallel:
    """The system's scheduler object."""
    found = registry.load(system.scheduler)
    options: dict[str, Any] = {"seed": seed, "ranks": len(tokens), **system.options}
    if issubclass(found, Tiled):
        options = {"rows": counts, "sms": sms, "gpus_per_node": gpus_per_node, **options}
    elif issubclass(found, DeepEPLowLatency):
        options = {"rows": counts, **options}
    scheduler: ExpertParallel = found(layer.model(), Policy(batch=len(tokens), microbatch=1), **options)
    return scheduler


def plan_of(scheduler: ExpertParallel, tokens: Sequence[int]) -> Plan:
    """What the scheduler hands out when the ranks' tokens have arrived. Raises UserError unless that is one Plan."""
    requests = [Request(rank, n, 0) for rank, n in enumerate(tokens)]
    commands = [c for r in requests for c in scheduler.on(0, Arrived(r, last=r is requests[-1]))]
    if len(commands) != 1 or not isinstance(commands[0], Plan) or commands[0].notify.any():
        raise UserError(f"{type(scheduler).__name__}: hands out {len(commands)} commands; one Plan that reacts to nothing is needed here")
    return commands[0]


def padded(counts: Counts, layer: MoELayer, tokens: Sequence[int], factor: float | None) -> Counts:
    """Every expert's capacity from every rank."""
    if factor is None:
        return np.full_like(counts, counts.max(initial=0))
    room = np.array([capacity(t, layer.experts, layer.top_k, factor) for t in tokens])
    return np.broadcast_to(room[:, None], counts.shape).copy()


def kernels_of(system: System, scheduler: ExpertParallel) -> Kernels:
    """What pricing must know of the scheduler's kernels."""
    if isinstance(scheduler, KernelScheduler):
        return Kernels((system.stages or scheduler.launches)._asdict(), tile_rows=system.tile_rows, sorts=system.sorts)
    if isinstance(scheduler, Tiled):
        return Kernels({}, gemm_rows=scheduler.tiling.rows, resident=scheduler.resident)
    return Kernels({}, tile_rows=system.tile_rows)


@dataclass(frozen=True, slots=True)
class Outcome:
    """run, priced: the step whose latency is the median. row: an entry of `moe-layer --json`."""

    prepared: Prepared
    priced: PricedPlan
    run: Run
    row: Mapping[str, Any]


def study(prepared: Prepared, jitter: Jitter, steps: int = 1, seed: int = 0, tell: Callable[[int], None] = lambda done: None) -> Outcome:
    """So many steps, each with delays of its own; without jitter they are all alike, and one is simulated."""
    delays = Delays(prepared.priced)
    alike = jitter.name == "none"
    began = time.perf_counter()
    latencies = []
    for step in range(1 if alike else steps):
        run = prepared.run(delays.drawn(jitter, seed, step))
        latencies.append(run.makespan_ps / 1e12)
        tell(step + 1)
    wall_s = (time.perf_counter() - began) / len(latencies)
    middle = int(np.argsort(latencies, kind="stable")[(len(latencies) - 1) // 2])
    priced = delays.drawn(jitter, seed, middle)
    if middle != len(latencies) - 1:
        run = prepared.run(priced)
    plan = prepared.plan
    launches = np.array([work.op == "launch" for work in plan.works])[plan.work]
    row = {
        "scheduler": prepared.system.name,
        "latency_s": measures.latency(latencies),
        **measures.measure(run, priced, prepared.costs, prepared.useful_flops),
        "launches": int(launches.sum()) // prepared.costs.counts.shape[0],
        "tasks": len(plan),
        "build_s": prepared.build_s,
        "run_s": wall_s,
        "wall_s": prepared.build_s + wall_s,
    }
    return Outcome(prepared, priced, run, row)
