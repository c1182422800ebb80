"""The bodies of tasks on simulated time: the blocks of a persistent kernel, and what its tiles cost.

The kernel's blocks are the servers of a lane `blocks`; a block has its multiprocessor's share of the
GPU's FLOP/s and bytes/s as its rate cap. A free block takes the first tile in the order of tickets
that has all it needs (lane order "ready"; a tile's priority is its ticket). The kernel's blocks draw
the next ticket whatever it needs and wait with it in hand: in an order made so that few wait, the
difference is small (tests/sim/test_body.py measures it against an exact model).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from sim.errors import UserError
from sim.machines.schema import Lane, Machine, OpRate
from sim.plan import Plan

if TYPE_CHECKING:
    from sim.costs import CostModel, PricedPlan

LANE = "blocks"

TICKET_S = 1.0e-6
"""Guessed: draw, poll, fence and count of one tile, where no measurement says otherwise."""

BLOCKS_PER_SM = 4
"""Blocks of the decode form on a multiprocessor (kernels/fused_moe/gpu.py)."""

MULTIPROCESSORS = {"t4": 40, "l4": 58, "a100": 108, "h20": 78, "h100": 132, "h800": 132, "h200": 132}
"""Of each GPU, by its datasheet; others are taken to have as many as the last."""

SLOTTED = frozenset({"gate_up_tile", "down_tile"})
"""Tiles of slot `microbatch`: up to `work.tokens` rows of one expert."""


def with_blocks(
    machine: Machine, blocks: int | None = None, *, per_sm: int = BLOCKS_PER_SM, flops: float = 0.5, bytes: float = 0.8
) -> Machine:
    """`machine` with a lane for the blocks of a persistent kernel on its GPU; one that has it stays as it is.

    blocks: of the whole GPU, `per_sm` on each multiprocessor. flops, bytes: what tiles reach of their block's share.
    Where the lane is counted in threads (or a calibrated GPU in blocks), each is a block, and tiles take the measured seconds of the
    kernels that they are parts of (none on a machine without op times). Raises UserError where lane gpu is none that blocks could share.
    """
    gpu = machine.lane.get("gpu")
    if LANE in machine.lane:
        return machine
    if gpu is not None and gpu.cores is not None:
        return _with_threads(machine, gpu)
    if gpu is None or gpu.compute is None or gpu.memory is None:
        raise UserError(f"machine {machine.name}: needs a lane 'gpu' with compute and memory, or cores, to hold the blocks of a kernel")
    blocks = multiprocessors(machine.name) * gpu.ranks * per_sm if blocks is None else blocks
    share = min(1.0, per_sm / blocks)
    lane = Lane(name=LANE, order="ready", servers=blocks, kind="compute", compute=gpu.compute, memory=gpu.memory, home=gpu.home)
    rate = OpRate(
        op="*", lane=LANE, latency_s=TICKET_S, flops_efficiency=flops * share, bytes_efficiency=bytes * share,
        source="guessed: latency of a ticket, what tiles of a persistent kernel reach of their multiprocessor's share",
    )  # fmt: skip
    return machine.model_copy(update={"lanes": (*machine.lanes, lane), "ops": (*machine.ops, rate)})


def multiprocessors(name: str) -> int:
    """Of one GPU of the machine of that name."""
    known = [gpu for gpu in sorted(MULTIPROCESSORS, key=len) if gpu in name]
    return MULTIPROCESSORS[known[-1] if known else "h200"]


PART_OF = {"route_tile": "router", "gate_up_tile": "expert_ffn", "down_tile": "expert_ffn", "combine_tile": "combine"}
"""Kernel of the unfused layer whose curve a tile's time is read from."""


def _with_threads(machine: Machine, gpu: Lane) -> Machine:
    """Threads of the lane as blocks: a curve of the lane's seconds holds for one of them, over as many threads."""
    threads = max(1, gpu.threads)
    lane = Lane(name=LANE, order="ready", servers=threads, kind="compute", cores=gpu.cores, threads=1, home=gpu.home)
    curves = {row.op: row.curve for row in machine.ops if row.lane == gpu.name and row.curve}
    free = (("*", LANE), ("fused_moe", gpu.name)) if machine.ops else ()
    rows = [OpRate(op=op, lane=where, source="guessed: takes no time") for op, where in free]
    for tile, kernel in PART_OF.items():
        if kernel in curves:
            curve = tuple((r, s * threads) for r, s in curves[kernel])
            rows.append(OpRate(op=tile, lane=LANE, curve=curve, source=f"the curve of {kernel}, split evenly over threads"))
    return machine.model_copy(update={"lanes": (*machine.lanes, lane), "ops": (*machine.ops, *rows)})


def outer_lanes(machine: Machine) -> tuple[Lane, ...]:
    """Lanes that tasks queue on: all but those inside of tasks."""
    return tuple(lane for lane in machine.lanes if lane.name != LANE)


def even_rows(tokens: int, experts: int, top_k: int) -> tuple[int, ...]:
    """Rows of each expert if the experts that independent uniform routing touches share them evenly."""
    untouched = (1 - top_k / experts) ** tokens
    touched = max(top_k, round(experts * (1 - untouched)))
    base, more = divmod(tokens * top_k, touched)
    return tuple(base + (e < more) for e in range(touched)) + (0,) * (experts - touched)


def price_body(costs: CostModel, body: Plan, expert_rows: Sequence[int]) -> PricedPlan:
    """The tasks of a body by `costs`, tiles of slots at the rows that these experts fill; surplus tiles cost nothing.

    expert_rows [experts]: empty for a body without slots.
    """
    from sim.costs import PricedPlan, pack
    from sim.demands import Row

    rows = tile_rows(body, expert_rows)
    keys, cls = np.unique(np.stack([body.work, body.lane, rows], axis=1), axis=0, return_inverse=True)
    found: list[Row] = []
    for work, lane, filled in keys.tolist():
        asked = body.works[work] if filled < 0 else body.works[work]._replace(tokens=filled)
        found.append((0, []) if filled == 0 else costs.row(body.lanes[lane] if lane >= 0 else None, asked))
    return PricedPlan(body, cls.reshape(-1).astype(np.int32), pack(found), costs.resources, costs.capacity, surplus=rows == 0)


def tile_rows(body: Plan, expert_rows: Sequence[int]) -> NDArray[np.int64]:
    """[n], rows of each tile of a slot under this routing, 0 where it is surplus; -1 for all other tasks.

    Raises UserError where the routing fills more slots than there are.
    """
    slotted = np.array([w.op in SLOTTED for w in body.works], np.bool_)[body.work]
    most = max((w.tokens for w in body.works if w.op in SLOTTED), default=0)
    slots = np.zeros(int(body.microbatch.max(initial=0)) + 1, np.int64)
    used = [min(most, rows - first) for rows in expert_rows for first in range(0, rows, most)] if most else []
    if len(used) > len(slots):
        raise UserError(f"body: has {len(slots)} slots of {most} rows; the routing fills {len(used)}")
    slots[: len(used)] = used
    return np.where(slotted, slots[np.where(slotted, body.microbatch, 0)], -1)
