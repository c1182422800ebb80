"""Expert weights: what stays on the GPU, the two halves that layers are streamed into, the pinned pages.

Nothing computes with the host's copy: a task finds its layer's experts where its plan has moved
them, and a page that holds another layer is an error.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from exec.arena import Arena
from exec.links import Link
from exec.runtime import Interrupt, Record
from sim import buffers

Floats = NDArray[np.float32]

NOTHING = -1
"""Layer of a page that was never written, or is being written."""


class Experts:
    """Expert weights of every layer, by memory.

    host [layers]: flat arrays of whole experts. streamed_bytes: how much of each layer does not stay
    on the GPU; the layer's last experts, in pages of which page p begins at p equal shares.
    """

    def __init__(self, host: Sequence[Floats], arenas: Mapping[str, Arena], streamed_bytes: int, staged: bool) -> None:
        self._streamed = streamed_bytes // 4
        static = len(host[0]) - self._streamed
        self._host = [layer[static:] for layer in host]
        self._static = [_copied(arenas["gpu"], f"experts.{i}", layer[:static]) for i, layer in enumerate(host)] if static else []
        self._halves = [arenas["gpu"].take(f"w.{h}", self._streamed, touch=True) for h in range(2)] if self._streamed else []
        self._pinned = arenas["pinned"].take("pin", self._streamed, touch=True) if staged and self._streamed else None
        if self._streamed:
            arenas["cpu"].adopt("experts", len(host) * streamed_bytes)
        self._layer_of: dict[str, int] = {}
        """Layer whose page each page buffer holds."""

    def pieces(self, task: Record) -> list[Floats]:
        """The layer's experts for post_attn: those that stay, then the half that the task's page buffers name."""
        pieces = [self._static[task.layer]] if self._static else []
        pages = [name for name in task.reads if name.startswith("w.")]
        if pages:
            pieces.append(self._halves[buffers.parse(pages[0])[1][0]])
            for name in pages:
                held = self._layer_of.get(name, NOTHING)
                assert held == task.layer, f"task {task.number} wants layer {task.layer} in {name}, which holds layer {held}"
        return pieces

    def page_to_pin(self, task: Record, link: Link, interrupt: Interrupt) -> None:
        (slot,) = task.writes
        page = self._page(task)
        self._move([slot], link, self._pin(page), self._host[task.layer][page], task.layer, interrupt)

    def page_to_gpu(self, task: Record, link: Link, interrupt: Interrupt) -> None:
        (slot,), (name,) = task.reads, task.writes
        held = self._layer_of.get(slot, NOTHING)
        assert held == task.layer, f"task {task.number} moves layer {task.layer} from {slot}, which holds layer {held}"
        page = self._page(task)
        half = self._halves[buffers.parse(name)[1][0]]
        self._move([name], link, half[page], self._pin(page), task.layer, interrupt)

    def layer_to_gpu(self, task: Record, link: Link, interrupt: Interrupt) -> None:
        assert task.work.bytes == self._streamed * 4, f"task {task.number} moves {task.work.bytes} of {self._streamed * 4} bytes"
        half = self._halves[buffers.parse(task.writes[0])[1][0]]
        self._move(task.writes, link, half, self._host[task.layer], task.layer, interrupt)

    def _move(self, names: Iterable[str], link: Link, target: Floats, source: Floats, layer: int, interrupt: Interrupt) -> None:
        for name in names:
            self._layer_of[name] = NOTHING
        link.copy(target, source, interrupt)
        for name in names:
            self._layer_of[name] = layer

    def _page(self, task: Record) -> slice:
        """Place of a page in its layer. All pages but the last have one size; the last ends the layer."""
        size = task.work.bytes // 4
        start = min(task.page * size, self._streamed - size)
        return slice(start, start + size)

    def _pin(self, page: slice) -> Floats:
        assert self._pinned is not None, "the scheduler stages pages, but its memory() has no pinned pages"
        return self._pinned[page]


def _copied(arena: Arena, name: str, source: Floats) -> Floats:
    piece = arena.take(name, source.shape)
    np.copyto(piece, source)
    return piece


def dense_on(arena: Arena, name: str, source: Floats) -> Floats:
    """A dense weight, copied to the device."""
    return _copied(arena, name, source)
