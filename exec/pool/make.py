"""Makes the manifest of a checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from exec.pool.loader import Loader
from exec.pool.manifest import LEAF_BYTES, NAME, Manifest, write_manifest
from exec.pool.places import Place, headers_of


def make_manifest(
    directory: Path, path: Path | None = None, said: Callable[[Place], None] = lambda place: None, leaf_bytes: int = LEAF_BYTES
) -> Manifest:
    """Read every tensor once and write its checksums beside the checkpoint, or to `path`.

    Raises UserError naming the file that is missing, truncated, or cannot be written.
    """
    headers = headers_of(directory)
    with Loader(headers, leaf_bytes) as loader:
        digests = loader.digests([place for header in headers.values() for place in header.places.values()], said)
    return write_manifest(path or directory / NAME, leaf_bytes, headers, digests)
