"""Which node has which chunks of the checkpoint on its disk, and from where the missing ones come.

The checkpoint is a Merkle DAG (`sim.swarm.checkpoints`) whose data chunks are stand-ins: a few bytes that say which part of
which expert they are, for `CHUNK_BYTES` of weights. Chunks are asked for by name, so that what a node has, or is sent already, is
not sent again, and a transfer that was cut keeps its whole chunks.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from sim.models import ModelSpec
from sim.swarm.checkpoints import name_of, read, save
from sim.swarm.dice import uniform
from sim.swarm.plant import Plant

CHUNK_BYTES = 4 << 20
DISK_BYTES_PER_S = 2e9
"""What a node reads from its disk into GPUs (guessed: one NVMe drive)."""
_STAND_IN = 16


class Memory:
    """Chunks in memory, see `sim.swarm.checkpoints.Chunks`."""

    def __init__(self) -> None:
        self._data: dict[str, bytes] = {}

    def __contains__(self, digest: str) -> bool:
        return digest in self._data

    def put(self, data: bytes) -> str:
        digest = name_of(data)
        self._data[digest] = data
        return digest

    def get(self, digest: str) -> bytes:
        return self._data[digest]


@dataclass(frozen=True, slots=True)
class Manifest:
    """A model's checkpoint: names of the data chunks of each blob, and the bytes that a chunk of it stands for."""

    root: str
    parts: dict[str, tuple[str, ...]]
    sizes: dict[str, float]

    @classmethod
    def of(cls, model: ModelSpec) -> Manifest:
        """Blobs `expert/LAYER/EXPERT` and `dense`."""
        wanted = {f"expert/{layer}/{e}": model.expert_bytes for layer in range(model.moe_layers) for e in range(model.experts)}
        wanted["dense"] = model.dense_bytes
        counts = {name: max(1, -(-size // CHUNK_BYTES)) for name, size in wanted.items()}
        store = Memory()
        blobs = {name: b"".join(_stand_in(model.name, name, i) for i in range(n)) for name, n in counts.items()}
        root = save(store, blobs, {"model": model.name}, _STAND_IN)
        parts = {name: tuple(below for _, below in read(store, digest).below) for name, digest in _lists(store, root)}
        return cls(root, parts, {part: wanted[name] / counts[name] for name, found in parts.items() for part in found})


def _stand_in(model: str, blob: str, part: int) -> bytes:
    return bytes.fromhex(name_of(f"{model} {blob} {part}".encode()))[:_STAND_IN]


def _lists(store: Memory, digest: str, name: str = "") -> Iterable[tuple[str, str]]:
    """(blob's name, its list chunk) below a tree."""
    for entry, below in read(store, digest).below:
        path = f"{name}/{entry}".lstrip("/")
        if read(store, below).kind == "tree":
            yield from _lists(store, below, path)
        else:
            yield path, below


@dataclass(eq=False)
class Shelves:
    """disks: chunks of each node's disk. restored_bytes: sent for placements, and from_store_bytes the part of it that came from the
    coordinator's store; deduplicated_bytes: wanted, but there or sent once already."""

    plant: Plant
    seed: int = 0
    restored_bytes: float = 0.0
    from_store_bytes: float = 0.0
    deduplicated_bytes: float = 0.0
    _under_way: dict[int, tuple[int, Sequence[str]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        plant, self.manifest = self.plant, self.plant.manifest
        self.disks: list[set[str]] = [set() for _ in plant.nodes]
        self.store = plant.cluster.coordinator
        latency = [[plant.network.path(a, b).latency_s for a in plant.nodes] for b in plant.nodes]
        self._near = [sorted(range(len(row)), key=lambda m: (row[m], m)) for row in latency]

    def holds(self, held: NDArray[np.bool_], home: int) -> None:
        """What is in GPUs is on the disks as well."""
        for layer, expert, gpu in np.argwhere(held).tolist():
            self.disks[self.plant.node_of[gpu]].update(self.manifest.parts[f"expert/{layer}/{expert}"])
        self.disks[home].update(self.manifest.parts["dense"])

    def replaced(self, node: int, share: float, boot: int) -> None:
        """A node has come up again, with that share of the chunks on its disk (a draw for each)."""
        wholly = sorted(self.manifest.sizes) if 0 < share < 1 else list(self.manifest.sizes) if share else []
        self.disks[node] = {c for i, c in enumerate(wholly) if share >= 1 or uniform(self.seed, node, boot, i) < share}

    def missing(self, node: int, blobs: Iterable[str], wanted_bytes: float) -> list[str]:
        """Chunks of blobs that a node lacks, each once; wanted_bytes: of all copies that it shall hold."""
        names = [c for blob in blobs for c in self.manifest.parts[blob] if c not in self.disks[node]]
        self.deduplicated_bytes += wanted_bytes - self.bytes_of(names)
        return names

    def bytes_of(self, names: Iterable[str]) -> float:
        return sum(self.manifest.sizes[c] for c in names)

    def sources(self, node: int, names: Sequence[str], alive: frozenset[int]) -> dict[str, list[str]]:
        """Node -> the chunks that it sends: each from the nearest live node that has it, else from the store."""
        out: dict[str, list[str]] = {}
        near = [m for m in self._near[node] if m in alive and m != node]
        for name in names:
            holder = next((self.plant.nodes[m] for m in near if name in self.disks[m]), self.store)
            out.setdefault(holder, []).append(name)
        return dict(sorted(out.items()))

    def sent(self, task: int, source: str, node: int, names: Sequence[str]) -> None:
        self._under_way[task] = (node, names)
        size = self.bytes_of(names)
        self.restored_bytes += size
        self.from_store_bytes += size if source == self.store else 0.0

    def ended(self, task: int, share: float = 1.0) -> list[str]:
        """So much of a transfer came: its whole chunks are on the disk now; those that are not."""
        node, names = self._under_way.pop(task, (0, ()))
        whole = int(share * len(names))
        self.disks[node].update(names[:whole])
        return list(names[whole:])
