"""The body of one task: tiles inside a persistent kernel, simulated like any Plan.

The kernel's blocks are the servers of a lane `blocks`; a block has its multiprocessor's share of the
GPU's FLOP/s and bytes/s as its rate cap. A free block takes the first tile in the order of tickets
that has all it needs (lane order "ready"; a tile's priority is its ticket). The kernel's blocks draw
the next ticket whatever it needs and wait with it in hand: in an order made so that few wait, the
difference is small (tests/sim/test_body.py measures it against an exact model).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from sim.costs import PricedPlan, Prices, Row, curve_at, pack
from sim.engines.run import SKIPPED, Run
from sim.errors import UserError
from sim.machines.schema import Lane, Machine, OpRate
from sim.ops import tiles as moe
from sim.plan import Plan, plan_of
from sim.tasks import PS_PER_S, Task, Time
from traces.timeline import Timeline, concatenate

LANE = "blocks"

TICKET_S = 1.0e-6
"""Guessed: draw, poll, fence and count of one tile, where no measurement says otherwise."""

_CODE = {name: code for code, name in enumerate(moe.OPS)}


def with_blocks(machine: Machine, blocks: int, flops_efficiency: float = 0.5, bytes_efficiency: float = 0.8) -> Machine:
    """`machine` with a lane for the blocks of a persistent kernel on its GPU."""
    gpu = machine.lane.get("gpu")
    if gpu is None or gpu.compute is None or gpu.memory is None:
        raise UserError(f"machine {machine.name}: needs a lane 'gpu' with compute and memory to hold the blocks of a kernel")
    lane = Lane(name=LANE, order="ready", servers=blocks, kind="compute", compute=gpu.compute, memory=gpu.memory, home=gpu.home)
    rate = OpRate(
        op="*", lane=LANE, latency_s=TICKET_S, flops_efficiency=flops_efficiency, bytes_efficiency=bytes_efficiency,
        source="guessed: latency of a ticket, what tiles of a persistent kernel reach of the peaks",
    )  # fmt: skip
    return machine.model_copy(update={"lanes": (*machine.lanes, lane), "ops": (*machine.ops, rate)})


def even_rows(shape: moe.Shape) -> tuple[int, ...]:
    """Rows of each expert if the experts that independent uniform routing touches share them evenly."""
    untouched = (1 - shape.top_k / shape.experts) ** shape.tokens
    touched = max(shape.top_k, round(shape.experts * (1 - untouched)))
    base, more = divmod(shape.routes, touched)
    return tuple(base + (e < more) for e in range(touched)) + (0,) * (shape.experts - touched)


class TileCosts:
    """Prices the tiles of one layer; implements `sim.costs.Costs` and `sim.events.Profile`.

    expert_rows [experts]: what the router chose; None: `even_rows`. element_bytes: of weights and activations.
    blocks_per_sm: blocks that share a multiprocessor; one alone there has all of its share.
    A tile costs its roofline at that share of the peaks, or, where the machine has a curve for
    its op, the measured seconds per unit at its rows (units: elements of its part of a weight
    matrix; of a combine tile the columns). A surplus tile costs nothing.
    """

    def __init__(
        self, machine: Machine, tiles: moe.Tiles, element_bytes: int, expert_rows: Sequence[int] | None = None, *, blocks_per_sm: int = 1
    ) -> None:
        if LANE not in machine.lane:
            raise UserError(f"machine {machine.name}: has no lane {LANE!r}; sim.body.with_blocks adds one")
        self.machine, self.tiles, self.element_bytes, self.blocks_per_sm = machine, tiles, element_bytes, blocks_per_sm
        rows = tuple(even_rows(tiles.shape) if expert_rows is None else expert_rows)
        if sum(rows) != tiles.shape.routes:
            s = tiles.shape
            raise UserError(f"expert_rows: sum to {sum(rows)}; {s.tokens} tokens and top-{s.top_k} make {s.routes}")
        used = tiles.used_slots(rows)
        self.slot_rows = np.zeros(tiles.slots, np.int64)
        self.slot_rows[: len(used)] = used
        self.resources = tuple(machine.resources)
        self.capacity = np.array([r.capacity for r in machine.resources.values()], np.float64)
        self._rates = {row.op: row for row in machine.ops if row.lane == LANE}
        self._rows: dict[tuple[int, int, int], Row] = {}

    @property
    def lanes(self) -> tuple[Lane, ...]:
        return (self.machine.lane[LANE],)

    @cached_property
    def digest(self) -> str:
        return hashlib.sha256(f"{self.machine.digest} {self.tiles!r} {self.element_bytes} {self.blocks_per_sm}".encode()).hexdigest()

    def estimate(self, task: Task) -> Time:
        """Solo time of a tile in ps at the expected rows."""
        latency, demands = self._row(*self.sizes(plan_of([replace(task, number=0, deps=(), releases=())]))[0].tolist())
        return latency + int(np.ceil(max((amount / cap for _, amount, cap, _ in demands), default=0.0) * PS_PER_S))

    def bind(self, plan: Plan) -> PricedPlan:
        keys, cls = np.unique(self.sizes(plan), axis=0, return_inverse=True)
        prices = pack([self._row(*key) for key in keys.tolist()])
        return PricedPlan(plan, cls.reshape(-1).astype(np.int32), prices, self.resources, self.capacity)

    def task(self, task: Task) -> Prices:
        return self.bind(plan_of([replace(task, number=0, deps=(), releases=())])).prices

    def surplus(self, plan: Plan) -> NDArray[np.bool_]:
        """[n], tiles of slots that this routing does not fill."""
        op, rows, _ = self.sizes(plan).T
        return np.asarray((op >= 0) & (rows == 0))

    def sizes(self, plan: Plan) -> NDArray[np.int64]:
        """[n, 3]: kind, rows and columns of each tile; kind -1 for a join."""
        t, s = self.tiles.tiling, self.tiles.shape
        op = np.array([_CODE.get(work.op, -1) for work in plan.works])[plan.work]
        block, chunk = plan.microbatch.astype(np.int64), plan.page.astype(np.int64)
        slotted = (op == moe.GATE_UP) | (op == moe.DOWN)
        rows = np.where(slotted, self.slot_rows[np.where(slotted, block, 0)], np.minimum(t.tokens, s.tokens - block * t.tokens))
        widths = (t.experts, s.experts), (1, 1), (t.gate_up, s.ffn), (t.down, s.hidden), (t.combine, s.hidden), (0, 0)
        width, whole = np.array(widths)[op].T
        columns = np.minimum(width, whole - chunk * width)
        return np.where(op[:, None] < 0, -1, np.stack([op, rows, columns], axis=1))

    def _row(self, op: int, rows: int, columns: int) -> Row:
        key = op, rows, columns
        if key not in self._rows:
            self._rows[key] = (0, []) if op < 0 or rows == 0 else self._price(*key)
        return self._rows[key]

    def _price(self, op: int, rows: int, columns: int) -> Row:
        rate = self._rates.get(moe.OPS[op]) or self._rates.get("*")
        if rate is None:
            raise UserError(f"machine {self.machine.name}: ops has no row for {moe.OPS[op]!r} on lane {LANE!r}; add one, or one for '*'")
        lane, latency = self.machine.lane[LANE], round(rate.latency_s * PS_PER_S)
        if rate.curve:
            assert lane.cores is not None, f"lane {LANE} has a curve for {moe.OPS[op]} but no cores"
            return latency, [self._demand(lane.cores, curve_at(rate.curve, rows) * units(op, columns, self.tiles.shape), 1.0)]
        cost = moe.cost(op, rows, columns, self.tiles.shape, self.element_bytes)
        wanted = ((lane.compute, cost.flops, rate.flops_efficiency), (lane.memory, cost.bytes, rate.bytes_efficiency))
        return latency, [self._demand(name, amount, self._share(name) * part) for name, amount, part in wanted if name and amount]

    def _share(self, resource: str) -> float:
        return self.machine.resources[resource].capacity * self.blocks_per_sm / self.machine.lane[LANE].servers

    def _demand(self, resource: str, amount: float, cap: float) -> tuple[int, float, float, float]:
        return self.resources.index(resource), amount, cap, 1.0


def units(op: int, columns: int, shape: moe.Shape) -> int:
    """What a curve of tile seconds counts by: elements of the weights that a tile reads, or columns."""
    weights = {moe.ROUTE: shape.hidden, moe.GATE_UP: 2 * shape.hidden, moe.DOWN: shape.ffn}
    return columns * weights.get(op, 1)


def run_body(plan: Plan, costs: TileCosts) -> Run:
    """The body's tiles on simulated time, by the compiled engine; surplus ones end as skipped."""
    from sim.engines.compiled import run_compiled  # numba

    return with_skipped(run_compiled(costs.bind(plan), costs.lanes, {}), plan, costs)


def with_skipped(run: Run, plan: Plan, costs: TileCosts) -> Run:
    """A run of `plan` whose surplus tiles are marked."""
    status = run.status.copy()
    status[costs.surplus(plan)] = SKIPPED
    return replace(run, status=status)


def expand(outer: Timeline, number: int, body: Timeline) -> Timeline:
    """`outer` with the tiles of task `number` behind it, shifted to that task's start."""
    (row,) = np.flatnonzero(outer.task_id == number)
    begin = int(outer.start_ps[row]) - int(body.start_ps.min(initial=0))
    return concatenate([outer, replace(body, start_ps=body.start_ps + begin, end_ps=body.end_ps + begin)])
