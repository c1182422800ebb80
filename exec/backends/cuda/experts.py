"""Expert weights: what stays on the device, the two halves that layers are streamed into, the pinned pages.

As `exec.backends.experts`, on streams. A layer's weights on the host are flat tensors, one behind the
other: one for all, or, mapped from safetensors, one a matrix.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from exec.arena import Budget
from exec.backends.cuda.device import Stream
from exec.backends.cuda.memory import StreamArena
from exec.backends.cuda.staging import Staging
from exec.backends.experts import NOTHING
from exec.runtime import Interrupt, Record
from sim import buffers

Layer = Sequence[torch.Tensor]
"""Flat tensors of one dtype whose concatenation is gate [F, H], up [F, H], down [H, F] of each expert in turn."""


def host_layer(layer: object) -> Layer:
    """A layer as it was loaded: one NumPy array, or tensors already."""
    return [torch.from_numpy(layer)] if isinstance(layer, np.ndarray) else list(layer)  # type: ignore[call-overload]


def cut(layer: Layer, start: int, stop: int) -> list[torch.Tensor]:
    """Elements start to stop of the concatenation, as views."""
    found, first = [], 0
    for tensor in layer:
        a, b = max(start - first, 0), min(stop - first, len(tensor))
        if a < b:
            found.append(tensor[a:b])
        first += len(tensor)
    return found


class DeviceExperts:
    """streamed_bytes: how much of each layer does not stay on the device; the layer's last experts. staged:
    whether pages go through pinned memory. Charged to the budgets by name, as the plan does."""

    def __init__(
        self, layers: Sequence[object], gpu: StreamArena, cpu: Budget, pinned: StreamArena, streamed_bytes: int, staged: bool
    ) -> None:
        self._host = [host_layer(layer) for layer in layers]
        self.dtype = self._host[0][0].dtype
        total = sum(len(t) for t in self._host[0])
        self._streamed = streamed_bytes // self.dtype.itemsize
        self._kept = total - self._streamed
        self._static = [self._resident(gpu, i, layer) for i, layer in enumerate(self._host)] if self._kept else []
        self._halves = [gpu.take(f"w.{h}", self._streamed, self.dtype) for h in range(2)] if self._streamed else []
        self._pinned = pinned.take("pin", self._streamed, self.dtype, touch=True) if staged and self._streamed else None
        if self._streamed:
            cpu.adopt("experts", len(self._host) * streamed_bytes)
        self._layer_of: dict[str, int] = {}
        """Layer that the last copy enqueued to each page buffer brings."""

    def _resident(self, gpu: StreamArena, i: int, layer: Layer) -> torch.Tensor:
        piece = gpu.take(f"experts.{i}", self._kept, self.dtype)
        place = 0
        for part in cut(layer, 0, self._kept):
            piece[place : place + len(part)].copy_(part)
            place += len(part)
        return piece

    def pieces(self, task: Record) -> list[torch.Tensor]:
        """The layer's experts for post_attn: those that stay, then the half that the task's page buffers name."""
        pieces = [self._static[task.layer]] if self._static else []
        pages = [name for name in task.reads if name.startswith("w.")]
        if pages:
            pieces.append(self._halves[buffers.parse(pages[0])[1][0]])
            for name in pages:
                self._check(task, name)
        return pieces

    def page_to_pin(self, task: Record, interrupt: Interrupt) -> None:
        """On a host lane: done when this returns."""
        (slot,) = task.writes
        self._layer_of[slot] = NOTHING
        start, stop = self._page(task)
        assert self._pinned is not None, "the scheduler stages pages, but its memory() has no pinned pages"
        place = start
        for part in cut(self._host[task.layer], self._kept + start, self._kept + stop):
            self._pinned[place : place + len(part)].copy_(part)
            place += len(part)
        self._layer_of[slot] = task.layer

    def page_to_gpu(self, task: Record) -> Callable[[Stream], None]:
        (slot,), (name,) = task.reads, task.writes
        self._check(task, slot)
        start, stop = self._page(task)
        assert self._pinned is not None, "the scheduler stages pages, but its memory() has no pinned pages"
        target, source = self._half(name)[start:stop], self._pinned[start:stop]
        self._layer_of[name] = task.layer

        def copy() -> None:
            target.copy_(source, non_blocking=True)

        return lambda stream: stream.run(copy)

    def layer_to_gpu(self, task: Record, staging: Staging, interrupt: Interrupt) -> Callable[[Stream], None]:
        assert task.work.bytes == self._streamed * self.dtype.itemsize, (task.number, task.work.bytes, self._streamed)
        half = self._half(task.writes[0])
        for name in task.writes:
            self._layer_of[name] = task.layer
        pieces, place = [], 0
        for part in cut(self._host[task.layer], self._kept, self._kept + self._streamed):
            pieces.append((half[place : place + len(part)], part))
            place += len(part)
        return lambda stream: staging.up(stream, pieces, interrupt)

    def _half(self, name: str) -> torch.Tensor:
        return self._halves[buffers.parse(name)[1][0]]

    def _check(self, task: Record, name: str) -> None:
        held = self._layer_of.get(name, NOTHING)
        assert held == task.layer, f"task {task.number} ({task.work.op}) wants layer {task.layer} in {name}, which holds layer {held}"

    def _page(self, task: Record) -> tuple[int, int]:
        """Place of a page in what is streamed of its layer; the last page ends the layer."""
        size = task.work.bytes // self.dtype.itemsize
        start = min(task.page * size, self._streamed - size)
        return start, start + size


def dense(arena: StreamArena, name: str, source: np.ndarray) -> torch.Tensor:
    """A dense weight, copied to the device; float32."""
    piece = arena.take(name, source.shape)
    return piece.copy_(torch.from_numpy(np.ascontiguousarray(source)))
