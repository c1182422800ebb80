"""The cost model: what a task demands of a machine (a fluid hierarchical roofline).

A task has a fixed latency and then a demand vector over resources, each entry with a rate cap; its
solo time is max over k of amount_k / min(capacity_k, cap_k) (Hierarchical Roofline Model, eq. 4-8
of MoE-Lightning 3.2, with caps for what one kernel reaches; see `sim.demands`). Here Plans are priced: one row per
distinct task, routed ones by the trace.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from sim.body import even_rows, price_body
from sim.demands import Row, TaskDemands
from sim.machines.schema import Lane, Machine
from sim.models.spec import ModelSpec
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
        self._demands = TaskDemands(machine, model)
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
            self._rows[key] = self._demands.row(lane, work, around)
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

def _pass_of(plan: Plan, i: int) -> tuple[tuple[int, ...], str, int, int]:
    """Requests, phase, step and layer of task i: what a routing trace is asked by."""
    requests = plan.groups[plan.group[i]] if plan.group[i] >= 0 else ()
    return requests, PHASES[plan.phase[i]], int(plan.step[i]), int(plan.layer[i])


def pack(rows: Sequence[Row]) -> Prices:
    """Rows of (latency_ps, demands) as arrays."""
    flat = [d for _, demands in rows for d in demands]
    return Prices(
        latency_ps=np.array([latency for latency, _ in rows], np.int64),
        ptr=np.array([0, *accumulate(len(demands) for _, demands in rows)], np.int32),
        resource=np.array([d[0] for d in flat], np.int16),
        amount=np.array([d[1] for d in flat], np.float64),
        cap=np.array([d[2] for d in flat], np.float64),
        weight=np.array([d[3] for d in flat], np.float64),
    )
