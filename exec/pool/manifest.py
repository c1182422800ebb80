"""Manifest: SHA-256 of every tensor of a checkpoint, leaf by leaf, made once and verified at every load.

A tensor is hashed in leaves of at most LEAF_BYTES, so that an expert that arrives in several chunks is
verified chunk by chunk on as many threads as read it, before a byte of it is used. The leaves of a fused
tensor [experts, rows, columns] begin anew at each expert. SHA-256 because processors have instructions
for it (1 to 2 GB/s a core, about what an NVMe disk delivers).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from exec.pool.places import Header, Place
from sim.errors import UserError
from traces.errors import TraceError
from traces.files import replacing

NAME = "tandem.manifest.json"
"""Beside the checkpoint."""

FORMAT = 1
LEAF_BYTES = 4 << 20
"""Bytes of a leaf, and of a read: large enough for the disk's rate, small enough that the last one's hash
is done soon after it has arrived."""

_MAKE = "make it: python -m exec manifest"


def leaves_of_part(place: Place) -> int:
    """Leaves that each part of a tensor has."""
    return max(1, -(-(place.nbytes // place.parts) // LEAF_BYTES))


@dataclass(frozen=True, slots=True)
class Manifest:
    """digests: of each tensor, its leaves in order, part after part."""

    path: Path
    files: Mapping[str, Mapping[str, Any]]
    digests: Mapping[str, tuple[bytes, ...]]

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
            if len(self.digests.get(name, ())) != place.parts * leaves_of_part(place):
                raise UserError(f"{self.path}: tensor {name}: its checksums are missing; {_MAKE} again")

    def leaves(self, place: Place, part: int) -> tuple[bytes, ...]:
        count = leaves_of_part(place)
        return self.digests[place.name][part * count : (part + 1) * count]


def read_manifest(path: Path) -> Manifest:
    """Raises UserError naming the file, and the field where there is one."""
    try:
        data = json.loads(path.read_text())
        if data["format"] != FORMAT or data["algorithm"] != "sha256" or data["leaf_bytes"] != LEAF_BYTES:
            raise UserError(f"{path}: format {data['format']} of {data['leaf_bytes']} bytes a leaf is not this version's; {_MAKE} again")
        digests = {str(name): tuple(map(bytes.fromhex, leaves)) for name, leaves in data["tensors"].items()}
        files = {str(k): {"bytes": int(v["bytes"]), "header": str(v["header"])} for k, v in data["files"].items()}
        return Manifest(path, files, digests)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; experts are verified by the checksums in it; {_MAKE} {path.parent}") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
        if isinstance(e, UserError):
            raise
        raise UserError(f"{path}: not a manifest ({e!r}); {_MAKE} again") from None


def write_manifest(path: Path, headers: Mapping[Path, Header], digests: Mapping[str, tuple[bytes, ...]]) -> Manifest:
    """Whole or not at all. Raises UserError naming the file where the disk takes it not."""
    files = {h.file.name: {"bytes": h.file.stat().st_size, "header": h.digest} for h in headers.values()}
    data = {
        "format": FORMAT, "algorithm": "sha256", "leaf_bytes": LEAF_BYTES, "files": files,
        "tensors": {name: [leaf.hex() for leaf in leaves] for name, leaves in sorted(digests.items())},
    }  # fmt: skip
    try:
        with replacing(path) as part:
            part.write_text(json.dumps(data, indent=1) + "\n")
    except (OSError, TraceError) as e:
        why = (e.strerror or str(e)) if isinstance(e, OSError) else str(e)
        raise UserError(f"{path}: cannot be written ({why}); nothing is left of it; make room there or name another file with -o") from None
    return Manifest(path, files, digests)
