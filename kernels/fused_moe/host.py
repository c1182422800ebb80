"""Launch the CPU form: one call runs a whole layer and leaves a stamp for every tile."""

from __future__ import annotations

import functools
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from kernels.fused_moe.state import host_state, sizes
from kernels.fused_moe.tiles import Tiles


class Layer(NamedTuple):
    """Operands of one layer, C-contiguous.

    x, residual, out [tokens, hidden] (out may be residual); gate [experts, hidden]; experts flat: for
    each gate [ffn, hidden], up [ffn, hidden], down [hidden, ffn]. ids [tokens, k] int16 and weights
    [tokens, k] float32 take what the router chose.
    """

    x: np.ndarray
    gate: np.ndarray
    experts: np.ndarray
    residual: np.ndarray
    out: np.ndarray
    ids: np.ndarray
    weights: np.ndarray


class HostLaunch:
    """A program with the memory that it needs, to be run any number of times on this computer's cores.

    program [n, 4]: see `kernels.fused_moe.program`. blocks: threads that draw tickets.
    """

    def __init__(self, tiles: Tiles, program: np.ndarray, blocks: int) -> None:
        self.tiles, self.program, self.blocks = tiles, program, blocks
        self.state = host_state(tiles, blocks, len(program))
        self._sizes = sizes(tiles)
        self._panels = np.empty((blocks, tiles.tiling.rows, tiles.shape.hidden), np.float32)
        self._outs = np.empty((blocks, tiles.tiling.rows, 2 * tiles.tiling.gate_up), np.float32)

    def __call__(self, layer: Layer) -> None:
        """Run the layer; the stamps are in `state` afterwards."""
        from kernels.fused_moe import cpu

        def block(b: int) -> None:
            cpu.run_block(self._sizes, self.state, layer, self.program, b, self.blocks, self._panels[b], self._outs[b])

        others = [_threads(self.blocks).submit(block, b) for b in range(1, self.blocks)]
        block(0)
        for other in others:
            other.result()


@functools.cache
def _threads(count: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(count, "moe-block")
