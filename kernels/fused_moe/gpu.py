"""Launch the CUDA form: one launch runs a whole layer and leaves a stamp for every tile."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from kernels.fused_moe import gpu_decode, gpu_grouped
from kernels.fused_moe.host import Layer
from kernels.fused_moe.state import State, layout, sizes
from kernels.fused_moe.tiles import Tiles

BLOCKS_PER_SM = {True: 4, False: 4}
"""Blocks of the decode form and of the grouped form that a multiprocessor holds."""


LASTING = ("counters", "known")
"""Of `State`, what must be zero before a launch, which leaves it so."""


class DeviceLaunch:
    """A program with the memory that it needs, to be launched any number of times; nothing is reset between.

    program [n, 4]: see `kernels.fused_moe.program`. blocks: at most as many as fit on the device at once is
    best; more are harmless, since tickets are drawn by whoever runs. place: moves a NumPy array to
    the device (the simulator: none is needed). element: dtype of weights and activations there. own: whether
    it keeps a `state`; else each call must be given one (see `fresh`).
    Raises ValueError for sizes that the kernel does not do.
    """

    def __init__(
        self, tiles: Tiles, program: np.ndarray, blocks: int, element: Any = np.float32,
        place: Callable[[np.ndarray], Any] = np.asarray, threads: int | None = None, own: bool = True,
    ) -> None:  # fmt: skip
        form = gpu_decode if tiles.decode else gpu_grouped
        form.check(tiles)
        self.tiles, self.blocks = tiles, blocks
        self.threads = threads or form.THREADS
        self._arrays = layout(tiles, 1, len(program), element)
        self._lasting = {name: place(np.zeros(*self._arrays[name])) for name in LASTING}
        self._own = self.fresh(lambda shape, dtype: place(np.zeros(shape, dtype))) if own else None
        self._program, self._sizes = place(np.ascontiguousarray(program)), place(np.array(sizes(tiles), np.int32))
        self._launch = gpu_decode.launch if tiles.decode else gpu_grouped.launch

    @property
    def state(self) -> State:
        assert self._own is not None, "this launch has no state of its own"
        return self._own

    def fresh(self, make: Callable[[tuple[int, ...], Any], Any]) -> State:
        """A state for one launch: the counters, and all else from `make` (shape, dtype), with any contents."""
        return State(**{n: make(*a) for n, a in self._arrays.items() if n not in LASTING}, **self._lasting)

    def __call__(self, layer: Layer, stream: Any = 0, state: State | None = None) -> None:
        """Start the layer on `stream`; the stamps are in `state` (None: its own) when it has ended."""
        self._launch(self.blocks, self.threads, self._sizes, self._program, layer, state or self.state, stream)
