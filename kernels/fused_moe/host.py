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

    program [n, 4]: see `kernels.fused_moe.program`. blocks: threads that draw tickets. scratch: see `use`.
    """

    def __init__(self, tiles: Tiles, program: np.ndarray, blocks: int, scratch: np.ndarray | None = None) -> None:
        self.tiles, self.program, self.blocks = tiles, program, blocks
        self._sizes = sizes(tiles)
        shared = self._cut(np.empty(self.floats, np.float32) if scratch is None else scratch)
        self.state = host_state(tiles, blocks, len(program), **shared)

    @property
    def floats(self) -> int:
        """float32 elements of scratch that a call needs."""
        return sum(int(np.prod(shape)) for shape in self._shapes)

    def use(self, scratch: np.ndarray) -> None:
        """From now on keep what does not outlive a call in `scratch`, of `floats` float32 or more."""
        self.state = self.state._replace(**self._cut(scratch))

    @property
    def _shapes(self) -> tuple[tuple[int, ...], ...]:
        """Of logits, activations, expert rows; and of each block's rows of x and of gate and up."""
        s, t = self.tiles.shape, self.tiles.tiling
        rows = min(t.rows, s.tokens)
        own = (self.blocks, rows, s.hidden), (self.blocks, rows, 2 * t.gate_up)
        return (s.tokens, s.experts), (s.routes, s.ffn), (s.routes, s.hidden), *own

    def _cut(self, scratch: np.ndarray) -> dict[str, np.ndarray]:
        parts, used = [], 0
        for shape in self._shapes:
            size = int(np.prod(shape))
            parts.append(scratch[used : used + size].reshape(shape))
            used += size
        logits, act, y, self._panels, self._outs = parts
        return {"logits": logits, "act": act, "y": y}

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
