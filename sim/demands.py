"""What one task demands of a machine: a fixed latency and amounts of its resources, each with a rate cap.

The op table gives the caps: either efficiencies of a roofline, or a measured curve of solo seconds, which is charged to
the cores that the kernel keeps busy.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sim.errors import UserError
from sim.machines.op_table import OpTable
from sim.machines.schema import Lane, Machine
from sim.models.spec import ModelSpec
from sim.ops import COPIES, FREE, Component, around_body, components
from sim.tasks import PS_PER_S, Time, Work

Demand = tuple[str, float, float, float]
"""(resource, amount, cap in units/s, weight)"""

Row = tuple[Time, list[tuple[int, float, float, float]]]
"""latency_ps and (resource index, amount, cap, weight) of one class."""


class TaskDemands:
    """Prices tasks of one model on one machine, each as if it ran alone.

    Raises UserError where the machine has no such lane, or its op table no row for what a task needs.
    """

    def __init__(self, machine: Machine, model: ModelSpec) -> None:
        self.machine, self.model = machine, model
        self._index = {name: i for i, name in enumerate(machine.resources)}
        self._table = OpTable(machine, model.dtype)

    def row(self, lane: str | None, work: Work, around: bool = False) -> Row:
        """Price of one (lane, work), or of what is left of it around a body."""
        if lane is None or work.op in FREE:
            return work.latency_ps, []
        where = self.machine.lane.get(lane)
        if where is None:
            raise UserError(f"machine {self.machine.name}: no lane {lane!r}; have {', '.join(self.machine.lane)}")
        if not self._table.has_variant(where, work.variant):
            work = work._replace(variant="")  # this machine does it one way only
        if work.op in COPIES:
            latency_s, demands = self._copy(where, work)
        else:
            latency_s, demands = self._compute(where, work, (around_body if around else components)(self.model, work))
        return work.latency_ps + round(latency_s * PS_PER_S), [
            (self._index[name], amount, cap, weight) for name, amount, cap, weight in demands if amount > 0
        ]

    def _copy(self, lane: Lane, work: Work) -> tuple[float, list[Demand]]:
        """Bytes cross every resource of the path; the cores pay for moving them where a thread copies."""
        rate = self._table.rate(lane, f"{work.op}.{work.variant}" if work.variant else work.op)
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
        whole = self._table.find(lane, f"task.{work.op}")
        latency_s = whole.latency_s if whole else 0.0
        busy_s = measured = flops = flops_at_peak = moved = moved_at_peak = 0.0
        latency_s += sum(self._table.rate(lane, name).latency_s for name in dict.fromkeys(part.op for part in parts))
        for part in parts:
            rate = self._table.rate(lane, part.op)
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
        rate = self._table.rate(lane, "all_reduce")
        assert lane.peers is not None, lane
        crossed = 2 * (lane.ranks - 1) / lane.ranks * work.tokens * self.model.hidden * self.model.dtype_bytes
        return 2 * (rate.latency_s + crossed / (self.machine.resources[lane.peers].capacity * rate.bytes_efficiency))


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
