"""Loader: tensors and experts from disk into arrays of float32, verified before they are used.

What is to be read is cut into chunks: neighbouring leaves of one file, in all as large as a leaf may be. A thread
takes a chunk, reads it into a staging buffer, compares each leaf's checksum with the manifest's, and writes
it to its place, widened where the file has 16 bits. Several chunks are on their way at a time: while one is
verified, the disk reads the next.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray

from exec.pool.files import WeightFile
from exec.pool.manifest import checksum, leaves_of_part
from exec.pool.places import ITEM_BYTES, Header, Piece, Place
from exec.pool.staging import PAGE, Staging
from exec.runtime import Interrupt, Interrupted
from sim.errors import UserError

DEPTH = 4
"""Chunks on their way at a time. See docs/expert-pool.md for the measurement."""



class Leaf(NamedTuple):
    """Bytes offset .. offset + nbytes - 1 of `file`: elements `at` and on of the array that they go to."""

    name: str
    file: Path
    offset: int
    nbytes: int
    dtype: str
    at: int
    checksum: int


Chunk = Sequence[Leaf]
Landed = Callable[[Chunk], None]
"""Told each chunk in order, as it is in place."""


def cut(pieces: Sequence[Piece], leaf_bytes: int, digests: Callable[[Place, int], Sequence[int]]) -> list[Chunk]:
    """Chunks of the pieces, in the order in which the disk has them."""
    leaves = [
        Leaf(
            p.place.name, p.place.file, p.offset + k * leaf_bytes, min(leaf_bytes, p.nbytes - k * leaf_bytes), p.place.dtype,
            p.at + k * leaf_bytes // ITEM_BYTES.get(p.place.dtype, 1), digest,
        )
        for p in pieces for k, digest in enumerate(digests(p.place, p.part))
    ]  # fmt: skip
    chunks: list[list[Leaf]] = []
    for leaf in sorted(leaves, key=lambda leaf: (leaf.file, leaf.offset)):
        last = chunks[-1] if chunks else []
        follows = bool(last) and last[-1].file == leaf.file and last[-1].offset + last[-1].nbytes == leaf.offset
        if follows and leaf.offset + leaf.nbytes - last[0].offset <= leaf_bytes:
            last.append(leaf)
        else:
            chunks.append([leaf])
    return list(chunks)


class Loader:
    """Reads the files of one checkpoint; a context manager.

    read_bytes: that have arrived and were verified since it was made.
    """

    def __init__(self, headers: Mapping[Path, Header], leaf_bytes: int, depth: int = DEPTH) -> None:
        """leaf_bytes: of the manifest. Raises UserError where a file cannot be opened."""
        self._leaf_bytes = leaf_bytes
        self._files = {path: WeightFile(path) for path in headers}
        self.staging = Staging(depth, leaf_bytes + 2 * PAGE)
        self._threads = ThreadPoolExecutor(depth, "expert-read", initializer=torch.set_num_threads, initargs=(1,))
        self._lock = threading.Lock()
        self.read_bytes = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._threads.shutdown(wait=True, cancel_futures=True)
        for file in self._files.values():
            file.close()

    @property
    def direct(self) -> bool:
        """Whether all reads go around the page cache."""
        return all(file.direct for file in self._files.values())

    def load(self, chunks: Sequence[Chunk], out: NDArray[np.float32], interrupt: Interrupt, landed: Landed = lambda chunk: None) -> None:
        """Fill the flat array `out`. Returns or raises when nobody writes to it any more.

        Raises UserError naming file and tensor where a file is gone, cut short or changed, or a leaf is not the
        manifest's, and Interrupted where `interrupt` was set before the end.
        """
        for path in {chunk[0].file for chunk in chunks}:
            self._files[path].check()
        if len(chunks) == 1:
            self._chunk(chunks[0], out)
            landed(chunks[0])
            return
        pending = [self._threads.submit(self._chunk, chunk, out) for chunk in chunks]
        try:
            for i, done in enumerate(pending):
                done.result()
                landed(chunks[i])
                if interrupt and i + 1 < len(pending):
                    raise Interrupted(sum(map(_size, chunks[: i + 1])) / sum(map(_size, chunks)))
        finally:
            _settled(pending)

    def _chunk(self, chunk: Chunk, out: NDArray[np.float32]) -> None:
        first = chunk[0]
        with self.staging.buffer() as buffer:
            raw = self._files[first.file].read(buffer, first.offset, _size(chunk))
            for leaf in chunk:
                at = leaf.offset - first.offset
                self._leaf(leaf, raw[at : at + leaf.nbytes], out)
        with self._lock:
            self.read_bytes += _size(chunk)

    def _leaf(self, leaf: Leaf, raw: NDArray[np.uint8], out: NDArray[np.float32]) -> None:
        """Raises UserError where the bytes are not those of the manifest."""
        if checksum(raw) != leaf.checksum:
            self._files[leaf.file].check()
            raise UserError(
                f"{leaf.file}: tensor {leaf.name}: bytes {leaf.offset:,} to {leaf.offset + leaf.nbytes:,} are not those of its checksum: "
                "the file was changed or damaged; get it again"
            )
        widen(raw, leaf.dtype, out[leaf.at : leaf.at + leaf.nbytes // ITEM_BYTES[leaf.dtype]])

    def digests(self, places: Sequence[Place], said: Callable[[Place], None] = lambda place: None) -> dict[str, tuple[int, ...]]:
        """Checksums of these tensors as the disk has them; `said` hears of each one that is done."""
        found = {}
        for place in places:
            chunks = cut([Piece(place, part, 0) for part in range(place.parts)], self._leaf_bytes, self._unknown)
            found[place.name] = tuple(d for done in self._threads.map(self._hashed, chunks) for d in done)
            said(place)
        return found

    def _unknown(self, place: Place, part: int) -> list[int]:
        return [0] * leaves_of_part(place, self._leaf_bytes)

    def _hashed(self, chunk: Chunk) -> list[int]:
        first = chunk[0]
        with self.staging.buffer() as buffer:
            raw = self._files[first.file].read(buffer, first.offset, _size(chunk))
            return [checksum(raw[x.offset - first.offset :][: x.nbytes]) for x in chunk]


def widen(raw: NDArray[np.uint8], dtype: str, out: NDArray[np.float32]) -> None:
    """Bytes of a file as float32."""
    item: Any = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}[dtype]
    if raw.ctypes.data % item.itemsize:
        raw = raw.copy()  # a header of odd length: torch reads aligned elements only
    torch.from_numpy(out).copy_(torch.from_numpy(raw).view(item))


def elements(chunk: Chunk) -> int:
    """float32 elements that a chunk becomes."""
    return sum(leaf.nbytes // ITEM_BYTES[leaf.dtype] for leaf in chunk)


def _size(chunk: Chunk) -> int:
    return chunk[-1].offset + chunk[-1].nbytes - chunk[0].offset


def _settled(pending: Sequence[Future[None]]) -> None:
    for future in pending:
        future.cancel()
    wait(pending)
