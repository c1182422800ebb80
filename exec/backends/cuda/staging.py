"""Copies between pageable host memory and the device, through a ring of page-locked chunks.

The lane's thread fills a chunk while the ones before it are on their way; nothing but the chunk that is
due is waited for. Copies to and from memory that is page-locked already need none of this.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch

from exec.backends.cuda.device import Device, Event, Stream
from exec.runtime import Interrupt, Interrupted

CHUNK_BYTES = 16 << 20
CHUNKS = 3

Piece = tuple[torch.Tensor, torch.Tensor]
"""A flat tensor on the device and one on the host, of one length and dtype."""


class Staging:
    """The ring of one copy lane. One transfer at a time."""

    def __init__(self, device: Device, chunk_bytes: int = CHUNK_BYTES) -> None:
        self.chunk_bytes = chunk_bytes
        self._chunks = [device.pinned(chunk_bytes) for _ in range(CHUNKS)]
        self._busy: list[Event | None] = [None] * CHUNKS
        self._turn = 0

    def up(self, stream: Stream, pieces: Sequence[Piece], interrupt: Interrupt) -> None:
        """Enqueue copies to the device; the host's side may change when this returns. Raises Interrupted
        with the share that was enqueued."""
        done, total = 0, sum(len(there) for there, _ in pieces)
        for batch in self._batches(pieces):
            if interrupt:
                raise Interrupted(done / total)
            k, chunk = self._next()
            place, copies = 0, []
            for there, here in batch:
                staged = chunk[place : place + here.nbytes].view(here.dtype)
                staged.copy_(here)
                copies.append((there, staged))
                place += here.nbytes
                done += len(here)
            stream.run(copying(copies))
            self._busy[k] = stream.record()

    def down(
        self, stream: Stream, source: torch.Tensor, rows: Sequence[tuple[int, int]], land: Callable[[int, torch.Tensor], None]
    ) -> None:
        """Bring ranges of rows of `source` [n, width] to the host: land(i, [rows, width]) is called for each in
        turn, in the calling thread; the tensor is its only until it returns."""
        pending: list[tuple[int, Event, torch.Tensor]] = []
        for i, (a, b) in enumerate(rows):
            if len(pending) == CHUNKS:
                _land(*pending.pop(0), land)
            k, chunk = self._next()
            part = source[a:b]
            assert part.nbytes <= self.chunk_bytes, f"{b - a} rows of {part.nbytes} bytes; a chunk holds {self.chunk_bytes}"
            staged = chunk[: part.nbytes].view(part.dtype).view(part.shape)
            stream.run(copying([(staged, part)]))
            event = stream.record()
            self._busy[k] = event
            pending.append((i, event, staged))
        for item in pending:
            _land(*item, land)

    def _batches(self, pieces: Sequence[Piece]) -> Iterator[list[Piece]]:
        """Pieces, cut where they are larger than a chunk, as many together as one chunk holds."""
        batch: list[Piece] = []
        room = self.chunk_bytes
        for there, here in pieces:
            size = self.chunk_bytes // here.itemsize
            for a in range(0, len(here), size):
                part = here[a : a + size]
                if part.nbytes > room:
                    yield batch
                    batch, room = [], self.chunk_bytes
                batch.append((there[a : a + size], part))
                room -= part.nbytes
        if batch:
            yield batch

    def _next(self) -> tuple[int, torch.Tensor]:
        """The chunk whose turn it is, once its last copy is over."""
        k, self._turn = self._turn, (self._turn + 1) % CHUNKS
        busy = self._busy[k]
        if busy is not None:
            busy.synchronize()
        return k, self._chunks[k]


def copying(copies: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> Callable[[], None]:
    """Work for a stream: each (target, source), one of them on the device, the other page-locked."""

    def copy() -> None:
        for target, source in copies:
            target.copy_(source, non_blocking=True)

    return copy


def _land(i: int, event: Event, staged: torch.Tensor, land: Callable[[int, torch.Tensor], None]) -> None:
    event.synchronize()
    land(i, staged)
