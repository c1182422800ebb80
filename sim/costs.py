"""The cost model: what a task demands of a machine (a fluid hierarchical roofline).

A task has a fixed latency and then a demand vector over resources, each entry with a rate cap; its
solo time is max over k of amount_k / min(capacity_k, cap_k) (Hierarchical Roofline Model, eq. 4-8
of MoE-Lightning 3.2, with caps for what one kernel reaches). The op table gives the caps: either
efficiencies of a roofline, or a measured curve of solo seconds, which is charged to the cores that
the kernel keeps busy.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from sim.body import even_rows, price_body
from sim.errors import UserError
from sim.machines.schema import Lane, Machine, OpRate
from sim.models.spec import ModelSpec
from sim.ops import COPIES, FREE, Component, around_body, components
from sim.plan import PHASES, Plan
from sim.tasks import PS_PER_S, Task, Time, Work


@dataclass(frozen=True, slots=True)
class Prices:
    """c price classes.

    latency_ps [c]; the demands of class i are the slice ptr[i]:ptr[i + 1] of resource (index into
    the machine's resources), amount (FLOPs, bytes or core-seconds), cap (units/s; inf: none) and
    weight.
    """

    latency_ps: NDArray[np.int64]
    ptr: NDArray[np.int32]
    resource: NDArray[np.int16]
    amount: NDArray[np.float64]
    cap: NDArray[np.float64]
    weight: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class PricedPlan:
    """A Plan with the price class of each task, cls [n].

    bodies: by row, those that run task by task; every other task is one piece, whether it has a body
    or not. surplus [n]: tasks that turn out to be needless, which cost nothing; None: no task is.
    """

    plan: Plan
    cls: NDArray[np.int32]
    prices: Prices
    resources: tuple[str, ...]
    capacity: NDArray[np.float64]
    bodies: Mapping[int, PricedPlan] = field(default_factory=dict)
    surplus: NDArray[np.bool_] | None = None


class Costs(Protocol):
    """What an engine needs of a cost model."""

    @property
    def resources(self) -> tuple[str, ...]: ...
    @property
    def capacity(self) -> NDArray[np.float64]: ...
    def bind(self, plan: Plan) -> PricedPlan: ...
    def task(self, task: Task) -> Prices: ...


class Routing(Protocol):
    """Where the rows of each expert come from (a recorded trace)."""

    def expert_tokens(self, requests: tuple[int, ...], phase: str, step: int, layer: int) -> tuple[int, ...] | None:
        """Rows of each expert [experts] of one routed task; None where the trace does not tell."""
        ...


Demand = tuple[str, float, float, float]
"""(resource, amount, cap in units/s, weight)"""

Row = tuple[Time, list[tuple[int, float, float, float]]]
"""latency_ps and (resource index, amount, cap, weight) of one class."""


class CostModel:
    """Prices tasks of one model on one machine. Also the `Profile` that schedulers see.

    Raises UserError where the machine's op table has no row for what a task needs.
    """

    def __init__(self, machine: Machine, model: ModelSpec, routing: Routing | None = None) -> None:
        self.machine = machine
        self.model = model
        self.routing = routing
        self.resources = tuple(machine.resources)
        self.capacity = np.array([r.capacity for r in machine.resources.values()], np.float64)
        self._index = {name: i for i, name in enumerate(self.resources)}
        self._rates = _rate_table(machine, model.dtype)
        self._variants = {(lane, op.partition(".")[2]) for lane, op in self._rates if not op.startswith("task.")}
        self._rows: dict[tuple[str | None, Work, bool], Row] = {}

    @cached_property
    def digest(self) -> str:
        """Hash of what a scheduler can learn from the profile: the machine and the model."""
        return hashlib.sha256(f"{self.machine.digest} {self.model!r}".encode()).hexdigest()

    @property
    def lanes(self) -> tuple[Lane, ...]:
        return self.machine.lanes

    def memory_bytes(self) -> dict[str, int]:
        """Budget of each memory."""
        return {name: m.budget_bytes for name, m in self.machine.memories.items()}

    def servers(self, lane: str) -> int | None:
        """Tasks that the lane runs at a time; None where the machine has no such lane."""
        return self.machine.lane[lane].servers if lane in self.machine.lane else None

    def estimate(self, task: Task) -> Time:
        """Solo time of a task in picoseconds, under expected routing."""
        return self.solo_ps(task.lane, task.work)

    def solo_ps(self, lane: str | None, work: Work) -> Time:
        latency, demands = self.row(lane, work)
        seconds = max((amount / min(self.capacity[k], cap) for k, amount, cap, _ in demands), default=0.0)
        return latency + int(np.ceil(seconds * PS_PER_S))

    def row(self, lane: str | None, work: Work, around: bool = False) -> Row:
        """Price of one (lane, work), or of what is left of it around a body; cached."""
        key = (lane, work, around)
        if key not in self._rows:
            self._rows[key] = self._price(lane, work, around)
        return self._rows[key]

    def task(self, task: Task) -> Prices:
        return pack([self.row(task.lane, self._routed(task.work, task.requests, task.phase, task.step, task.layer))])

    def bind(self, plan: Plan) -> PricedPlan:
        """Price every task of a Plan: one row per distinct (lane, work), routed tasks by the trace.

        Bodies are priced where the machine has their lanes; a task with another one is priced whole.
        """
        nl, runs = len(plan.lanes) + 1, self._runs(plan)
        kinds = len(plan.works) * nl
        key = plan.work.astype(np.int64) * nl + (plan.lane + 1)
        key[runs] += kinds
        used = np.zeros(2 * kinds, np.bool_)
        used[key] = True
        keys = [(k % nl, k % kinds // nl, k >= kinds) for k in np.flatnonzero(used).tolist()]
        rows = [self.row(plan.lanes[lane - 1] if lane else None, plan.works[work], around) for lane, work, around in keys]
        place = np.cumsum(used, dtype=np.int32) - 1
        cls = place[key]
        if self.routing is not None:
            self._bind_routed(plan, cls, rows, set(runs.tolist()))
        return PricedPlan(plan, cls, pack(rows), self.resources, self.capacity, self._bind_bodies(plan, runs))

    def _runs(self, plan: Plan) -> NDArray[np.intp]:
        """Rows whose bodies run task by task."""
        known = [all(lane in self.machine.lane for lane in body.lanes) for body in plan.bodies]
        return np.flatnonzero(np.array([*known, False])[plan.body])

    def _bind_bodies(self, plan: Plan, runs: NDArray[np.intp]) -> dict[int, PricedPlan]:
        priced: dict[tuple[int, tuple[int, ...]], PricedPlan] = {}
        found = {}
        for i in runs.tolist():
            key = int(plan.body[i]), self._expert_rows(plan, i)
            if key not in priced:
                priced[key] = price_body(self, plan.bodies[key[0]], key[1])
            found[i] = priced[key]
        return found

    def _expert_rows(self, plan: Plan, i: int) -> tuple[int, ...]:
        """Rows of each expert of task i: as the trace tells in the experts' order, else even; () where it has no experts."""
        work, rows = plan.works[plan.work[i]], None
        if work.experts == 0:
            return ()
        if self.routing is not None:
            rows = self.routing.expert_tokens(*_pass_of(plan, i))
        return even_rows(work.tokens, work.experts, self.model.top_k) if rows is None else rows

    def _bind_routed(self, plan: Plan, cls: NDArray[np.int32], rows: list[Row], runs: set[int]) -> None:
        routed_work = np.array([w.experts > 0 for w in plan.works])
        classes: dict[tuple[str, Work], int] = {}
        for i in np.flatnonzero(routed_work[plan.work]).tolist():
            work = plan.works[plan.work[i]]
            found = self._routed(work, *_pass_of(plan, i))
            if found is work or i in runs:
                continue
            key = (plan.lanes[plan.lane[i]], found)
            if key not in classes:
                classes[key] = len(rows)
                rows.append(self.row(*key))
            cls[i] = classes[key]

    def _routed(self, work: Work, requests: tuple[int, ...], phase: str, step: int, layer: int) -> Work:
        if self.routing is None or work.experts == 0:
            return work
        tokens = self.routing.expert_tokens(requests, phase, step, layer)
        # The order of experts costs nothing: sorted rows make equal prices share a class.
        return work if tokens is None else work._replace(expert_tokens=tuple(sorted(tokens, reverse=True)))

    def _price(self, lane: str | None, work: Work, around: bool) -> Row:
        if lane is None or work.op in FREE:
            return work.latency_ps, []
        where = self.machine.lane.get(lane)
        if where is None:
            raise UserError(f"machine {self.machine.name}: no lane {lane!r}; have {', '.join(self.machine.lane)}")
        if (lane, work.variant) not in self._variants:
            work = work._replace(variant="")  # this machine does it one way only
        if work.op in COPIES:
            latency_s, demands = self._copy(where, work)
        else:
            latency_s, demands = self._compute(where, work, (around_body if around else components)(self.model, work))
        return work.latency_ps + round(latency_s * PS_PER_S), [
            (self._index[name], amount, cap, weight) for name, amount, cap, weight in demands if amount > 0
        ]

    def _rate(self, lane: Lane, op: str) -> OpRate:
        rate = self._rates.get((lane.name, op)) or self._rates.get((lane.name, "*"))
        if rate is None:
            raise UserError(f"machine {self.machine.name}: ops has no row for {op!r} on lane {lane.name!r}; add one, or one for '*'")
        return rate

    def _copy(self, lane: Lane, work: Work) -> tuple[float, list[Demand]]:
        """Bytes cross every resource of the path; the cores pay for moving them where a thread copies."""
        rate = self._rate(lane, f"{work.op}.{work.variant}" if work.variant else work.op)
        demands = []
        for k, name in enumerate(lane.path):
            resource = self.machine.resources[name]
            scale = rate.bytes_scale if resource.kind == "memory" else 1.0
            demands.append((name, work.bytes * scale, resource.capacity * scale * (rate.bytes_efficiency if k == 0 else 1.0), 1.0))
        if lane.cores is not None and rate.curve:
            busy_s = ratio_at(rate.ratio, work.bytes) * curve_at(rate.curve, work.bytes)
            demands.append((lane.cores, busy_s, float(lane.threads), float(lane.threads)))
        return rate.latency_s, demands

    def _compute(self, lane: Lane, work: Work, parts: Sequence[Component]) -> tuple[float, list[Demand]]:
        """Sum of the components: a roofline over their FLOPs and bytes, or their measured seconds, which
        a row task.OP corrects by what whole runs showed. What is measured takes as long alone: its traffic, which was
        fitted beside others at one size, is never more than the memory moves meanwhile."""
        whole = self._rates.get((lane.name, f"task.{work.op}"))
        latency_s = whole.latency_s if whole else 0.0
        busy_s = measured = flops = flops_at_peak = moved = moved_at_peak = 0.0
        latency_s += sum(self._rate(lane, name).latency_s for name in {part.op for part in parts})
        for part in parts:
            rate = self._rate(lane, part.op)
            if rate.curve:
                busy_s += part.units * curve_at(rate.curve, part.rows)
                measured += part.cost.bytes * rate.bytes_scale
                continue
            flops += part.cost.flops
            flops_at_peak += part.cost.flops / rate.flops_efficiency
            moved += part.cost.bytes
            moved_at_peak += part.cost.bytes / rate.bytes_efficiency
        busy_s *= ratio_at(whole.ratio, size_of(work)) if whole else 1.0
        demands = []
        if flops and lane.compute:
            peak = self.machine.resources[lane.compute].capacity
            demands.append((lane.compute, flops, peak * flops / flops_at_peak, 1.0))
        if (moved or measured) and lane.memory:
            peak = self.machine.resources[lane.memory].capacity
            moved += min(measured, busy_s * peak)
            demands.append((lane.memory, moved, peak * moved / moved_at_peak if moved_at_peak else np.inf, 1.0))
        if busy_s and lane.cores:
            threads = float(lane.threads)
            demands.append((lane.cores, busy_s * threads, threads, threads))
        return latency_s + self._all_reduce_s(lane, work), demands

    def _all_reduce_s(self, lane: Lane, work: Work) -> float:
        """Tensor parallelism sums partial rows [tokens, hidden] over the ranks behind the O projection and
        behind the experts, both in post_attn. Ring: 2 (n - 1) / n of the bytes cross each rank's link."""
        if lane.ranks == 1 or work.op != "post_attn":
            return 0.0
        rate = self._rate(lane, "all_reduce")
        assert lane.peers is not None, lane
        crossed = 2 * (lane.ranks - 1) / lane.ranks * work.tokens * self.model.hidden * self.model.dtype_bytes
        return 2 * (rate.latency_s + crossed / (self.machine.resources[lane.peers].capacity * rate.bytes_efficiency))


def _pass_of(plan: Plan, i: int) -> tuple[tuple[int, ...], str, int, int]:
    """Requests, phase, step and layer of task i: what a routing trace is asked by."""
    requests = plan.groups[plan.group[i]] if plan.group[i] >= 0 else ()
    return requests, PHASES[plan.phase[i]], int(plan.step[i]), int(plan.layer[i])


def size_of(work: Work) -> float:
    """What the ratios of whole tasks are read at: cache entries for decode attention, bytes of a copy, else tokens (of
    experts alone: their rows)."""
    return float(work.context if work.op == "attn_decode" else work.bytes or work.tokens or sum(work.expert_tokens))


def ratio_at(ratios: Sequence[tuple[float, float]], size: float) -> float:
    """Linear in the logarithm of the size between measured points, flat beyond them; 1 without any."""
    if not ratios:
        return 1.0
    x, y = zip(*ratios, strict=True)
    return float(np.interp(np.log(max(size, 1.0)), np.log(x), y))


def curve_at(curve: Sequence[tuple[float, float]], rows: float) -> float:
    """Seconds per unit at `rows` (for a copy: seconds at that many bytes): linear between measured
    points, flat below them; above them the last two points' line goes on (never below the last point)."""
    x, y = zip(*curve, strict=True)
    if rows <= x[-1] or len(x) == 1:
        return float(np.interp(rows, x, y))
    slope = max(0.0, (y[-1] - y[-2]) / (x[-1] - x[-2]))
    return float(y[-1] + slope * (rows - x[-1]))


def pack(rows: Sequence[Row]) -> Prices:
    """Rows of (latency_ps, demands) as arrays."""
    flat = [d for _, demands in rows for d in demands]
    ptr = np.zeros(len(rows) + 1, np.int32)
    np.cumsum([len(demands) for _, demands in rows], out=ptr[1:])
    return Prices(
        latency_ps=np.array([latency for latency, _ in rows], np.int64),
        ptr=ptr,
        resource=np.array([d[0] for d in flat], np.int16),
        amount=np.array([d[1] for d in flat], np.float64),
        cap=np.array([d[2] for d in flat], np.float64),
        weight=np.array([d[3] for d in flat], np.float64),
    )


def _rate_table(machine: Machine, dtype: str) -> dict[tuple[str, str], OpRate]:
    """Rows by (lane, op); a row for the model's dtype wins over one for any."""
    table: dict[tuple[str, str], OpRate] = {}
    for wanted in ("*", dtype):
        for row in machine.ops:
            if row.dtype == wanted:
                table[(row.lane, row.op)] = row
    return table
