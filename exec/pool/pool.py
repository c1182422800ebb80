"""ExpertPool: the experts of one checkpoint on disk, in a RAM tier and in a device tier.

It is told which expert goes to which slot, see `sim`; a read or a load either ends with the expert whole and
verified in its slot, or with the slot empty and an error that says why.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Self

import numpy as np

from exec.links import Link
from exec.pool.loader import DEPTH, Chunk, Loader, cut
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

    def fill(self, expert: Expert, out: Floats, interrupt: Interrupt, landed: Any = lambda nbytes: None) -> None:
        """One expert, flat; errors as `Loader.load` raises."""
        self.loader.load(self._chunks[expert], out, interrupt, landed)

    def file_bytes(self, expert: Expert) -> int:
        """Bytes that the disk has of an expert."""
        return sum(leaf.nbytes for chunk in self._chunks[expert] for leaf in chunk)


class ExpertPool:
    """host, device: the memory of each tier, flat float32."""

    def __init__(self, store: Store, host: Floats, device: Floats) -> None:
        self.store = store
        self.host = Tier("--ram-budget", host)
        self.device = Tier("--device-budget", device)

    def read(self, slot: int, expert: Expert, link: Link, interrupt: Interrupt) -> None:
        """Disk to a host slot at the rate of the link, which counts the expert's bytes as it is held."""
        floats = self.store.expert_floats
        share = floats * 4 / self.store.file_bytes(expert)
        transfer = link.begin(floats * 4, interrupt)
        with self.host.filling(slot, expert, floats) as room:
            self.store.fill(expert, room, interrupt, lambda nbytes: transfer.count(round(nbytes * share)))

    def load(self, source: int, slot: int, expert: Expert, link: Link, interrupt: Interrupt) -> None:
        """A host slot to a device slot."""
        floats = self.store.expert_floats
        with self.host.using([(source, expert)]) as (have,), self.device.filling(slot, expert, floats) as room:
            link.copy(room, have, interrupt)

    def experts(self, wanted: Sequence[tuple[int, Expert]]) -> AbstractContextManager[list[Floats]]:
        """Experts in device slots, all or none, see `Tier.using`."""
        return self.device.using(wanted)


def check_budgets(spec: Any, ram_bytes: int, device_bytes: int, work: str) -> None:
    """Raises UserError where a budget does not hold what one token needs of one layer."""
    size = expert_floats(spec) * 4
    needs = {"--device-budget": (device_bytes, 0 if work == "cpu-expert" else spec.top_k), "--ram-budget": (ram_bytes, spec.top_k)}
    for flag, (budget, least) in needs.items():
        if budget < least * size:
            holds = f"holds {budget // size} experts of {size:,} bytes"
            raise UserError(f"{flag} {budget:,}: {holds}; the top {spec.top_k} of one layer need {least * size:,}")
