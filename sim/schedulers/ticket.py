"""Ticket: a resident model whose routed layers are one kernel each, its tiles handed out in a list.

The blocks of a persistent kernel take the tiles in the order of the list, each the next when it is
free, and wait there for what the tile needs. So the order is a schedule, and it must be topological.
Routing is known only inside: the list holds as many slots as any routing can fill, and the tiles of
those that do not come about end as skipped. The list is the body of the task that launches the
kernel; in it a counter that tiles wait for is a join.

FlashDMoE (arXiv 2506.04667) hands its tiles out from a block of its own; a list in a fixed order
(as in DeepGEMM's Mega MoE) needs none. See docs/decisions/0010-tickets.md.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from sim.body import LANE
from sim.errors import UserError
from sim.events import Event, Started
from sim.models.spec import ModelSpec
from sim.ops import tiles as moe
from sim.plan import Plan, PlanBuilder
from sim.schedulers.policy import Policy
from sim.schedulers.resident import Resident
from sim.tasks import Command, Time, Work

DECODE_TOKENS = 16
"""Up to here CUDA cores keep up with memory, and tiles are cut for streaming."""

DECODE_TILES = 1600
"""Tiles of a stage that keep all blocks of a large GPU (132 SMs, 4 blocks each) busy to the end."""

MOST_THREADS = 64
"""Up to as many blocks are threads of a CPU: the smallest GPU here has 160."""

THREAD_TILES, MOST_UNITS = 16, 32
"""Tiles of a stage for each thread, so that the last ones even out; register tiles in the widest tile."""

BETWEEN = 1024
"""Tickets between the last down tile of some columns and the tiles that combine them: more than blocks of any
GPU, so that nobody draws a combine tile long before it can begin."""

FUSED_TOKENS = 512
"""Most rows of a layer that is fused: above, separate kernels fill a GPU, and the tiles are tens of thousands."""

_JOIN = Work("join")


def choose_tiling(shape: moe.Shape, blocks: int | None = None) -> moe.Tiling:
    """The decode form for few tokens, else tiles for tensor cores; for a few `blocks`, which are threads, wide tiles."""
    decode = shape.tokens <= DECODE_TOKENS and shape.experts > 1
    if blocks is not None and blocks <= MOST_THREADS:
        return _for_threads(shape, blocks, decode)
    if not decode:
        return moe.Tiling(tokens=64, experts=shape.experts, rows=64, gate_up=32, down=64, combine=256)
    touched = min(shape.experts, shape.routes)
    gate_up, down = _width(touched * shape.ffn), 2 * _width(touched * shape.hidden)
    experts = min(4, shape.experts - 1)
    return moe.Tiling(tokens=shape.tokens, experts=experts, rows=shape.tokens, gate_up=gate_up, down=down, combine=max(128, down))


def _width(columns: int) -> int:
    """Columns of a tile: a power of two from 4 to 32."""
    wanted = max(4, min(32, columns // DECODE_TILES))
    return 1 << (wanted.bit_length() - 1)


def _for_threads(shape: moe.Shape, blocks: int, decode: bool) -> moe.Tiling:
    """Widths in whole register tiles, so wide that a stage has some tiles for each thread."""
    touched, unit = min(shape.experts, shape.routes), moe.REGISTER_COLUMNS
    gate_up, down = (
        unit * max(4, min(MOST_UNITS, touched * columns // (THREAD_TILES * blocks * unit))) for columns in (shape.ffn, shape.hidden)
    )
    rows, combine = min(64, shape.tokens), down * max(1, 256 // down)
    experts = min(2 * unit, shape.experts - 1) if decode else shape.experts
    return moe.Tiling(tokens=rows, experts=experts, rows=rows, gate_up=gate_up, down=down, combine=combine)


@runtime_checkable
class KnowsLanes(Protocol):
    """A profile that tells how many tasks a lane runs at a time."""

    def servers(self, lane: str) -> int | None: ...


class Ticket(Resident):
    """As resident, but the experts of a layer run in one launch, whose tiles one can see and time.

    In the body a tile's `microbatch` is its token block or slot, its `page` the chunk of columns, its
    `priority` its ticket. Layers over more than FUSED_TOKENS rows (prompts) run kernel by kernel.
    Raises UserError for sizes that do not fit together.
    """

    fused = True

    def __init__(self, model: ModelSpec, policy: Policy, *, seed: int = 0, tiling: moe.Tiling | None = None) -> None:
        super().__init__(model, policy, seed=seed)
        self._tiling = tiling
        self._blocks: int | None = None
        self._bodies: dict[int, Plan] = {}

    def on(self, now: Time, event: Event) -> Sequence[Command]:
        if isinstance(event, Started) and isinstance(event.profile, KnowsLanes):
            self._blocks = event.profile.servers(LANE)
        return super().on(now, event)

    def body(self, tokens: int) -> Plan | None:
        """The list for a layer over `tokens` rows; the same object each time."""
        if tokens > FUSED_TOKENS:
            return None
        if tokens not in self._bodies:
            self._bodies[tokens] = body_of(tiles_of(self.model, tokens, self._tiling, self._blocks))
        return self._bodies[tokens]


def tiles_of(model: ModelSpec, tokens: int, tiling: moe.Tiling | None = None, blocks: int | None = None) -> moe.Tiles:
    """A layer of `model` over `tokens` rows, cut as `tiling` says or as suits so many blocks. Raises UserError for a
    tiling that does not fit together."""
    shape = moe.Shape(tokens, model.hidden, model.ffn, model.experts, model.top_k)
    try:
        return moe.Tiles(shape, tiling or choose_tiling(shape, blocks))
    except ValueError as e:
        raise UserError(f"tiling: {e}") from None


def body_of(tiles: moe.Tiles) -> Plan:
    """The tiles of a layer in the order of their tickets."""
    return _Body(tiles).plan()


def layer_plan(model: ModelSpec, tokens: int, times: int = 1, tiling: moe.Tiling | None = None, blocks: int | None = None) -> Plan:
    """A fused layer by itself: one task that launches it, `times` over."""
    builder, body = PlanBuilder(), body_of(tiles_of(model, tokens, tiling, blocks))
    for _ in range(times):
        builder.add(Work("fused_moe", tokens, experts=model.experts), "gpu", layer=0, body=body)
    return builder.build()


class _Body:
    """Adds the stages one after another."""

    def __init__(self, tiles: moe.Tiles) -> None:
        self.tiles = tiles
        self.builder = PlanBuilder()
        self.tickets = 0

    def plan(self) -> Plan:
        routed = self._routing()
        gated = [self._gate_up(slot, routed) for slot in range(self.tiles.slots)]
        per_combine = self.tiles.tiling.combine // self.tiles.tiling.down
        waiting: deque[tuple[int, int, int]] = deque()
        for chunk in range(self.tiles.combine_chunks):
            first = chunk * per_combine
            downed = self._down(range(first, min(self.tiles.down_chunks, first + per_combine)), gated)
            waiting.append((self.tickets + BETWEEN, chunk, downed))
            while waiting[0][0] <= self.tickets:
                self._combine(*waiting.popleft()[1:])
        for _, chunk, downed in waiting:
            self._combine(chunk, downed)
        return self.builder.build()

    def _tile(self, op: int, block: int, chunk: int, deps: Sequence[int]) -> int:
        s, t = self.tiles.shape, self.tiles.tiling
        width, whole = ((t.experts, s.experts), (1, 1), (t.gate_up, s.ffn), (t.down, s.hidden), (t.combine, s.hidden))[op]
        rows = min(t.rows, s.tokens) if op in (moe.GATE_UP, moe.DOWN) else moe.part(s.tokens, t.tokens, block)
        work = Work(moe.OPS[op], rows, columns=moe.part(whole, width, chunk))
        self.tickets += 1
        return self.builder.add(work, LANE, deps, microbatch=block, page=chunk, priority=self.tickets)

    def _join(self, deps: Sequence[int]) -> int:
        return self.builder.add(_JOIN, None, deps)

    def _routing(self) -> int:
        """What a tile waits for before it knows its slot."""
        blocks = range(self.tiles.token_blocks)
        routed = self._join([self._tile(moe.ROUTE, b, c, ()) for b in blocks for c in range(self.tiles.route_chunks)])
        if self.tiles.decode:
            return routed
        return self._join([self._tile(moe.DISPATCH, b, 0, (routed,)) for b in blocks])

    def _gate_up(self, slot: int, routed: int) -> int:
        return self._join([self._tile(moe.GATE_UP, slot, c, (routed,)) for c in range(self.tiles.gate_up_chunks)])

    def _down(self, chunks: range, gated: Sequence[int]) -> int:
        """Chunk by chunk over all slots: the result's first columns can be combined while the next are made."""
        return self._join([self._tile(moe.DOWN, slot, c, (gated[slot],)) for c in chunks for slot in range(self.tiles.slots)])

    def _combine(self, chunk: int, downed: int) -> None:
        for block in range(self.tiles.token_blocks):
            self._tile(moe.COMBINE, block, chunk, (downed,))
