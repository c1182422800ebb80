"""Streaming of expert weights: whole layers or pages, into two alternating halves of a GPU buffer.

Layers are counted through a pass and one beyond it: layer L is layer 0 of the pass to come. The
half alternates with each layer that is streamed, so a layer's pages go where the layer before the
one being computed was; pool `gpu_pages` makes the copy wait until that layer's last post_attn gives
its pages back.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

from sim import buffers
from sim.schedulers.launch import At, Launcher
from sim.schedulers.sizes import Sizes
from sim.tasks import Work

GPU_PAGES, PINNED_SLOTS = "gpu_pages", "pinned_slots"
TURN = "turn"
"""Name under which a pass keeps the task that the next pass's first copy waits for."""


def pools(sizes: Sizes, stages: bool) -> dict[str, int]:
    """Weight slots: two layers on the GPU and, where copies are staged, one in pinned memory
    (MoE-Lightning A.1 and its released code)."""
    if not sizes.pages:
        return {}
    return {GPU_PAGES: 2 * sizes.pages, **({PINNED_SLOTS: sizes.pages} if stages else {})}


@dataclass(slots=True)
class Weights:
    """The weight stream of one pass.

    index: passes before this one. more: whether another pass may follow, which then finds layer 0
    streamed. at: what tasks launched here are labelled with. variant: how whole layers are copied.
    """

    launch: Launcher
    sizes: Sizes
    index: int
    more: bool
    at: At
    variant: str = ""

    def streams(self, layer: int) -> bool:
        """Whether anything is to be copied for `layer`."""
        if layer > self.sizes.layers or (layer == self.sizes.layers and not self.more):
            return False
        return bool(self.sizes.pages) and self.sizes.routed(layer % self.sizes.layers)

    def half(self, layer: int) -> int:
        """The half of the GPU buffer that `layer` goes to."""
        streamed = self.sizes.layers - self.sizes.dense_layers
        ahead, i = divmod(layer, self.sizes.layers)
        return ((self.index + ahead) * streamed + i - self.sizes.dense_layers) % 2

    def buffers(self, layer: int) -> tuple[str, ...]:
        """Streamed pages that post_attn of `layer` reads."""
        return buffers.half(self.half(layer), self.sizes.pages) if self.streams(layer) else ()

    def free(self, layer: int) -> tuple[int, ...]:
        """Holds that end with the last post_attn of `layer`."""
        return self.launch.give_back(f"w.{self.half(layer)}") if self.streams(layer) else ()

    def layer_to_gpu(self, layer: int, after: tuple[int, ...] = ()) -> None:
        """All of a layer in one copy: from pageable memory, or as `variant` says."""
        if not self.streams(layer):
            return
        h, n = self.half(layer), self.sizes.pages
        number = self._copy(
            "layer_to_gpu", layer, self.sizes.layer_bytes, lane="h2d", takes=((GPU_PAGES, n),), writes=buffers.half(h, n),
            after=after, variant=self.variant,
        )  # fmt: skip
        self.launch.keep(f"w.{h}", number)

    def page_to_pin(self, layer: int, pages: Iterable[int]) -> None:
        """Stage pages of `layer` in their pinned slots."""
        if not self.streams(layer):
            return
        for p in pages:
            number = self._copy("page_to_pin", layer, self.sizes.page_bytes[p], p, lane="pin", takes=((PINNED_SLOTS, 1),), writes=_pin(p))
            self.launch.keep(f"pin.{p}", number)

    def page_to_gpu(self, layer: int, pages: Iterable[int]) -> None:
        """Move staged pages of `layer` on; after the last one, a join stands for the whole layer."""
        if not self.streams(layer):
            return
        h = self.half(layer)
        for p in pages:
            number = self._copy(
                "page_to_gpu", layer, self.sizes.page_bytes[p], p, lane="h2d", takes=((GPU_PAGES, 1),),
                reads=_pin(p), writes=_page(h, p), releases=self.launch.give_back(f"pin.{p}"),
            )  # fmt: skip
            self.launch.keep(f"w.{h}", number)
            if 0 < p == self.sizes.pages - 1:
                self._join(layer)

    def _join(self, layer: int) -> None:
        """One task for each post_attn to wait for, in place of all the pages."""
        pages = buffers.half(self.half(layer), self.sizes.pages)
        after = self.launch.writers(pages)
        join = self.launch.add(Work("join"), None, after=after, at=self.at, layer=layer % self.sizes.layers)
        self.launch.stand_for(join, pages)

    def _copy(
        self, op: str, layer: int, size: int, page: int = -1, *, lane: str, takes: tuple[tuple[str, int], ...],
        writes: tuple[str, ...], reads: tuple[str, ...] = (), releases: tuple[int, ...] = (), after: tuple[int, ...] = (),
        variant: str = "",
    ) -> int:  # fmt: skip
        return self.launch.add(
            Work(op, bytes=size, variant=variant), lane, reads=reads, writes=writes, takes=takes, releases=releases, after=after,
            at=self.at, layer=layer % self.sizes.layers, page=page,
        )  # fmt: skip


@cache
def _pin(p: int) -> tuple[str, ...]:
    return (buffers.pin(p),)


@cache
def _page(h: int, p: int) -> tuple[str, ...]:
    return (buffers.weight(h, p),)


def share(sizes: Sizes, slot: int, slots: int) -> range:
    """Pages that move in one of the `slots` of a layer: exactly one where there are as many pages."""
    return range(slot * sizes.pages // slots, (slot + 1) * sizes.pages // slots)
