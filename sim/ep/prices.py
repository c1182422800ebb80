"""What each op of expert parallelism demands of its rank's GPU and of the links, by the machine's op table.

FLOPs are counted in seconds of the bf16 peak: a type with another peak costs more or fewer of them. A
row of the table may give a curve instead: seconds at so many descriptors, for what a warp does alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import chain

from sim.demands import Demand, curve_at
from sim.ep import names
from sim.ep.layer import MoELayer
from sim.fabric import put_price, topology_of
from sim.machines.op_table import OpTable
from sim.machines.parts import Lane, OpRate
from sim.machines.schema import Machine
from sim.tasks import Work

Price = tuple[float, list[Demand]]
"""Latency in s, and demands."""

ALONE = frozenset({"launch", "enter", "scan", "doorbell", "fetch"})
"""Ops that take time and nothing that others want."""


@dataclass(frozen=True)
class Kernels:
    """What a system's kernels are, beside the op table.

    stages: kernels of each stage, whose gaps add up. tile_rows: rows of a tile of its grouped GEMMs. sorts: rows come in by rank,
    and a kernel on either side of the experts puts them in order of experts, and back. gemm_rows: rows of a tile of a persistent
    kernel. resident: blocks of a persistent kernel that share a GPU.
    """

    stages: Mapping[str, int]
    tile_rows: int = 128
    sorts: bool = False
    gemm_rows: int = 128
    resident: int = 1


def _in_turn(*kernels: list[Demand]) -> list[Demand]:
    """Kernels one after another as one: all that they demand, at rates at which it takes as long as they do."""
    total_s = sum(max((amount / cap for _, amount, cap, _ in one), default=0.0) for one in kernels)
    amounts: dict[str, float] = {}
    for name, amount, _, _ in chain(*kernels):
        amounts[name] = amounts.get(name, 0.0) + amount
    return [(name, amount, amount / total_s, 1.0) for name, amount in amounts.items()]


class OpPrices:
    """Prices one (lane, work); the work says how many rows, columns and bytes there really are."""

    def __init__(self, machine: Machine, layer: MoELayer, kernels: Kernels) -> None:
        self.machine, self.layer, self.kernels = machine, layer, kernels
        self.table = OpTable(machine, layer.dtype)
        self._of: Mapping[str, Callable[[Lane, Work, OpRate], Price]] = {
            "put": self._put, "signal": self._signal, "gate": self._kernel, "permute": self._kernel, "experts": self._kernel,
            "unpermute": self._kernel, "gate_tile": self._tile, "gemm0": self._tile, "gemm1": self._tile, "combine": self._tile,
            "dispatch": self._move, "pull": self._move, "push": self._move, **dict.fromkeys(ALONE, self._alone),
        }  # fmt: skip

    @cached_property
    def flop(self) -> float:
        """FLOPs of bf16 that take as long as one of the layer's type."""
        return topology_of(self.machine).gpu.bf16_per_flop(self.layer.dtype)

    def price(self, lane: str, work: Work) -> Price:
        """Raises UserError where the op table has no row for it, KeyError for an op that is none of ours."""
        where = self.machine.lane[lane]
        return self._of[work.op](where, work, self.table.row(where, work))

    def _alone(self, lane: Lane, work: Work, rate: OpRate) -> Price:
        kernels = self.kernels.stages.get(work.variant, 1) if work.op == "enter" else 1
        return rate.latency_s * kernels + (curve_at(rate.curve, work.tokens) if rate.curve else 0.0), []

    def _put(self, lane: Lane, work: Work, rate: OpRate) -> Price:
        return put_price(self.machine, lane, work, rate)

    def _signal(self, lane: Lane, work: Work, rate: OpRate) -> Price:
        """A word that overtakes what else is on the wire; its bytes take their time and hinder nobody."""
        latency_s, crossed = put_price(self.machine, lane, work, rate)
        return latency_s + max(amount / cap for _, amount, cap, _ in crossed), []

    def _kernel(self, lane: Lane, work: Work, rate: OpRate) -> Price:
        """A kernel over all SMs: a roofline. One that shares the GPU with a communication kernel gets the SMs that are left."""
        demands = self._roofline(lane, *self._kernel_cost(work), rate, 1)
        if work.op == "experts" and work.experts > 1 and self.kernels.sorts:
            demands = _in_turn(demands, self._roofline(lane, 0.0, self.layer.sort(work.tokens).bytes, rate, 1))
        if demands and lane.cores is not None:
            solo_s = max(amount / cap for _, amount, cap, _ in demands)
            sms = self.machine.resources[lane.cores].capacity
            demands.append((lane.cores, sms * solo_s, sms, 1.0))
        return rate.latency_s * self.kernels.stages.get(work.op, 1), demands

    def _kernel_cost(self, work: Work) -> tuple[float, float]:
        """FLOPs and bytes."""
        whole = {"gate": self.layer.gate, "permute": self.layer.permute, "unpermute": self.layer.unpermute}
        if work.op in whole:
            cost = whole[work.op](work.tokens)
        else:
            cost = self.layer.grouped_gemms(work.expert_tokens or (work.tokens,), self.kernels.tile_rows)
        return cost.flops, cost.bytes

    def _tile(self, lane: Lane, work: Work, rate: OpRate) -> Price:
        """On one block, with its share of the tensor cores. A tile is computed whole, however few rows it has."""
        own = self._roofline(lane, *self._tile_cost(work, rate.bytes_scale), rate, self.kernels.resident)
        return rate.latency_s, self._with_stores(own, work, rate)

    def _tile_cost(self, work: Work, scale: float) -> tuple[float, float]:
        """FLOPs, and bytes between HBM and the block: `scale` of the operands, the rest is found in the L2 cache."""
        s, b, columns = self.layer, self.layer.element_bytes, work.columns
        full = max(self.kernels.gemm_rows, work.tokens)
        if work.op == "combine":
            rows = s.top_k + 1 if work.variant == "reduce" else 3  # all results of a token at once, or one more added to it
            return 2.0 * work.tokens * columns, float(rows * work.tokens * columns * b)
        depth = s.ffn if work.op == "gemm1" else s.hidden
        matrices = s.up_matrices if work.op == "gemm0" else 1
        operands = (work.tokens + columns * matrices) * depth * b * scale
        stored = 0 if work.bytes else work.tokens * columns * b
        return 2.0 * full * depth * columns * matrices, operands + stored

    def _move(self, lane: Lane, work: Work, rate: OpRate) -> Price:
        """A block that copies rows, within its GPU or over a link."""
        row_bytes = work.columns * self.layer.element_bytes if work.columns else self.layer.row_bytes
        moved = float(work.tokens * row_bytes * (1 if work.bytes else 2))
        return rate.latency_s, self._with_stores(self._roofline(lane, 0.0, moved, rate, self.kernels.resident), work, rate)

    def _roofline(self, lane: Lane, flops: float, moved: float, rate: OpRate, blocks: int) -> list[Demand]:
        """One of so many `blocks`, with its share of the tensor cores and of HBM."""
        demands = []
        if flops and lane.compute is not None:
            peak = self.machine.resources[lane.compute].capacity
            demands.append((lane.compute, flops * self.flop, peak * rate.flops_efficiency / blocks, 1.0))
        if moved and lane.memory is not None:
            peak = self.machine.resources[lane.memory].capacity
            demands.append((lane.memory, moved, peak * rate.bytes_efficiency / blocks, 1.0))
        return demands

    def _with_stores(self, own: list[Demand], work: Work, rate: OpRate) -> list[Demand]:
        """And what it stores into (or loads from) another rank's memory, at most `rate.bytes_per_s`."""
        if not work.bytes:
            return own
        source, _, target = work.variant.partition(".")
        put = self.machine.lane[names.put(int(source), int(target))]
        table = self.table.row(put, Work("put"))
        _, crossed = put_price(self.machine, put, work, table.model_copy(update={"sms": 0.0, "bytes_per_s": rate.bytes_per_s}))
        merged: dict[str, tuple[float, float]] = {}
        for name, amount, cap, _ in (*own, *crossed):
            had, least = merged.get(name, (0.0, cap))
            merged[name] = had + amount, min(cap, least)
        return [(name, amount, cap, 1.0) for name, (amount, cap) in merged.items() if amount]
