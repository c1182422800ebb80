"""Fused layers on this computer: a body as the list that the kernel draws tickets over, and its stamps.

`FusedLayers` keeps what the kernel needs for each body; `LayerBackend` runs plans of layers without a model around.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from exec.runtime import Interrupt, Record
from exec.runtime.bodies import Stamps
from kernels.fused_moe.host import HostLaunch, Layer
from kernels.fused_moe.program import program
from kernels.fused_moe.tiles import COMBINE, DOWN, GATE_UP, OPS, ROUTE, Shape, Tiles, Tiling
from sim.machines.schema import Lane
from sim.plan import Plan


def program_of(body: Plan) -> NDArray[np.int32]:
    """The in-kernel list of a body: its tiles in order of their numbers."""
    code = np.array([OPS.index(work.op) if work.op in OPS else -1 for work in body.works])[body.work]
    tile = body.lane >= 0
    assert (code[tile] >= 0).all(), "a body's lane tasks must be tiles"
    return program(code[tile], body.microbatch[tile], body.page[tile])


def tiles_in(body: Plan, shape: Shape) -> Tiles:
    """How a body cuts a layer of this shape: its tiles state their sizes."""

    def largest(op: int) -> tuple[int, int]:
        mine = [(w.tokens, w.columns) for w in body.works if w.op == OPS[op]]
        return max(r for r, _ in mine), max(c for _, c in mine)

    (tokens, experts), (rows, gate_up), (_, down), (_, combine) = map(largest, (ROUTE, GATE_UP, DOWN, COMBINE))
    return Tiles(shape, Tiling(tokens, experts, rows, gate_up, down, -(-combine // down) * down))


class FusedLayers:
    """Launches by body. blocks: threads that draw tickets."""

    def __init__(self, blocks: int) -> None:
        self._blocks = blocks
        self._launches: dict[Plan, HostLaunch] = {}

    def launch(self, body: Plan, shape: Shape) -> HostLaunch:
        """What runs `body`, the same each time; it must be told what scratch to use."""
        if body not in self._launches:
            self._launches[body] = HostLaunch(tiles_in(body, shape), program_of(body), self._blocks)
        return self._launches[body]


def stamps_of(launch: HostLaunch) -> Stamps:
    """A copy of what the last call left."""
    start, end = launch.state.stamps.T.copy()
    return Stamps(start, end, launch.state.ran_on < 0)


class LayerBackend:
    """Runs `fused_moe` tasks over layers of one shape, which take turns; an `exec.runtime.Backend`.

    ran_on: the block of each tile, by task.
    """

    def __init__(self, layers: Sequence[Layer], blocks: int) -> None:
        (tokens, hidden), experts, top_k = layers[0].x.shape, len(layers[0].gate), layers[0].ids.shape[1]
        self._shape = Shape(tokens, hidden, layers[0].experts.size // (3 * hidden * experts), experts, top_k)
        self._layers, self._fused = layers, FusedLayers(blocks)
        self.ran_on: dict[int, NDArray[np.int32]] = {}

    def enter_lane(self, lane: Lane) -> None:
        """Nothing to prepare."""

    def run(self, task: Record, interrupt: Interrupt) -> None:
        assert task.body is not None, task.number
        launch = self._fused.launch(task.body, self._shape)
        launch(self._layers[task.number % len(self._layers)])
        task.inside = stamps_of(launch)
        self.ran_on[task.number] = launch.state.ran_on.copy()
