"""Small random questions, and the bound of one point by plain sums over its Plan."""

from __future__ import annotations

import random
from dataclasses import replace

from sim import machines, models
from sim.costs import CostModel
from sim.events import Arrived, Started
from sim.job import Job
from sim.machines.schema import Machine
from sim.models.spec import ModelSpec
from sim.plan import PHASES, Plan
from sim.policy.space import Space, orders
from sim.tasks import PS_PER_S
from sim.workloads.lengths import Fixed, Uniform
from sim.workloads.schema import Workload

WEIGHTS = ("layer_to_gpu", "page_to_gpu", "page_to_pin")


def model(dice: random.Random) -> ModelSpec:
    layers = dice.choice((2, 3, 6))
    ffn = dice.choice((128, 512))
    return replace(models.load("tiny-mixtral"), layers=layers, hidden=64, ffn=ffn, heads=4, kv_heads=2, head_dim=16, vocab=256)


def machine(dice: random.Random, spec: ModelSpec, rows: int) -> Machine:
    """A T4 box with rates and budgets of its own; the budgets hold some batches of `rows` cache entries and not others."""
    base = machines.load(dice.choice(("t4", "l4")))
    resources = {n: r.model_copy(update={"capacity": r.capacity * 10 ** dice.uniform(-1, 1)}) for n, r in base.resources.items()}
    weights, cache = spec.weight_bytes, rows * spec.kv_bytes_per_token_layer * spec.layers
    sizes = {
        "gpu": spec.dense_bytes + dice.uniform(0.3, 1.5) * (weights - spec.dense_bytes) + dice.uniform(0, 2) * cache + 4e5,
        "cpu": dice.uniform(0.5, 1.2) * weights + dice.uniform(0.2, 2) * cache, "pinned": dice.uniform(0.1, 2) * weights,
    }  # fmt: skip
    memories = {n: m.model_copy(update={"bytes": int(sizes[n]), "usable": 1.0}) for n, m in base.memories.items()}
    return base.model_copy(update={"resources": resources, "memories": memories})


def workload(dice: random.Random, equal: bool) -> Workload:
    longest = dice.randint(2, 12)
    prompt = Fixed(tokens=longest) if equal else Uniform(min=dice.randint(1, longest), max=longest)
    return Workload(name="small", source="a test", prompt=prompt, generation=Fixed(tokens=dice.randint(1, 5)))


def space(dice: random.Random, box: Machine, spec: ModelSpec) -> Space:
    def some(most: int, count: int) -> tuple[int, ...]:
        return tuple(sorted(dice.sample(range(1, most + 1), count)))

    statics = tuple(sorted(dice.sample(range(spec.experts + 1), dice.randint(1, 3))))
    chosen = tuple(dice.sample(orders(box), dice.randint(1, 3)))
    parts = dice.choice((1, 2))  # that divide the micro-batches: the bound takes a smaller last piece for a fraction of one
    sizes = tuple(parts * m for m in some(6, 2))
    return Space(chosen, sizes, some(5, dice.randint(1, 3)), statics, tuple({1, parts}), dice.choice((None, None, 1, 3)))


def plan_of(job: Job) -> Plan:
    scheduler = job.fresh()
    found = list(scheduler.on(0, Started(CostModel(job.machine, job.model))))
    for r in job.requests:
        found += scheduler.on(0, Arrived(r, last=r is job.requests[-1]))
    (plan,) = found
    return plan


def bound_s(job: Job) -> float:
    """The roofline bound by sums over all tasks of the job's own Plan, task by task."""
    costs, plan = CostModel(job.machine, job.model), plan_of(job)
    lanes = [lane.name for lane in job.machine.lanes]
    loads = {phase: [0.0] * (len(lanes) + len(costs.resources)) for phase in ("prefill", "decode")}
    layer: dict[str, dict[str, list[list[float]]]] = {"prefill": {}, "decode": {}}
    caches: dict[str, dict[str, list[list[float]]]] = {"prefill": {}, "decode": {}}
    chain = 0.0
    for i in range(len(plan)):
        if plan.lane[i] < 0:
            continue
        lane, work, phase = plan.lanes[plan.lane[i]], plan.works[plan.work[i]], PHASES[plan.phase[i]]
        vector = price(costs, lanes, lane, work)
        if work.op in WEIGHTS:
            layer[phase].setdefault(f"{work.op} {work.variant} {plan.page[i]}", []).append(vector)
            continue
        if work.op in ("kv_to_gpu", "kv_to_cpu"):
            caches[phase].setdefault(work.op, []).append(vector)
            continue
        loads[phase] = [a + b for a, b in zip(loads[phase], vector, strict=True)]
        if phase == "decode" and plan.microbatch[i] == 0:
            chain += vector[lanes.index(lane)]
    for phase, copies in caches.items():  # all but two, that may run beside the other phase
        for vectors in copies.values():
            share = max(0, len(vectors) - 2) / len(vectors)
            loads[phase] = [a + share * sum(b) for a, b in zip(loads[phase], zip(*vectors, strict=True), strict=True)]
    streamed = {"prefill": job.model.moe_layers, "decode": max(0, (job.lengths[0] - 1) * job.model.moe_layers - 3)}
    for phase, parts in layer.items():
        for vectors in parts.values():
            loads[phase] = [a + streamed[phase] * b for a, b in zip(loads[phase], vectors[0], strict=True)]
    return max(loads["prefill"]) + max(*loads["decode"], chain)


def price(costs: CostModel, lanes: list[str], lane: str, work) -> list[float]:
    latency_ps, demands = costs.row(lane, work)
    vector = [0.0] * (len(lanes) + len(costs.resources))
    solo = max((amount / min(costs.capacity[k], cap) for k, amount, cap, _ in demands), default=0.0)
    vector[lanes.index(lane)] = latency_ps / PS_PER_S + solo
    for k, amount, _, _ in demands:
        vector[len(lanes) + k] = amount / costs.capacity[k]
    return vector
