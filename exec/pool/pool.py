"""ExpertPool: the experts of one checkpoint on disk, in a RAM tier and in a device tier.

It is told which expert goes to which slot, see `sim`; a read or a load either ends with the expert whole and
verified in its slot, or with the slot empty and an error that says why.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Self

import numpy as np

from exec.links import Link
from exec.pool.loader import DEPTH, Chunk, Loader, cut, elements
from exec.pool.manifest import NAME, Manifest, read_manifest
from exec.pool.places import Piece, Place, Places, headers_of
from exec.pool.tiers import Expert, Floats, Tier
from exec.runtime import Interrupt
from exec.weights import expert_floats, moe_prefix
from sim.errors import UserError


class Store:
    """The disk tier: a checkpoint directory with its manifest. A context manager.

    Dense tensors are read as `exec.checkpoint.Checkpoint` reads them, but verified.
    """

    def __init__(self, directory: Path, spec: Any, manifest: Path | None = None, depth: int = DEPTH) -> None:
        """Raises UserError where a file or the manifest is missing, cut short, or does not fit the other."""
        headers = headers_of(directory)
        self._spec = spec
        self.manifest: Manifest = read_manifest(manifest or directory / NAME)
        self._places = Places(directory, headers)
        for header in headers.values():
            self.manifest.check(header)
        self.expert_floats = expert_floats(spec)
        self._chunks: dict[Expert, list[Chunk]] = {}
        for layer in range(spec.layers):
            prefix = moe_prefix(self._places, layer)
            for expert in range(spec.experts):
                self._chunks[layer, expert] = self._cut(self._places.expert(spec, prefix, expert))
        self.loader = Loader(headers, self.manifest.leaf_bytes, depth)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.loader.__exit__(*exception)

    def __contains__(self, name: str) -> bool:
        return name in self._places

    def read(self, name: str, shape: tuple[int, ...]) -> Floats:
        out = np.empty(shape, np.float32)
        self.read_into(name, out)
        return out

    def read_into(self, name: str, out: Floats) -> None:
        """Fill a contiguous array with one tensor of its shape."""
        place: Place = self._places.of(name, out.shape)
        assert out.flags.c_contiguous, f"tensor {name} into strides {out.strides}"
        self.loader.load(self._cut([Piece(place, 0, 0)]), out.reshape(-1), Interrupt())

    def _cut(self, pieces: Sequence[Piece]) -> list[Chunk]:
        return cut(pieces, self.manifest.leaf_bytes, self.manifest.leaves)

    def fill(
        self, expert: Expert, out: Floats, interrupt: Interrupt, landed: Callable[[int], None] = lambda count: None, start: int = 0
    ) -> None:
        """One expert, flat. start: elements that are in place, in the order in which the disk has them; landed: told that
        number as it grows. Errors as `Loader.load` raises."""
        chunks, count = self._chunks[expert], 0
        while chunks and count + elements(chunks[0]) <= start:
            count += elements(chunks[0])
            chunks = chunks[1:]

        def more(chunk: Chunk) -> None:
            nonlocal count
            count += elements(chunk)
            landed(count)

        self.loader.load(chunks, out, interrupt, more)


class ExpertPool:
    """host, device: the memory of each tier, flat float32."""

    def __init__(self, store: Store, host: Floats, device: Floats) -> None:
        self.store = store
        self.host = Tier("--ram-budget", host)
        self.device = Tier("--device-budget", device)

    def read(self, slot: int, expert: Expert, link: Link, interrupt: Interrupt, nbytes: int | None = None) -> None:
        """Disk to a host slot at the rate of the link, which counts the expert's bytes as it is held; `nbytes`: what is
        left of them, where a read goes on."""
        floats = self.store.expert_floats
        start = self._start(nbytes)
        transfer = link.begin(4 * (floats - start), interrupt)
        with self.host.filling(slot, expert, floats, start) as filling:
            def landed(count: int) -> None:
                new, filling.done = count - filling.done, count
                transfer.count(4 * new)

            self.store.fill(expert, filling.room, interrupt, landed, start)

    def load(self, source: int, slot: int, expert: Expert, link: Link, interrupt: Interrupt, nbytes: int | None = None) -> None:
        """A host slot to a device slot."""
        floats, start = self.store.expert_floats, self._start(nbytes)
        transfer = link.begin(4 * (floats - start), interrupt)
        with self.host.using([(source, expert)]) as (have,), self.device.filling(slot, expert, floats, start) as filling:
            try:
                transfer.copy(filling.room[start:], have[start:])
            finally:
                filling.done = start + transfer.moved // 4

    def _start(self, nbytes: int | None) -> int:
        """First element of the last `nbytes` of an expert."""
        return 0 if nbytes is None else self.store.expert_floats - -(-nbytes // 4)

    def experts(self, wanted: Sequence[tuple[int, Expert]]) -> AbstractContextManager[list[Floats]]:
        """Experts in device slots, all or none, see `Tier.using`."""
        return self.device.using(wanted)


def check_budgets(spec: Any, ram_bytes: int, device_bytes: int) -> None:
    """Raises UserError where a budget does not hold what one token needs of one layer."""
    size = expert_floats(spec) * 4
    for flag, budget in (("--device-budget", device_bytes), ("--ram-budget", ram_bytes)):
        if budget < spec.top_k * size:
            holds = f"holds {budget // size} experts of {size:,} bytes"
            raise UserError(f"{flag} {budget:,}: {holds}; the top {spec.top_k} of one layer need {spec.top_k * size:,}")
