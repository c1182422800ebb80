"""Manifest: checksums of every tensor of a checkpoint, leaf by leaf, made once and verified at every load.

A tensor is summed in leaves of a few MiB at most, so that an expert that arrives in several chunks is
verified chunk by chunk on as many threads as read it, before a byte of it is used. The leaves of a fused
tensor [experts, rows, columns] begin anew at each expert. It guards against
accidents, not against somebody who could as well rewrite the manifest beside the file: a cryptographic hash
costs several times as much, and two cores could not keep up with one disk (docs/expert-pool.md).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from exec.pool.places import Header, Place
from exec.pool.staging import PAGE
from sim.errors import UserError
from traces.errors import TraceError
from traces.files import replacing

NAME = "tandem.manifest.json"
"""Beside the checkpoint."""

FORMAT = 1
ALGORITHM = "xxh3_64"
LEAF_BYTES = 2 << 20
"""Bytes of a leaf, and of a read, unless a manifest says otherwise: large enough for the disk's rate, small
enough that the last one is verified soon after it has arrived. docs/expert-pool.md has the measurement."""

_MAKE = "make it: python -m exec manifest"


def checksum(raw: NDArray[np.uint8]) -> int:
    """XXH3, 64 bits, of contiguous bytes [n]."""
    return xxhash.xxh3_64_intdigest(raw.data)


def leaves_of_part(place: Place, leaf_bytes: int) -> int:
    """Leaves that each part of a tensor has."""
    return max(1, -(-(place.nbytes // place.parts) // leaf_bytes))


@dataclass(frozen=True, slots=True)
class Manifest:
    """digests: of each tensor, its leaves in order, part after part."""

    path: Path
    leaf_bytes: int
    files: Mapping[str, Mapping[str, Any]]
    digests: Mapping[str, tuple[int, ...]]

    def check(self, header: Header) -> None:
        """Raises UserError where a file is not the one that the manifest was made of."""
        known = self.files.get(header.file.name)
        if known is None:
            raise UserError(f"{self.path}: knows nothing of {header.file.name}; {_MAKE} again")
        if known["header"] != header.digest:
            raise UserError(f"{header.file}: its header differs from the one in {self.path.name}: changed or damaged; get the file again")
        if known["bytes"] != header.file.stat().st_size:
            found = header.file.stat().st_size
            raise UserError(f"{header.file}: has {found:,} bytes, {known['bytes']:,} in {self.path.name}; get the file again")
        for name, place in header.places.items():
            if len(self.digests.get(name, ())) != place.parts * leaves_of_part(place, self.leaf_bytes):
                raise UserError(f"{self.path}: tensor {name}: its checksums are missing; {_MAKE} again")

    def leaves(self, place: Place, part: int) -> tuple[int, ...]:
        count = leaves_of_part(place, self.leaf_bytes)
        return self.digests[place.name][part * count : (part + 1) * count]


def read_manifest(path: Path) -> Manifest:
    """Raises UserError naming the file, and the field where there is one."""
    try:
        data = json.loads(path.read_text())
        leaf_bytes = int(data["leaf_bytes"])
        if data["format"] != FORMAT or data["algorithm"] != ALGORITHM or leaf_bytes <= 0 or leaf_bytes % PAGE:
            raise UserError(f"{path}: format {data['format']}, {leaf_bytes} bytes a leaf: this version cannot read it; {_MAKE} again")
        digests = {str(name): tuple(int(leaf, 16) for leaf in leaves) for name, leaves in data["tensors"].items()}
        files = {str(k): {"bytes": int(v["bytes"]), "header": str(v["header"])} for k, v in data["files"].items()}
        return Manifest(path, leaf_bytes, files, digests)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; experts are verified by the checksums in it; {_MAKE} {path.parent}") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
        if isinstance(e, UserError):
            raise
        raise UserError(f"{path}: not a manifest ({e!r}); {_MAKE} again") from None


def write_manifest(path: Path, leaf_bytes: int, headers: Mapping[Path, Header], digests: Mapping[str, tuple[int, ...]]) -> Manifest:
    """Whole or not at all. Raises UserError naming the file where the disk takes it not."""
    files = {h.file.name: {"bytes": h.file.stat().st_size, "header": h.digest} for h in headers.values()}
    data = {
        "format": FORMAT, "algorithm": ALGORITHM, "leaf_bytes": leaf_bytes, "files": files,
        "tensors": {name: [f"{leaf:016x}" for leaf in leaves] for name, leaves in sorted(digests.items())},
    }  # fmt: skip
    try:
        with replacing(path) as part:
            part.write_text(json.dumps(data, indent=1) + "\n")
    except (OSError, TraceError) as e:
        why = (e.strerror or str(e)) if isinstance(e, OSError) else str(e)
        raise UserError(f"{path}: cannot be written ({why}); nothing is left of it; make room there or name another file with -o") from None
    return Manifest(path, leaf_bytes, files, digests)
