"""Checkpoints as chunks named by their content, joined in a Merkle DAG: what two checkpoints share is stored and moved once.

A blob is cut into chunks of one size; a list chunk names a blob's chunks, a tree chunk names blobs or further trees, and
the tree at the top names the checkpoint. A chunk's name is the SHA-256 of its bytes, so that reading one proves it, and a
subtree that a node has already is skipped whole. Source: Merkle (CRYPTO'87); the layout follows Venti (FAST'02) and git.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from sim.errors import UserError

CHUNK_BYTES = 1 << 20
_TREE, _LIST, _DATA = b"T", b"L", b"D"
"""First byte of a chunk: its kind, part of what is hashed, so that no data can pass for a tree."""


class ChunkError(UserError):
    """A chunk that is missing or damaged; the message names it."""

    def __init__(self, store: object, digest: str, what: str) -> None:
        super().__init__(f"{store}: chunk {digest}: {what}")
        self.digest = digest


class Chunks(Protocol):
    """Where chunks are: by name, verified when they are read."""

    def put(self, data: bytes) -> str: ...
    def get(self, digest: str) -> bytes: ...
    def __contains__(self, digest: str) -> bool: ...


def name_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class ChunkStore:
    """Chunks as files DIR/ab/cdef..., each written under a temporary name and renamed: a crash leaves whole chunks only."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def __str__(self) -> str:
        return str(self.folder)

    def path(self, digest: str) -> Path:
        return self.folder / digest[:2] / digest[2:]

    def __contains__(self, digest: str) -> bool:
        return self.path(digest).is_file()

    def put(self, data: bytes) -> str:
        """Store a chunk unless it is there, and give its name. The bytes are on the disk before the name is."""
        digest = name_of(data)
        path = self.path(digest)
        if path.is_file():
            return digest
        path.parent.mkdir(exist_ok=True)
        part = path.with_name(f".{path.name}.{os.getpid()}.part")
        try:
            with part.open("wb") as f:
                f.write(data)
                f.flush()
                os.fsync(f.fileno())
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
        return digest

    def get(self, digest: str) -> bytes:
        """The chunk's bytes. Raises ChunkError where it is not there or its content has another name."""
        try:
            data = self.path(digest).read_bytes()
        except OSError as e:
            raise ChunkError(self, digest, f"cannot be read ({e.strerror}); fetch it from another copy") from None
        return verified(self, digest, data)


def verified(store: object, digest: str, data: bytes) -> bytes:
    """`data` if that is its name; raises ChunkError if not."""
    if name_of(data) != digest:
        found = name_of(data)[:12]
        raise ChunkError(store, digest, f"holds {len(data)} bytes whose name is {found}... (damaged?); fetch it from another copy")
    return data


# Writing --------------------------------------------------------------------------------------------


def save(store: Chunks, items: Mapping[str, bytes], facts: Mapping[str, Any] | None = None, chunk_bytes: int = CHUNK_BYTES) -> str:
    """Store a checkpoint of named blobs ("layer/expert" as nested trees); its root's name. facts: what the root tells of itself."""
    assert chunk_bytes >= 1, f"chunk_bytes={chunk_bytes} must be at least 1"
    nested: dict[str, Any] = {}
    for name, blob in items.items():
        *folders, last = name.split("/")
        at = nested
        for folder in folders:
            at = at.setdefault(folder, {})
            assert isinstance(at, dict), f"{name}: {folder} is a blob and a tree"
        assert last not in at, f"{name}: stands there twice"
        at[last] = blob
    return _put_tree(store, nested, facts or {}, chunk_bytes)


def _put_tree(store: Chunks, nested: Mapping[str, Any], facts: Mapping[str, Any], chunk_bytes: int) -> str:
    entries = {
        name: _put_tree(store, value, {}, chunk_bytes) if isinstance(value, dict) else _put_blob(store, value, chunk_bytes)
        for name, value in nested.items()
    }
    return store.put(_TREE + _canonical({"entries": entries, "facts": facts}))


def _put_blob(store: Chunks, blob: bytes, chunk_bytes: int) -> str:
    parts = [store.put(_DATA + blob[i : i + chunk_bytes]) for i in range(0, len(blob), chunk_bytes)]
    return store.put(_LIST + _canonical({"bytes": len(blob), "parts": parts}))


def _canonical(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


# Reading --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Chunk:
    """A chunk read and understood: names of those below it, by entry name (trees) or in order (lists)."""

    kind: Literal["tree", "list", "data"]
    below: tuple[tuple[str, str], ...] = ()
    facts: Mapping[str, Any] | None = None
    data: bytes = b""


def read(store: Chunks, digest: str) -> Chunk:
    """Raises ChunkError where the chunk is missing, damaged, or of no known form."""
    raw = store.get(digest)
    kind, body = raw[:1], raw[1:]
    if kind == _DATA:
        return Chunk("data", data=body)
    try:
        value = json.loads(body)
        if kind == _TREE:
            return Chunk("tree", tuple(value["entries"].items()), value["facts"])
        if kind == _LIST:
            return Chunk("list", tuple((str(i), part) for i, part in enumerate(value["parts"])), {"bytes": value["bytes"]})
    except (ValueError, KeyError, TypeError, AttributeError):
        pass  # falls through to the error below, which names the chunk
    raise ChunkError(store, digest, "is no tree, list or data chunk; a checkpoint's root is needed")


def restore(store: Chunks, root: str) -> Iterator[tuple[str, bytes]]:
    """(name, blob) of all blobs, in order of name."""
    for name, digest in sorted(read(store, root).below):
        chunk = read(store, digest)
        if chunk.kind == "tree":
            yield from ((f"{name}/{below}", blob) for below, blob in restore(store, digest))
        else:
            yield name, blob_of(store, digest)


def blob_of(store: Chunks, digest: str) -> bytes:
    """The blob that a list chunk names. Raises ChunkError where its parts are not as long as it says."""
    chunk = read(store, digest)
    if chunk.kind != "list" or chunk.facts is None:
        raise ChunkError(store, digest, f"is a {chunk.kind} chunk; a list of data chunks is needed")
    blob = b"".join(read(store, part).data for _, part in chunk.below)
    if len(blob) != chunk.facts["bytes"]:
        raise ChunkError(store, digest, f"names {len(blob)} bytes; it says {chunk.facts['bytes']}")
    return blob


# Moving ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Moved:
    chunks: int
    bytes: int
    """Both of what was not there before."""


def fetch(source: Chunks, target: Chunks, root: str, tell: Callable[[str, int], None] = lambda digest, size: None) -> Moved:
    """Copy what `target` lacks of a checkpoint. A subtree whose top the target has is whole there: children are put before
    their parents, so an interrupted fetch goes on where it stopped. Raises ChunkError where the source's copy is bad."""
    moved = [0, 0]

    def copy(digest: str) -> None:
        if digest in target:
            return
        chunk = read(source, digest)
        for _, below in chunk.below:
            copy(below)
        raw = source.get(digest)
        target.put(raw)
        moved[0] += 1
        moved[1] += len(raw)
        tell(digest, len(raw))

    copy(root)
    return Moved(*moved)
